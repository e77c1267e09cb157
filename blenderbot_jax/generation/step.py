"""A step of decoding as the rules see it, and how they find and bar tokens in it."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Step:
    """What the rules, the caller's own among them, may look at."""

    tokens: jax.Array
    """[B, K, C] int32: the replies so far, decoder prompt first; meaningless from `length` on."""
    length: jax.Array
    """Scalar int32: tokens so far, decoder prompt included."""
    source_ids: jax.Array | None
    """[B, S] int32: the prompts, or the `context_ids` given in their place, filled up to a bucket's width; None where
    only the prompts' encoding is known."""
    prompt_length: jax.Array | int = 1
    """[1] int32, or a number: tokens the decoder was given; `length - prompt_length` are generated."""


def ends_with(tokens: jax.Array, length: jax.Array, sequences: jax.Array) -> jax.Array:
    """Which replies end in one of some sequences.

    Args:
        tokens: [B, K, C], of which the first `length` count.
        length: scalar.
        sequences: [1 or B, W, n], right-aligned, -1 where a sequence is shorter; one that is all -1 ends nothing.

    Returns:
        [B, K] bool. A decoder prompt is part of its reply.

    Example:
        >>> replies = jnp.array([[[1, 7, 9, 0]]])
        >>> ends_with(replies, jnp.array(3), jnp.array([[[-1, 8], [7, 9]]])).tolist()
        [[True]]
    """
    return (tails_match(tokens, length, sequences) & (sequences[:, None, :, -1] >= 0)).any(axis=-1)


def tails_match(tokens: jax.Array, length: jax.Array, patterns: jax.Array) -> jax.Array:
    """Whether the last n tokens of each reply are a pattern [1 or B, W, n], in which -1 matches anything: [B, K, W]."""
    n = patterns.shape[-1]
    recent = last(tokens, length, n)[:, :, None, :]
    # Places before a reply's first token match nothing.
    exists = jnp.arange(n) >= n - length
    patterns = patterns[:, None]
    return ((patterns < 0) | (exists & (patterns == recent))).all(axis=-1)


def last(tokens: jax.Array, length: jax.Array, count: int) -> jax.Array:
    """The last `count` tokens [B, K, count]; places before the first hold whatever stands at the front."""
    places = length - count + jnp.arange(count)
    return jnp.take(tokens, jnp.maximum(places, 0), axis=-1)


def bar(scores: jax.Array, tokens: jax.Array, where: jax.Array) -> jax.Array:
    """Set the scores of `tokens` [B, K, M] to -inf where `where` [B, K, M] holds."""
    B, K, V = scores.shape
    # An index past the end is dropped, so unwanted tokens bar nothing.
    places = jnp.where(where, tokens, V)
    return scores.at[jnp.arange(B)[:, None, None], jnp.arange(K)[:, None], places].set(-jnp.inf, mode="drop")


def mark(shape: tuple[int, ...], tokens: jax.Array, where: jax.Array | bool) -> jax.Array:
    """A bool array [B, K, V], True at `tokens` [B, K, M] where `where` holds."""
    B, K, V = shape
    # An index past the end is dropped, so unwanted tokens mark nothing.
    places = jnp.where(where, tokens, V)
    return (
        jnp.zeros(shape, bool).at[jnp.arange(B)[:, None, None], jnp.arange(K)[:, None], places].set(True, mode="drop")
    )


def among(ids: jax.Array, V: int) -> jax.Array:
    """A bool array [1 or B, 1, V], True at some ids [1 or B, E]; for a few of them, since it compares all with all."""
    return (jnp.arange(V) == ids[..., None]).any(axis=1)[:, None]
