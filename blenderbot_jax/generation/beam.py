"""Beam search, model-free: it sees a step function, a reorder function, and an opaque cache.

The arithmetic and its order are those of transformers 5 (`generation/utils.py`, `_beam_search`): per step, the best
max(2, 1 + E) * K continuations of each prompt; those that end and rank among the first K may enter the finished list
with their length-normalised score; the best K that do not end run on.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from blenderbot_jax.generation.plan import Plan, Settings
from blenderbot_jax.generation.processors import Step, process
from blenderbot_jax.generation.sampling import Replies, StepFunction

# reorder(cache, parents [B, K]) -> cache
ReorderFunction = Callable[[Any, jax.Array], Any]
# Added to a score that must lose, as transformers does; a finite number keeps such scores in order.
_NEVER = -1.0e9


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Beams:
    """Some hypotheses per prompt; M of them."""

    tokens: jax.Array
    """[B, M, C] int32."""
    log_probs: jax.Array
    """[B, M, C] float32, one per token."""
    scores: jax.Array
    """[B, M] float32: summed log-probabilities while running, length-normalised once finished."""
    lengths: jax.Array
    """[B, M] int32, start token included."""
    done: jax.Array
    """[B, M] bool: the hypothesis has ended."""

    def take(self, rows: jax.Array) -> "Beams":
        """The hypotheses at `rows` [B, M']."""
        return jax.tree.map(
            lambda leaf: jnp.take_along_axis(leaf, rows.reshape(rows.shape + (1,) * (leaf.ndim - 2)), axis=1), self
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BeamState:
    """The loop's state."""

    length: jax.Array
    """Scalar int32: tokens of the running beams, start token included."""
    running: Beams
    """K beams that are being extended."""
    finished: Beams
    """The K best ended hypotheses so far, best first; places not yet filled score -1e9 and are not done."""
    improvable: jax.Array
    """[B] bool: a running beam may still beat a finished one; once False it stays so."""
    exhausted: jax.Array
    """Scalar bool: every continuation of every prompt has ended."""
    cache: Any


def beam_search(
    step: StepFunction,
    reorder: ReorderFunction,
    cache: Any,
    source_ids: jax.Array,
    valid: jax.Array,
    settings: Settings,
    plan: Plan,
) -> Replies:
    """Find the K best replies of each prompt.

    Args:
        step: (tokens [B, K], cache) -> (logits [B, K, V] float32, cache).
        reorder: (cache, parents [B, K]) -> cache in which row k continues row parents[:, k].
        cache: what they take and give back.
        source_ids: [B, S], for the rules that look at the prompt.
        valid: [B] bool; rows that only fill the batch are finished from the start.
        settings, plan: how to decode; `plan.rows` is K.

    Returns:
        K replies per prompt, best first.
    """

    def unfinished(state: BeamState) -> jax.Array:
        all_full = (state.finished.done.all(axis=1) | ~valid).all()
        stop_when_full = jnp.broadcast_to(settings.stop_when_full, valid.shape)
        open_ended = ~(all_full & (stop_when_full | ~valid).all())
        return state.improvable.any() & open_ended & ~state.exhausted & (state.length < plan.capacity)

    def advance(state: BeamState) -> BeamState:
        last = jax.lax.dynamic_index_in_dim(state.running.tokens, state.length - 1, axis=2, keepdims=False)
        logits, cache = step(last, state.cache)
        so_far = Step(state.running.tokens, state.length, source_ids)
        log_probs = process(jax.nn.log_softmax(logits), so_far, settings, plan)
        candidates, parents = _extend(state, log_probs, settings, plan)
        running, parents = _keep_running(candidates, parents, plan.rows)
        finished = _keep_finished(state, candidates, settings, plan.rows)
        state = BeamState(
            length=state.length + 1,
            running=running,
            finished=finished,
            improvable=state.improvable,
            exhausted=(candidates.done | ~valid[:, None]).all(),
            cache=reorder(cache, parents),
        )
        return dataclasses.replace(state, improvable=_still_improvable(state, settings))

    end = jax.lax.while_loop(unfinished, advance, _start(cache, source_ids.shape[0], valid, settings, plan))
    best = end.finished
    kept = jnp.arange(plan.capacity) < best.lengths[..., None]
    tokens = jnp.where(kept, best.tokens, settings.pad_token[:, None, None])
    return Replies(tokens, best.lengths, best.scores, jnp.where(kept, best.log_probs, 0))


def _start(cache: Any, B: int, valid: jax.Array, settings: Settings, plan: Plan) -> BeamState:
    K, C = plan.rows, plan.capacity
    tokens = jnp.broadcast_to(settings.pad_token[:, None, None], (B, K, C))
    tokens = tokens.at[:, :, 0].set(jnp.broadcast_to(settings.start_token[:, None], (B, K)))
    none = jnp.full((B, K), _NEVER, jnp.float32)
    beams = Beams(
        tokens=tokens,
        log_probs=jnp.zeros((B, K, C), jnp.float32),
        scores=none,
        lengths=jnp.ones((B, K), jnp.int32),
        done=jnp.zeros((B, K), bool),
    )
    # Only the first beam counts at first: the others are the same hypothesis.
    running = dataclasses.replace(beams, scores=none.at[:, 0].set(0))
    return BeamState(jnp.int32(1), running, beams, improvable=valid, exhausted=jnp.array(False), cache=cache)


def _extend(state: BeamState, log_probs: jax.Array, settings: Settings, plan: Plan) -> tuple[Beams, jax.Array]:
    """The best continuations, max(2, 1 + E) * K per prompt in order of score, and the beams they extend."""
    count = max(2, 1 + settings.eos_tokens.shape[-1]) * plan.rows
    scores, parents, chosen = top_continuations(log_probs + state.running.scores[..., None], count)
    grown = state.running.take(parents)
    token_log_probs = jnp.take_along_axis(
        log_probs.reshape(len(parents), -1), parents * log_probs.shape[-1] + chosen, 1
    )
    ended = (chosen[..., None] == settings.eos_tokens[:, None]).any(axis=-1)
    return Beams(
        tokens=grown.tokens.at[:, :, state.length].set(chosen),
        log_probs=grown.log_probs.at[:, :, state.length].set(token_log_probs),
        scores=scores,
        lengths=jnp.full_like(parents, 1) * (state.length + 1),
        done=ended | (state.length + 1 >= settings.max_length[:, None]),
    ), parents


def top_continuations(scores: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best entries of each prompt's K x V scores, found within each beam first and then across beams.

    Equal to one top-k over all K * V, ties included (the lower index wins), without sorting them all.

    Args:
        scores: [B, K, V].
        count: how many to keep, at most K * V.

    Returns:
        scores, beams and tokens, [B, count] each, best first.
    """
    B, K, V = scores.shape
    if count > K * V:
        raise ValueError(f"a beam search of width {K} needs {count} continuations, {K} x {V} tokens give {K * V}")
    within, tokens = jax.lax.top_k(scores, min(count, V))
    best, places = jax.lax.top_k(within.reshape(B, -1), count)
    chosen = jnp.take_along_axis(tokens.reshape(B, -1), places, axis=1)
    return best, places // within.shape[-1], chosen


def _keep_running(candidates: Beams, parents: jax.Array, K: int) -> tuple[Beams, jax.Array]:
    """The K best candidates that have not ended, and the beams they extend."""
    scores = candidates.scores + jnp.where(candidates.done, _NEVER, 0.0)
    best, rows = jax.lax.top_k(scores, K)
    return dataclasses.replace(candidates.take(rows), scores=best), jnp.take_along_axis(parents, rows, axis=1)


def _keep_finished(state: BeamState, candidates: Beams, settings: Settings, K: int) -> Beams:
    """The K best of the finished hypotheses and the candidates that end among the first K."""
    normalised = candidates.scores / _divisor(settings, state.length)[:, None]
    may_enter = candidates.done & (jnp.arange(candidates.done.shape[1]) < K)
    closed = (state.finished.done.all(axis=1) & settings.stop_when_full)[:, None]
    for barred in (closed, ~state.improvable[:, None], ~may_enter):
        normalised = normalised + jnp.where(barred, _NEVER, 0.0)
    entering = dataclasses.replace(candidates, scores=normalised, done=may_enter)
    both = jax.tree.map(lambda old, new: jnp.concatenate([old, new], axis=1), state.finished, entering)
    return both.take(jax.lax.top_k(both.scores, K)[1])


def _still_improvable(state: BeamState, settings: Settings) -> jax.Array:
    """Whether the best running beam may yet beat the worst finished one; judged after the step, [B]."""
    at_most = jnp.where(settings.judge_at_full_length, settings.max_length - 1, state.length - 1)
    best = state.running.scores[:, 0] / _divisor(settings, at_most)
    worst = jnp.where(state.finished.done, state.finished.scores.min(axis=1, keepdims=True), _NEVER)
    return state.improvable & (best[:, None] > worst).any(axis=1)


def _divisor(settings: Settings, generated: jax.Array) -> jax.Array:
    """generated ** length_penalty, [1 or B]."""
    table = settings.length_divisors
    generated = jnp.broadcast_to(generated, table.shape[:1])
    return jnp.take_along_axis(table, generated[:, None], axis=1)[:, 0]
