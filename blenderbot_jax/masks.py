"""Who may look at whom: padding, causal and cache masks, and the positions a mask implies.

A mask is boolean, True where a query may look. Masks are applied by `where` with a finite fill, so a row that may look
nowhere stays finite.
"""

import jax
import jax.numpy as jnp


def padding_mask(attention_mask: jax.Array) -> jax.Array:
    """Let every query look at the kept keys.

    Args:
        attention_mask: [B, S] bool, True where a token is kept.

    Returns:
        [B, 1, 1, S] bool, to broadcast over heads and queries.
    """
    return attention_mask[:, None, None, :]


def causal_mask(T: int) -> jax.Array:
    """Let each query look at itself and at what came before it.

    Returns:
        [1, 1, T, T] bool, lower triangular.
    """
    return jnp.tril(jnp.ones((T, T), bool))[None, None]


def positions_from_mask(attention_mask: jax.Array) -> jax.Array:
    """Number the kept tokens of each row from 0, wherever the padding stands.

    For right padding this is 0, 1, 2, ... as in transformers, which is wrong there for left padding. ParlAI counts as
    here (its encoder takes `cumsum(mask) - 1`).

    Args:
        attention_mask: [B, T] bool, True where a token is kept.

    Returns:
        [B, T] int32; a padded place repeats the position before it.
    """
    kept = attention_mask.astype(jnp.int32)
    return jnp.maximum(jnp.cumsum(kept, axis=-1) - 1, 0)


def cache_mask(length: jax.Array, T: int, capacity: int) -> jax.Array:
    """Let T new queries look at the cache slots written before them and at their own.

    Args:
        length: scalar int32, slots written before this call.
        T: new tokens, written to slots `length` to `length + T - 1`.
        capacity: slots in all, C.

    Returns:
        [T, C] bool.
    """
    return jnp.arange(capacity) <= length + jnp.arange(T)[:, None]


def ancestry_mask(ancestry: jax.Array, visible: jax.Array) -> jax.Array:
    """Let each beam look at the slots of the beams it descends from.

    Args:
        ancestry: [B, K, C] integers: at each place of beam k's history, the beam whose slot holds it.
        visible: [B or 1, T, C] bool, as from `cache_mask`.

    Returns:
        [B, 1, T * K, C * K] bool over the slots of all beams of a prompt; queries and slots by time, then by beam.
    """
    B, K, C = ancestry.shape
    T = visible.shape[-2]
    owned = ancestry[..., None] == jnp.arange(K, dtype=ancestry.dtype)
    return (owned[:, None] & visible[:, :, None, :, None]).reshape(B, 1, T * K, C * K)
