"""Putting the few entries of a short row in order, and taking some of them."""

import jax
import jax.numpy as jnp

# The most entries of a long row that XLA's kernel for GPUs finds (`topk_specializer.cc`); for more it sorts the row.
TOP_K_KERNEL = 16


def best_first(*keys: jax.Array, count: int) -> jax.Array:
    """The places of each row's greatest entries, by their first key, then by their second, and so on.

    Of entries equal in every key the earlier comes first. Every entry of a row is compared with every other, which
    takes a GPU two kernels where a sort takes several; it is meant for rows of some hundred entries.

    Args:
        keys: [..., n] each, in shapes that broadcast to one.
        count: how many places, at most n.

    Returns:
        [..., count] int32, the greatest entry's first.

    Example:
        >>> best_first(jnp.array([2.0, 7.0, 2.0, 7.0]), count=3).tolist()
        [1, 3, 0]
    """
    n = keys[0].shape[-1]
    if count > n:
        raise ValueError(f"a row of {n} entries has no first {count}")
    places = jnp.arange(n, dtype=jnp.int32)
    ahead = places < places[:, None]
    for key in reversed(keys):
        one, other = key[..., :, None], key[..., None, :]
        ahead = (other > one) | ((other == one) & ahead)
    # Counted in float32, which XLA fuses with the comparison; integers it does not.
    ranks = jnp.where(ahead, 1.0, 0.0).sum(axis=-1)
    here = ranks[..., None, :] == jnp.arange(count, dtype=jnp.float32)[:, None]
    # Each rank is there once, unless there are NaNs, which have none; the result is a place with them too.
    return jnp.where(here, places, 0).max(axis=-1)


def pick(values: jax.Array, places: jax.Array) -> jax.Array:
    """The entries of [B, n, ...] at places [B, m], which are known to exist: [B, m, ...]."""
    places = places.reshape(places.shape + (1,) * (values.ndim - 2))
    return jnp.take_along_axis(values, places, axis=1, mode="promise_in_bounds")
