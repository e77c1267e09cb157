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

from blenderbot_jax.generation.hypotheses import Beams, Successors, grown, picked
from blenderbot_jax.generation.plan import Plan
from blenderbot_jax.generation.ranking import TOP_K_KERNEL, best_first, pick
from blenderbot_jax.generation.sampling import GrowFunction, Replies, StepFunction, loop_in_segments, prompt_keys
from blenderbot_jax.generation.step import among
from blenderbot_jax.generation.task import Task

# reorder(cache, parents [B, K]) -> cache
ReorderFunction = Callable[[Any, jax.Array], Any]
# Added to a score that must lose, as transformers does; a finite number keeps such scores in order.
_NEVER = -1.0e9


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BeamState:
    """The loop's state."""

    length: jax.Array
    """Scalar int32: tokens of the running beams, prompt included."""
    beams: Beams
    """The K that are being extended, then the K best ended ones so far, best first; places that none has filled yet
    score -1e9 and are not done."""
    improvable: jax.Array
    """[B] bool: a running beam may still beat a finished one; once False it stays so."""
    exhausted: jax.Array
    """Scalar bool: every continuation of every prompt has ended."""
    cache: Any

    @property
    def running(self) -> Beams:
        """K hypotheses per prompt."""
        return self.beams.first_half

    @property
    def finished(self) -> Beams:
        """K hypotheses per prompt."""
        return self.beams.second_half


