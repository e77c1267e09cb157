"""ParlAI's decoding: its beam search, its sampling, and the two one after the other.

The rules are those of ParlAI (`parlai/core/torch_generator_agent.py`, `TreeSearch`), which trained the models. A step
makes K hypotheses of K: the best K continuations of all, those that end among them, or one drawn for each. One that has
ended keeps its place for a step, at a score from which nothing better can follow; the score it ended with goes, length
taken into account, into the list of finished ones. A prompt is done when K have finished, and one of them stood first
in its step. (With one drawn for each the first is always the same, so that is when all have ended.)

Model-free, as `beam.py` is.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from blenderbot_jax.generation.beam import ReorderFunction, top_continuations
from blenderbot_jax.generation.cutoffs import likeliest, nucleus
from blenderbot_jax.generation.hypotheses import Beams, Successors, grown, picked
from blenderbot_jax.generation.plan import Plan
from blenderbot_jax.generation.ranking import best_first, pick
from blenderbot_jax.generation.sampling import (
    GrowFunction,
    Replies,
    StepFunction,
    choose,
    loop_in_segments,
    row_keys,
)
from blenderbot_jax.generation.task import BARRED, Task


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ParlaiState:
    """The loop's state."""

    length: jax.Array
    """Scalar int32: tokens of the running hypotheses, prompt included."""
    beams: Beams
    """The K of the last step, then the K best finished ones, best first; places not yet filled are not done."""
    finished: jax.Array
    """[B] int32: hypotheses that have finished."""
    led: jax.Array
    """[B] bool: the first of a step has ended at some time."""
    cache: Any


def parlai_search(
    step: StepFunction,
    reorder: ReorderFunction,
    cache: Any,
    task: Task,
    plan: Plan,
    key: jax.Array | None = None,
    grow: GrowFunction | None = None,
) -> Replies:
    """Find, or draw, K replies to each prompt.

    Args:
        step: (tokens [B, K], cache) -> (logits [B, K, V] float32, cache).
        reorder: (cache, parents [B, K]) -> cache in which row k continues row parents[:, k].
        cache: what they take and give back; it holds all but the last token of the prompt.
        task: what to decode.
        plan: how; `plan.rows` is K.
        key: a `jax.random.key`, or [B] of them, one per prompt, where the plan draws. Row k of prompt b draws from its
            own stream, the one that `decode_rows` draws from.
        grow: (cache, capacity) -> cache, for a cache that begins with the first of the plan's segments.

    Returns:
        K replies per prompt: those that have ended, best first; behind them, where there are fewer than K, hypotheses
        that the greatest length has cut off. A place for which there is neither holds no reply, at a score of -inf.
    """
    keys = None if key is None else row_keys(key, len(task.prompt), plan.rows)

    def unfinished(state: ParlaiState) -> jax.Array:
        return _open(state, task).any() & (state.length < plan.capacity)

    def advance(state: ParlaiState) -> ParlaiState:
        running = state.beams.first_half
        last = jax.lax.dynamic_index_in_dim(running.tokens, state.length - 1, axis=2, keepdims=False)
        logits, cache = step(last, state.cache)
        scores = task.bend(task.scored(logits, plan), running.tokens, state.length, plan)
        chosen = _chosen(state, jnp.maximum(scores, BARRED), task, plan, keys)
        # A prompt that is done stays as it is, whatever the others of its batch do.
        goes_on = _open(state, task)[:, None]
        stay = Successors.staying(running, 0)
        first = jax.tree.map(lambda new, old: jnp.where(goes_on, new, old), chosen, stay)
        ends = chosen.done & goes_on & (chosen.scores > BARRED)
        successors = first.then(_kept(state, dataclasses.replace(chosen, done=ends), task))
        return ParlaiState(
            length=state.length + 1,
            beams=grown(state.beams, successors, state.length),
            finished=state.finished + ends.sum(axis=1, dtype=jnp.int32),
            led=state.led | (chosen.done & goes_on)[:, 0],
            cache=reorder(cache, first.sources) if plan.searches and plan.rows > 1 else cache,
        )

    return _replies(loop_in_segments(unfinished, advance, _start(cache, task, plan), plan, grow), task, plan)


