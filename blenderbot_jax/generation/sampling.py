"""Greedy decoding and sampling: K independent rows per prompt, one token each per step."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from blenderbot_jax.generation.plan import Plan
from blenderbot_jax.generation.task import Task

# step(tokens [B, K], cache) -> (logits [B, K, V] float32, cache)
StepFunction = Callable[[jax.Array, Any], tuple[jax.Array, Any]]
# grow(cache, capacity) -> cache with room for so many tokens
GrowFunction = Callable[[Any, int], Any]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Replies:
    """Decoded rows, best first where they are ranked."""

    tokens: jax.Array
    """[B, K, C] int32, start token first; pad after the end."""
    lengths: jax.Array
    """[B, K] int32, tokens up to and with the end token, start included."""
    scores: jax.Array
    """[B, K] float32."""
    log_probs: jax.Array
    """[B, K, C] float32: the processed log-probability of each token; 0 at the start and after the end."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowState:
    """The loop's state."""

    length: jax.Array
    """Scalar int32: places filled, start token included."""
    tokens: jax.Array
    """[B, K, C] int32."""
    log_probs: jax.Array
    """[B, K, C] float32."""
    lengths: jax.Array
    """[B, K] int32: tokens of each row that are its own."""
    finished: jax.Array
    """[B, K] bool."""
    cache: Any


def decode_rows(
    step: StepFunction, cache: Any, task: Task, plan: Plan, key: jax.Array | None, grow: GrowFunction | None = None
) -> Replies:
    """Decode greedily, or draw every token if a key is given.

    Args:
        step: one token per row in, logits out.
        cache: what `step` takes and gives back; it holds all but the last token of the prompt.
        task: what to decode.
        plan: how.
        key: a `jax.random.key`, or [B] of them, one per prompt; None takes the likeliest token. Row k of prompt b draws
            from its own stream, whatever else is in the batch.
        grow: (cache, capacity) -> cache, for a cache that begins with the first of the plan's segments.
    """
    state = start_rows(cache, task, plan)
    keys = None if key is None else row_keys(key, *state.finished.shape)

    def advance(state: RowState) -> RowState:
        last = jax.lax.dynamic_index_in_dim(state.tokens, state.length - 1, axis=2, keepdims=False)
        logits, cache = step(last, state.cache)
        return extend(dataclasses.replace(state, cache=cache), logits, keys, task, plan)

    return as_replies(loop_in_segments(partial(unfinished, plan=plan), advance, state, plan, grow))


def loop_in_segments(
    unfinished: Callable[[Any], jax.Array],
    advance: Callable[[Any], Any],
    state: Any,
    plan: Plan,
    grow: GrowFunction | None,
) -> Any:
    """Advance until finished, in one loop, or in one for each segment that the cache grows through.

    Args:
        unfinished, advance: condition and body; a state has a `length` and a `cache`.
        state: where to begin.
        plan: whose segments count.
        grow: makes room in a cache; None: there is room.
    """
    if grow is None:
        return jax.lax.while_loop(unfinished, advance, state)
    for capacity in plan.segments or (plan.capacity,):
        # The last token of a reply is never written to the cache.
        room = partial(_with_room, unfinished, capacity)
        state = jax.lax.while_loop(room, advance, dataclasses.replace(state, cache=grow(state.cache, capacity)))
    return state


def _with_room(unfinished: Callable[[Any], jax.Array], capacity: int, state: Any) -> jax.Array:
    return unfinished(state) & (state.length <= capacity)


def start_rows(cache: Any, task: Task, plan: Plan) -> RowState:
    """The rows before the first step, around a cache that holds all but the last token of the prompt."""
    tokens = task.first_tokens(plan)
    rows = tokens.shape[:2]
    return RowState(
        length=task.prompt_length,
        tokens=tokens,
        log_probs=jnp.zeros(tokens.shape, jnp.float32),
        lengths=jnp.broadcast_to(task.prompt_length, rows),
        finished=jnp.broadcast_to(~task.valid[:, None], rows),
        cache=cache,
    )


def unfinished(state: RowState, plan: Plan) -> jax.Array:
    """Whether any row goes on."""
    return ~state.finished.all() & (state.length < plan.capacity)


def extend(state: RowState, logits: jax.Array, keys: jax.Array | None, task: Task, plan: Plan) -> RowState:
    """Append to each row that is not finished what is chosen from its logits [B, K, V]."""
    scores = task.bend(logits, state.tokens, state.length, plan)
    chosen = choose(scores, state.length, keys)
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(scores), chosen[..., None], axis=-1)[..., 0]
    return _write(state, chosen, log_probs, task, plan)


def choose(scores: jax.Array, length: jax.Array, keys: jax.Array | None) -> jax.Array:
    """The token that follows the first `length` of each row, [B, K] int32.

    It depends on scores, length and key alone: who draws twice at a length draws with the same noise.

    Args:
        scores: [B, K, V], after all rules.
        length: scalar int32.
        keys: [B, K] of the rows, to draw from softmax(scores); None takes the likeliest.
    """
    chosen = scores.argmax(axis=-1) if keys is None else _draw(keys, length, scores)
    return chosen.astype(jnp.int32)


def as_replies(state: RowState) -> Replies:
    """The rows when all is done."""
    return Replies(state.tokens, state.lengths, state.log_probs.sum(axis=-1), state.log_probs)


def _write(state: RowState, chosen: jax.Array, log_probs: jax.Array, task: Task, plan: Plan) -> RowState:
    """Append the chosen tokens [B, K] to the rows that are not finished."""
    running = ~state.finished
    tokens = state.tokens.at[:, :, state.length].set(jnp.where(running, chosen, task.settings.pad_token[:, None]))
    return dataclasses.replace(
        state,
        length=state.length + 1,
        tokens=tokens,
        log_probs=state.log_probs.at[:, :, state.length].set(jnp.where(running, log_probs, 0)),
        lengths=state.lengths + running.astype(jnp.int32),
        finished=state.finished | task.ended(tokens, state.length + 1, plan),
    )


@partial(jax.jit, static_argnums=1)
def prompt_keys(key: jax.Array, B: int) -> jax.Array:
    """[B] keys, one per prompt: those that are given, or streams 0 to B - 1 of a single key."""
    # A key of the old kind, an array [2] of integers, is a single one.
    key = key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
    return key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(B))


def row_keys(key: jax.Array, B: int, K: int) -> jax.Array:
    """[B, K] keys, each the same however large B and K are."""
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(prompt_keys(key, B), jnp.arange(K))


def _draw(keys: jax.Array, length: jax.Array, scores: jax.Array) -> jax.Array:
    """One token per row from softmax(scores), [B, K]."""

    def draw(key: jax.Array, row: jax.Array) -> jax.Array:
        return jax.random.categorical(jax.random.fold_in(key, length), row)

    return jax.vmap(jax.vmap(draw))(keys, scores)