def beam_search(
    step: StepFunction,
    reorder: ReorderFunction,
    cache: Any,
    task: Task,
    plan: Plan,
    key: jax.Array | None = None,
    grow: GrowFunction | None = None,
) -> Replies:
    """Find the K best replies of each prompt.

    Args:
        step: (tokens [B, K], cache) -> (logits [B, K, V] float32, cache).
        reorder: (cache, parents [B, K]) -> cache in which row k continues row parents[:, k].
        cache: what they take and give back; it holds all but the last token of the prompt.
        task: what to decode.
        plan: how; `plan.rows` is K.
        key: a `jax.random.key`, or [B] of them, one per prompt, to draw continuations with; None takes the best. Prompt
            b draws from its own stream, whatever else is in the batch.
        grow: (cache, capacity) -> cache, for a cache that begins with the first of the plan's segments.

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
        tokens = state.running.tokens
        last = jax.lax.dynamic_index_in_dim(tokens, state.length - 1, axis=2, keepdims=False)
        logits, cache = step(last, state.cache)
        log_probs = task.bend(jax.nn.log_softmax(logits), tokens, state.length, plan)
        candidates, first, on = _extend(state, log_probs, task, plan, key)
        running = candidates.at(on)
        running = dataclasses.replace(running, scores=_behind_if_done(running))
        finished = _keep_finished(state, candidates.at(first), task)
        state = BeamState(
            length=state.length + 1,
            beams=grown(state.beams, running.then(finished), state.length),
            improvable=state.improvable,
            exhausted=(candidates.done | ~valid[:, None]).all(),
            cache=reorder(cache, running.sources),
        )
        return dataclasses.replace(state, improvable=_still_improvable(state, task))

    end = loop_in_segments(unfinished, advance, _start(cache, task, plan), plan, grow)
    best = end.finished
    kept = jnp.arange(plan.capacity) < best.lengths[..., None]
    tokens = jnp.where(kept, best.tokens, settings.pad_token[:, None, None])
    return Replies(tokens, best.lengths, best.scores, jnp.where(kept, best.log_probs, 0))


def _start(cache: Any, task: Task, plan: Plan) -> BeamState:
    tokens = jnp.tile(task.first_tokens(plan), (1, 2, 1))
    rows = tokens.shape[:2]
    # Only the first beam counts at first: the others are the same hypothesis.
    scores = jnp.full(rows, _NEVER, jnp.float32).at[:, 0].set(0)
    beams = Beams.of(tokens, jnp.zeros(tokens.shape, jnp.float32), scores, task.prompt_length, jnp.zeros(rows, bool))
    return BeamState(task.prompt_length, beams, improvable=task.valid, exhausted=jnp.array(False), cache=cache)


def _extend(
    state: BeamState, log_probs: jax.Array, task: Task, plan: Plan, key: jax.Array | None
) -> tuple[Successors, jax.Array, jax.Array]:
    """Continuations of the running beams, and which of them matter.

    Returns:
        The continuations [B, m], their scores summed log-probabilities; the places [B, K] of those that rank first; and
        the places [B, K] of those that run on, the best that have not ended. Both best first.
    """
    if key is None and _all_but_ends_run_on(log_probs, task, plan):
        return _extend_each(state, log_probs, task, plan)
    K, count = plan.rows, max(2, 1 + task.settings.eos_tokens.shape[-1]) * plan.rows
    totals = log_probs + state.running.scores[..., None]
    # Adding Gumbel noise and taking the best draws without replacement, in the order of drawing.
    ranked = totals if key is None else totals + _noise(key, state.length, totals)
    best, parents, chosen = top_continuations(ranked, count)
    places = parents * log_probs.shape[-1] + chosen
    tokens = pick(state.running.tokens, parents).at[:, :, state.length].set(chosen)
    done = task.ended(tokens, state.length + 1, plan)
    scores = best if key is None else picked(totals, places)
    candidates = Successors.continuing(parents, chosen, picked(log_probs, places), scores, done)
    first = jnp.broadcast_to(jnp.arange(K, dtype=jnp.int32), (len(parents), K))
    return candidates, first, best_first(_behind_if_done(candidates), count=K)


def _all_but_ends_run_on(log_probs: jax.Array, task: Task, plan: Plan) -> bool:
    """Whether a hypothesis ends in one end token or for all alike, so that K continuations of a beam are enough."""
    V, E = log_probs.shape[-1], task.settings.eos_tokens.shape[-1]
    return not plan.stops and E <= 1 and plan.rows <= min(TOP_K_KERNEL, V - E)


def _extend_each(
    state: BeamState, log_probs: jax.Array, task: Task, plan: Plan
) -> tuple[Successors, jax.Array, jax.Array]:
    """As `_extend`, from the best K continuations of each beam that do not end, and the one that does.

    Those that run on are among the former, and the first K are among both. Nothing is lost against the best 2 K of all,
    and no row is asked for more than a GPU's kernel finds.
    """
    B, K, V = log_probs.shape
    running, eos = state.running, task.settings.eos_tokens
    # Barred tokens come before the end token, which stands apart.
    finite = jnp.maximum(log_probs + running.scores[..., None], jnp.finfo(jnp.float32).min)
    best = jax.lax.top_k(jnp.where(among(eos, V), -jnp.inf, finite), K)[1]
    chosen = jnp.concatenate([best, jnp.broadcast_to(eos[:, None], (B, K, eos.shape[-1]))], axis=-1)
    chosen_log_probs = jnp.take_along_axis(log_probs, chosen, axis=-1, mode="clip")
    totals = (chosen_log_probs + running.scores[..., None]).reshape(B, -1)
    parents = jnp.broadcast_to(jnp.arange(K, dtype=jnp.int32)[:, None], chosen.shape).reshape(B, -1)
    chosen = chosen.reshape(B, -1)
    # Only the last token matters where there are no stop sequences.
    replies = jnp.broadcast_to(chosen[..., None], (*chosen.shape, plan.capacity))
    done = task.ended(replies, state.length + 1, plan)
    candidates = Successors.continuing(parents, chosen, chosen_log_probs.reshape(B, -1), totals, done)
    # Two orders at once: of all, and with what has ended behind. Of equal scores the earlier beam comes first, then the
    # lower token.
    behind = done[:, None] & jnp.array([False, True])[:, None]
    keys = totals[:, None] + jnp.where(behind, _NEVER, 0.0)
    first, on = jnp.moveaxis(best_first(keys, totals[:, None], -(parents * V + chosen)[:, None], count=K), 1, 0)
    return candidates, first, on


def _behind_if_done(candidates: Successors) -> jax.Array:
    return candidates.scores + jnp.where(candidates.done, _NEVER, 0.0)


def _noise(key: jax.Array, length: jax.Array, scores: jax.Array) -> jax.Array:
    """Gumbel noise over [B, K, V]; a prompt's own depends on its place and on nothing else in the batch."""
    B, *shape = scores.shape
    keys = jax.vmap(jax.random.fold_in, (0, None))(prompt_keys(key, B), length)
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


def _keep_finished(state: BeamState, first: Successors, task: Task) -> Successors:
    """The K best of the finished hypotheses and those of the first K candidates that end."""
    old, K = state.finished, first.scores.shape[1]
    normalised = first.scores / _divisor(task, state.length + 1)[:, None]
    closed = (old.done.all(axis=1) & task.settings.stop_when_full)[:, None]
    for barred in (closed, ~state.improvable[:, None], ~first.done):
        normalised = normalised + jnp.where(barred, _NEVER, 0.0)
    both = Successors.staying(old, K).then(dataclasses.replace(first, scores=normalised))
    # Whatever its score, a hypothesis that has ended comes before a place that is not yet filled.
    return both.at(best_first(jnp.where(both.done, both.scores, -jnp.inf), count=K))


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