def _start(cache: Any, task: Task, plan: Plan) -> ParlaiState:
    tokens = jnp.tile(task.first_tokens(plan), (1, 2, 1))
    rows = tokens.shape[:2]
    # A search begins with one hypothesis. Draws begin with K of them, alike though they are.
    alone = jnp.broadcast_to(~_drawing(task.prompt_length, task, plan)[:, None], rows)
    scores = jnp.where(alone & (jnp.arange(rows[1]) > 0), BARRED, 0.0)
    beams = Beams.of(tokens, jnp.zeros(tokens.shape, jnp.float32), scores, task.prompt_length, jnp.zeros(rows, bool))
    nothing = jnp.zeros_like(task.valid)
    return ParlaiState(task.prompt_length, beams, finished=nothing.astype(jnp.int32), led=nothing, cache=cache)


def _open(state: ParlaiState, task: Task) -> jax.Array:
    """[B] bool: prompts that are not done and have room left."""
    K = state.beams.done.shape[1] // 2
    done = state.led & (state.finished >= K)
    return task.valid & ~done & (state.length < task.settings.max_length)


def _drawing(length: jax.Array, task: Task, plan: Plan) -> jax.Array:
    """[1 or B] bool: what follows the first `length` tokens is drawn."""
    if not plan.draws:
        return jnp.zeros((1,), bool)
    if not plan.searches:
        return jnp.ones((1,), bool)
    return length - task.settings.prompt_length < task.settings.beam_delay


def _chosen(state: ParlaiState, log_probs: jax.Array, task: Task, plan: Plan, keys: jax.Array | None) -> Successors:
    """The next step's K hypotheses, [B, K], from the log-probabilities [B, K, V] of what may follow each."""
    running = state.beams.first_half
    # Of what has ended nothing more can come.
    prior = jnp.where(running.done, BARRED, running.scores)

    def search() -> tuple[jax.Array, ...]:
        return _best(log_probs, prior)

    def draw() -> tuple[jax.Array, ...]:
        return _drawn(log_probs, prior, state, task, plan, keys)

    if not plan.draws:
        parents, tokens, chosen, scores = search()
    elif not plan.searches:
        parents, tokens, chosen, scores = draw()
    else:
        drawing = _drawing(state.length, task, plan)
        # Drawing sorts the vocabulary; once nothing is drawn any more it is left out.
        drawn = jax.lax.cond(drawing.any(), draw, search)
        both = zip(drawn, search(), strict=True)
        parents, tokens, chosen, scores = (jnp.where(drawing[:, None], one, other) for one, other in both)
    done = task.closed(_continued(running, parents, tokens, state.length, plan), state.length + 1, plan)
    return Successors.continuing(parents, tokens, chosen, scores, done)


def _best(log_probs: jax.Array, prior: jax.Array) -> tuple[jax.Array, ...]:
    """Parents, tokens, their log-probabilities and new scores of the best K continuations, best first."""
    scores, parents, tokens = top_continuations(log_probs + prior[..., None], log_probs.shape[1])
    return parents, tokens, picked(log_probs, parents * log_probs.shape[-1] + tokens), scores


def _drawn(
    log_probs: jax.Array, prior: jax.Array, state: ParlaiState, task: Task, plan: Plan, keys: jax.Array | None
) -> tuple[jax.Array, ...]:
    """The same, of one continuation drawn for each hypothesis."""
    kept, counted = log_probs, log_probs
    if plan.draws == "top_k":
        kept = likeliest(log_probs, task.settings.top_k)
    if plan.draws == "top_p":
        kept = counted = jax.nn.log_softmax(nucleus(log_probs, _tail(state, task)))
    tokens = choose(kept, state.length, keys)
    own, chosen = (jnp.take_along_axis(one, tokens[..., None], axis=-1)[..., 0] for one in (log_probs, counted))
    # Where all tokens are barred, one is drawn all the same, and is no less barred for it.
    chosen = jnp.where(own > BARRED, chosen, BARRED)
    parents = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    return parents, tokens, chosen, prior + chosen


