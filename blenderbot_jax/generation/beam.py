"""Beam search, model-free: it sees a step function, a reorder function, and an opaque cache.

The arithmetic and its order are those of transformers 5 (`generation/utils.py`, `_beam_search`): per step, the best
max(2, 1 + E) * K continuations of each prompt; those that end and rank among the first K may enter the finished list
with their length-normalised score; the best K that do not end run on. Beam sampling draws those continuations instead,
without replacement, from the softmax of the scores of all beams together.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from blenderbot_jax.generation.plan import Plan
from blenderbot_jax.generation.sampling import Replies, StepFunction
from blenderbot_jax.generation.task import Task

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
    """Scalar int32: tokens of the running beams, prompt included."""
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
    step: StepFunction, reorder: ReorderFunction, cache: Any, task: Task, plan: Plan, key: jax.Array | None = None
) -> Replies:
    """Find the K best replies of each prompt.

    Args:
        step: (tokens [B, K], cache) -> (logits [B, K, V] float32, cache).
        reorder: (cache, parents [B, K]) -> cache in which row k continues row parents[:, k].
        cache: what they take and give back; it holds all but the last token of the prompt.
        task: what to decode.
        plan: how; `plan.rows` is K.
        key: a `jax.random.key` to draw continuations with; None takes the best. Prompt b draws from its own stream,
            whatever else is in the batch.

    Returns:
        K replies per prompt, best first.
    """
    settings, valid = task.settings, task.valid

    def unfinished(state: BeamState) -> jax.Array:
        all_full = (state.finished.done.all(axis=1) | ~valid).all()
        stop_when_full = jnp.broadcast_to(settings.stop_when_full, valid.shape)
        open_ended = ~(all_full & (stop_when_full | ~valid).all())
        return state.improvable.any() & open_ended & ~state.exhausted & (state.length < plan.capacity)

    def advance(state: BeamState) -> BeamState:
        last = jax.lax.dynamic_index_in_dim(state.running.tokens, state.length - 1, axis=2, keepdims=False)
        logits, cache = step(last, state.cache)
        log_probs = task.bend(jax.nn.log_softmax(logits), state.running.tokens, state.length, plan)
        candidates, parents = _extend(state, log_probs, task, plan, key)
        running, parents = _keep_running(candidates, parents, plan.rows)
        finished = _keep_finished(state, candidates, task, plan.rows)
        state = BeamState(
            length=state.length + 1,
            running=running,
            finished=finished,
            improvable=state.improvable,
            exhausted=(candidates.done | ~valid[:, None]).all(),
            cache=reorder(cache, parents),
        )
        return dataclasses.replace(state, improvable=_still_improvable(state, task))

    end = jax.lax.while_loop(unfinished, advance, _start(cache, task, plan))
    best = end.finished
    kept = jnp.arange(plan.capacity) < best.lengths[..., None]
    tokens = jnp.where(kept, best.tokens, settings.pad_token[:, None, None])
    return Replies(tokens, best.lengths, best.scores, jnp.where(kept, best.log_probs, 0))


def _start(cache: Any, task: Task, plan: Plan) -> BeamState:
    tokens = task.first_tokens(plan)
    rows = tokens.shape[:2]
    none = jnp.full(rows, _NEVER, jnp.float32)
    beams = Beams(
        tokens=tokens,
        log_probs=jnp.zeros(tokens.shape, jnp.float32),
        scores=none,
        lengths=jnp.broadcast_to(task.prompt_length, rows),
        done=jnp.zeros(rows, bool),
    )
    # Only the first beam counts at first: the others are the same hypothesis.
    running = dataclasses.replace(beams, scores=none.at[:, 0].set(0))
    return BeamState(task.prompt_length, running, beams, improvable=task.valid, exhausted=jnp.array(False), cache=cache)


def _extend(
    state: BeamState, log_probs: jax.Array, task: Task, plan: Plan, key: jax.Array | None
) -> tuple[Beams, jax.Array]:
    """The best (or drawn) continuations, max(2, 1 + E) * K per prompt in order, and the beams they extend."""
    count = max(2, 1 + task.settings.eos_tokens.shape[-1]) * plan.rows
    totals = log_probs + state.running.scores[..., None]
    # Adding Gumbel noise and taking the best draws without replacement, in the order of drawing.
    ranked = totals if key is None else totals + _noise(key, state.length, totals)
    best, parents, chosen = top_continuations(ranked, count)
    places = parents * log_probs.shape[-1] + chosen
    grown = state.running.take(parents)
    tokens = grown.tokens.at[:, :, state.length].set(chosen)
    return Beams(
        tokens=tokens,
        log_probs=grown.log_probs.at[:, :, state.length].set(_picked(log_probs, places)),
        scores=best if key is None else _picked(totals, places),
        lengths=jnp.full_like(parents, 1) * (state.length + 1),
        done=task.ended(tokens, state.length + 1, plan),
    ), parents


def _picked(scores: jax.Array, places: jax.Array) -> jax.Array:
    """Entries of [B, K, V] at flat places [B, M]."""
    return jnp.take_along_axis(scores.reshape(len(places), -1), places, axis=1)


def _noise(key: jax.Array, length: jax.Array, scores: jax.Array) -> jax.Array:
    """Gumbel noise over [B, K, V]; a prompt's own depends on its place and on nothing else in the batch."""
    B, *shape = scores.shape
    keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(key, row), length))(jnp.arange(B))
    return jax.vmap(lambda one: jax.random.gumbel(one, shape, scores.dtype))(keys)


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


def _keep_finished(state: BeamState, candidates: Beams, task: Task, K: int) -> Beams:
    """The K best of the finished hypotheses and the candidates that end among the first K."""
    normalised = candidates.scores / _divisor(task, state.length + 1)[:, None]
    may_enter = candidates.done & (jnp.arange(candidates.done.shape[1]) < K)
    closed = (state.finished.done.all(axis=1) & task.settings.stop_when_full)[:, None]
    for barred in (closed, ~state.improvable[:, None], ~may_enter):
        normalised = normalised + jnp.where(barred, _NEVER, 0.0)
    entering = dataclasses.replace(candidates, scores=normalised, done=may_enter)
    both = jax.tree.map(lambda old, new: jnp.concatenate([old, new], axis=1), state.finished, entering)
    # Whatever its score, a hypothesis that has ended comes before a place that is not yet filled.
    ranked = jnp.where(both.done, both.scores, -jnp.inf)
    return both.take(jax.lax.top_k(ranked, K)[1])


def _still_improvable(state: BeamState, task: Task) -> jax.Array:
    """Whether the best running beam may yet beat the worst finished one; judged after the step, [B]."""
    settings = task.settings
    at_most = jnp.where(settings.judge_at_full_length, settings.max_length, state.length)
    best = state.running.scores[:, 0] / _divisor(task, at_most)
    worst = jnp.where(state.finished.done, state.finished.scores.min(axis=1, keepdims=True), -jnp.inf)
    return state.improvable & (best[:, None] > worst).any(axis=1)


def _divisor(task: Task, length: jax.Array) -> jax.Array:
    """(generated tokens) ** length_penalty for rows of `length` tokens, [1 or B]."""
    table = task.settings.length_divisors
    generated = jnp.broadcast_to(length - task.settings.prompt_length, table.shape[:1])
    return jnp.take_along_axis(table, generated[:, None], axis=1)[:, 0]
