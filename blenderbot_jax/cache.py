"""The decoder's memory of one batch: preallocated, fixed in shape, passed in and handed back.

Cross-attention keys and values are stored once per prompt, never per beam. Self-attention comes in two forms behind
one interface:

* gathering: every beam owns its history, and `reorder` copies the parent's slots;
* ancestry table: slots are append-only, and `reorder` copies only a small table that says, for each place of a beam's
  history, which beam's slot holds it. Every beam then attends to all slots of its prompt under a mask.

The two agree up to rounding; the table avoids moving the cache at each step of a beam search.
"""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from blenderbot_jax.masks import ancestry_mask, cache_mask


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecoderCache:
    """What a decoder keeps between steps; one array per layer in each tuple."""

    self_keys: tuple[jax.Array, ...]
    """L arrays [B, N, K, C, H]: keys of the tokens written so far; slots from `length` on are not yet meaningful."""
    self_values: tuple[jax.Array, ...]
    """L arrays [B, N, K, C, H]."""
    cross_keys: tuple[jax.Array, ...]
    """L arrays [B, N, S, H], shared by the beams of a prompt."""
    cross_values: tuple[jax.Array, ...]
    """L arrays [B, N, S, H]."""
    source_mask: jax.Array
    """[B, S] bool, True where a source token is kept."""
    length: jax.Array
    """Scalar int32: tokens written, the position of the next one."""
    ancestry: jax.Array | None
    """[B, K, C] integers, the beam whose slot holds each place of a beam's history; None in the gathering form."""

    @property
    def beams(self) -> int:
        """K, the rows decoded per prompt."""
        return self.self_keys[0].shape[2]

    @property
    def capacity(self) -> int:
        """C, the tokens the cache has room for."""
        return self.self_keys[0].shape[3]


def init_cache(
    cross_keys: tuple[jax.Array, ...],
    cross_values: tuple[jax.Array, ...],
    source_mask: jax.Array,
    *,
    beams: int,
    capacity: int,
    ancestry: bool,
) -> DecoderCache:
    """An empty cache around the cross-attention keys and values of a batch.

    Args:
        cross_keys, cross_values: L arrays [B, N, S, H].
        source_mask: [B, S] bool.
        beams: K.
        capacity: C, the most tokens that will be written.
        ancestry: keep an ancestry table instead of gathering.
    """
    B, N, _, H = cross_keys[0].shape
    empty = tuple(jnp.zeros((B, N, beams, capacity, H), keys.dtype) for keys in cross_keys)
    table = None
    if ancestry:
        own = jnp.arange(beams, dtype=jnp.int8 if beams <= 127 else jnp.int32)
        table = jnp.broadcast_to(own[None, :, None], (B, beams, capacity))
    return DecoderCache(empty, empty, cross_keys, cross_values, source_mask, jnp.int32(0), table)


def append(slots: jax.Array, new: jax.Array, length: jax.Array) -> jax.Array:
    """Write T new tokens at `length`.

    Args:
        slots: [B, N, K, C, H].
        new: [B, N, K, T, H].
        length: scalar int32.
    """
    zero = jnp.zeros_like(length)
    return jax.lax.dynamic_update_slice(slots, new.astype(slots.dtype), (zero, zero, zero, length, zero))


def self_attention_mask(cache: DecoderCache, T: int) -> jax.Array:
    """The mask for T new tokens per beam: [T, C], or [B, 1, K * T, K * C] with an ancestry table."""
    visible = cache_mask(cache.length, T, cache.capacity)
    return visible if cache.ancestry is None else ancestry_mask(cache.ancestry, visible)


def reorder(cache: DecoderCache, parents: jax.Array) -> DecoderCache:
    """Let beam k continue the history of beam `parents[:, k]`.

    Args:
        cache: the cache after a step.
        parents: [B, K] integers in 0 .. K - 1.

    Returns:
        The cache in which row k holds what row `parents[:, k]` held. Beam k writes on into its own slot.
    """
    if cache.ancestry is None:
        gathered = parents[:, None, :, None, None]
        return dataclasses.replace(
            cache,
            self_keys=tuple(jnp.take_along_axis(keys, gathered, axis=2) for keys in cache.self_keys),
            self_values=tuple(jnp.take_along_axis(values, gathered, axis=2) for values in cache.self_values),
        )
    inherited = jnp.take_along_axis(cache.ancestry, parents[:, :, None], axis=1)
    own = jnp.arange(cache.beams, dtype=inherited.dtype)[:, None]
    written = jnp.arange(cache.capacity) < cache.length
    return dataclasses.replace(cache, ancestry=jnp.where(written, inherited, own))