def _tail(state: ParlaiState, task: Task) -> jax.Array:
    """1 - top_p for the next token of each row, by how far its sentence has come: [B, K, 1]."""
    settings, tokens = task.settings, state.beams.first_half.tokens
    places = jnp.arange(tokens.shape[-1])
    generated = (places >= settings.prompt_length[:, None]) & (places < state.length)
    ends = (tokens[..., None] == settings.sentence_ends[:, None, None]).any(axis=-1) & generated[:, None]
    # Where a sentence has ended it begins behind its end, otherwise where the reply does.
    begins = jnp.where(ends, places + 1, settings.prompt_length[:, None, None]).max(axis=-1)
    table = jnp.broadcast_to(settings.top_p_tails, (len(tokens), settings.top_p_tails.shape[1]))
    return jnp.take_along_axis(table, state.length - begins, axis=1)[..., None]


def _continued(running: Beams, parents: jax.Array, tokens: jax.Array, length: jax.Array, plan: Plan) -> jax.Array:
    """The continuations as rows [B, K, C], as far as it matters to whether they end."""
    if not plan.stops:
        return jnp.broadcast_to(tokens[..., None], (*tokens.shape, plan.capacity))
    return pick(running.tokens, parents).at[:, :, length].set(tokens)


def _kept(state: ParlaiState, chosen: Successors, task: Task) -> Successors:
    """The K best of the finished hypotheses and those of a step that end; of equals those that came first."""
    K = chosen.done.shape[1]
    generated = state.length + 1 - task.settings.prompt_length
    normalised = chosen.scores / _divisors(jnp.broadcast_to(generated[:, None], chosen.done.shape), task)
    both = Successors.staying(state.beams.second_half, K).then(dataclasses.replace(chosen, scores=normalised))
    return both.at(best_first(jnp.where(both.done, both.scores, -jnp.inf), count=K))


def _divisors(generated: jax.Array, task: Task) -> jax.Array:
    """((n + 2) / 6) ** length_penalty for n generated tokens [B, K]."""
    table = task.settings.length_divisors
    return jnp.take_along_axis(jnp.broadcast_to(table, (len(generated), table.shape[1])), generated, axis=1)


def _replies(end: ParlaiState, task: Task, plan: Plan) -> Replies:
    """What has ended, best first, then what is cut off."""
    finished, cut = end.beams.second_half, _cut_off(end.beams.first_half, task)
    both = Beams(jnp.concatenate([finished.rows, cut.rows], axis=1))
    is_finished = jnp.arange(both.done.shape[1]) < plan.rows
    order = best_first(
        jnp.where(both.done, jnp.where(is_finished, 2.0, 1.0), 0.0),
        jnp.where(both.done & is_finished, both.scores, 0.0),
        count=plan.rows,
    )
    best = Beams(pick(both.rows, order))
    settings = task.settings
    lengths = jnp.where(best.done, best.lengths, settings.prompt_length[:, None])
    kept = jnp.arange(plan.capacity) < lengths[..., None]
    return Replies(
        tokens=jnp.where(kept, best.tokens, settings.pad_token[:, None, None]),
        lengths=lengths,
        scores=jnp.where(best.done, best.scores, -jnp.inf),
        log_probs=jnp.where(kept, best.log_probs, 0),
    )


def _cut_off(running: Beams, task: Task) -> Beams:
    """Running hypotheses as if they had ended: an end token in the last place, at the cost of what stood there.

    Those that are done, or of which nothing could come, are not done here.
    """
    settings, tokens = task.settings, running.tokens
    if settings.eos_tokens.shape[-1]:
        here = jnp.arange(tokens.shape[-1]) == running.lengths[..., None] - 1
        tokens = jnp.where(here, settings.eos_tokens[:, None, :1], tokens)
    scores = running.scores / _divisors(running.lengths - settings.prompt_length[:, None], task)
    alive = ~running.done & (running.scores > BARRED)
    return Beams.of(tokens, running.log_probs, scores, running.lengths, alive)
