"""The decoder's memory of one batch: preallocated, fixed in shape, passed in and handed back.

Cross-attention keys and values are stored once per prompt, never per beam. Self-attention comes in two forms behind
one interface:

* gathering: every beam owns its history, and `reorder` copies the parent's slots;
* ancestry table: slots are append-only, and `reorder` copies only a small table that says, for each place of a beam's
  history, which beam's slot holds it. Every beam then attends to all slots of its prompt under a mask.

The two agree up to rounding; the table avoids moving the cache at each step of a beam search.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from blenderbot_jax.masks import ancestry_mask, cache_mask, positions_from_mask


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecoderCache:
    """What a decoder keeps between steps; one array per layer in each tuple."""

    self_keys: tuple[jax.Array, ...]
    """L arrays [B, N, K, C, H]: keys of the tokens written so far; slots from `length` on are not yet meaningful."""
    self_values: tuple[jax.Array, ...]
    """L arrays [B, N, K, C, H]."""
    cross_keys: tuple[jax.Array, ...]
    """L arrays [B, N, S, H], shared by the beams of a prompt; none for a decoder that stands alone."""
    cross_values: tuple[jax.Array, ...]
    """L arrays [B, N, S, H]."""
    source_mask: jax.Array
    """[B, S] bool, True where a source token is kept; S is 0 for a decoder that stands alone."""
    length: jax.Array
    """Scalar int32: slots written."""
    ancestry: jax.Array | None
    """[B, K, C] integers, the beam whose slot holds each place of a beam's history; None in the gathering form."""
    target_mask: jax.Array | None = None
    """[B, C] bool, False at the pads of a prompt; None where there are none. A pad takes a slot but no position."""

    @property
    def beams(self) -> int:
        """K, the rows decoded per prompt."""
        return self.self_keys[0].shape[2]

    @property
    def capacity(self) -> int:
        """C, the tokens the cache has room for."""
        return self.self_keys[0].shape[3]


@dataclass(frozen=True)
class CacheShape:
    """What a cache takes from the architecture."""

    layers: int
    heads: int
    head_dim: int
    dtype: Any


def init_cache(
    cross_keys: tuple[jax.Array, ...],
    cross_values: tuple[jax.Array, ...],
    source_mask: jax.Array,
    *,
    shape: CacheShape,
    beams: int,
    capacity: int,
    ancestry: bool,
    target_mask: jax.Array | None = None,
) -> DecoderCache:
    """An empty cache around the cross-attention keys and values of a batch.

    Args:
        cross_keys, cross_values: L arrays [B, N, S, H], or none.
        source_mask: [B, S] bool.
        shape: of the decoder.
        beams: K.
        capacity: C, the most tokens that will be written.
        ancestry: keep an ancestry table instead of gathering.
        target_mask: [B, C] bool, False at the pads of a prompt that will be written; None if it has none.
    """
    B = source_mask.shape[0]
    slots = jnp.zeros((B, shape.heads, beams, capacity, shape.head_dim), shape.dtype)
    empty = (slots,) * shape.layers
    table = _own_slots(B, beams, capacity) if ancestry else None
    return DecoderCache(empty, empty, cross_keys, cross_values, source_mask, jnp.int32(0), table, target_mask)


def expand_beams(cache: DecoderCache, beams: int, *, ancestry: bool) -> DecoderCache:
    """Let `beams` beams go on from one row per prompt, each with its own copy of what was written so far.

    Args:
        cache: with K = 1.
        beams: the new K.
        ancestry: keep an ancestry table instead of gathering.
    """

    def copies(slots: jax.Array) -> jax.Array:
        return jnp.repeat(slots, beams, axis=2)

    return dataclasses.replace(
        cache,
        self_keys=tuple(map(copies, cache.self_keys)),
        self_values=tuple(map(copies, cache.self_values)),
        ancestry=_own_slots(cache.source_mask.shape[0], beams, cache.capacity) if ancestry else None,
    )


def over_caches(change: Callable[[DecoderCache], DecoderCache], cache: Any) -> Any:
    """Apply a change to a cache, or to every cache of an ensemble's."""
    return jax.tree.map(change, cache, is_leaf=lambda leaf: isinstance(leaf, DecoderCache))


def rewind(cache: DecoderCache, length: jax.Array) -> DecoderCache:
    """Forget what was written from `length` on: the next token is written there."""
    return dataclasses.replace(cache, length=length)


def _own_slots(B: int, beams: int, capacity: int) -> jax.Array:
    own = jnp.arange(beams, dtype=jnp.int8 if beams <= 127 else jnp.int32)
    return jnp.broadcast_to(own[None, :, None], (B, beams, capacity))


def positions(cache: DecoderCache, T: int) -> jax.Array:
    """The positions of the next T tokens: [T], or [B, 1, T] where the prompts hold pads."""
    if cache.target_mask is None:
        return cache.length + jnp.arange(T)
    places = jax.lax.dynamic_slice_in_dim(positions_from_mask(cache.target_mask), cache.length, T, axis=1)
    return places[:, None]


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
    """The mask for T new tokens per beam: [T, C], or [B, 1, 1, T, C] where the prompts hold pads.

    With an ancestry table it is [B, 1, K * T, K * C], over the slots of all beams.
    """
    visible = cache_mask(cache.length, T, cache.capacity)
    if cache.target_mask is not None:
        visible = visible & cache.target_mask[:, None, None, None, :]
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
