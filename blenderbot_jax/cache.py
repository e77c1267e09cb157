"""The decoder's memory of one batch: preallocated, fixed in shape, passed in and handed back.

Cross-attention keys and values are stored once per prompt, never per beam. Self-attention comes in two forms behind
one interface:

* own slots: every beam owns its history, and `reorder` copies the parent's;
* shared slots with an ancestry table: slots are append-only, and `reorder` copies only a small table that says, for
  each place of a beam's history, which beam's slot holds it. Every beam then attends to all slots of its prompt under a
  mask.

The two agree up to rounding; the table avoids moving the cache at each step of a beam search.

Keys lie with the slots last, values with the slots first: as the two products of attention read them, so that neither
copies. Slots are ordered by time, then by beam: the slots of a step are neighbours, and a step is one write in place.
Slots come in segments. A cache may start small and `grow`, and early steps then attend to few slots.

A cache for native kernels has both with the slots first, in one segment: they read a query's own slots and no others.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from blenderbot_jax.masks import ancestry_mask, cache_mask, padding_mask, positions_from_mask

Segments = tuple[jax.Array, ...]


class Owners(NamedTuple):
    """Who sees what, as native kernels take it."""

    table: jax.Array
    """[G, J, C] int32: at each place of beam j's history, the beam whose slot holds it; below 0: hidden."""
    length: jax.Array
    """Scalar int32; a query of time t sees the first `length + t + 1` places."""


# What the queries of a step see: a mask, or the slots that are theirs.
Sight = jax.Array | Owners


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecoderCache:
    """What a decoder keeps between steps; one entry per layer in each tuple.

    G histories share J writers each: under an ancestry table G is B and J is K, otherwise G is B * K and J is 1.
    """

    self_keys: tuple[Segments, ...]
    """L tuples of segments [G, N, H, C' * J], the C' of which add up to C: keys of what was written so far.

    [G, N, C' * J, H] for native kernels. What lies from `length` on is not yet meaningful; only the last segment is
    written to.
    """
    self_values: tuple[Segments, ...]
    """L tuples of segments [G, N, C' * J, H]."""
    cross_keys: tuple[jax.Array, ...]
    """L arrays [B, N, H, S], shared by the beams of a prompt; none for a decoder that stands alone.

    [B, N, S, H] for native kernels.
    """
    cross_values: tuple[jax.Array, ...]
    """L arrays [B, N, S, H]."""
    source_mask: jax.Array
    """[B, S] bool, True where a source token is kept; S is 0 for a decoder that stands alone."""
    length: jax.Array
    """Scalar int32: tokens written."""
    ancestry: jax.Array | None
    """[B, K, C] integers, whose slot holds each place of a beam's history; None where beams own their slots."""
    target_mask: jax.Array | None = None
    """[B, C] bool, False at the pads of a prompt; None where there are none. A pad takes a slot but no position."""
    beams: int = field(default=1, metadata={"static": True})
    """K, the rows decoded per prompt."""
    native: bool = field(default=False, metadata={"static": True})
    """Whether it is laid out for native kernels."""

    @property
    def writers(self) -> int:
        """J, the beams that share a history's slots."""
        return 1 if self.ancestry is None else self.beams

    @property
    def capacity(self) -> int:
        """C, the tokens the cache has room for."""
        return sum(values.shape[2] for values in self.self_values[0]) // self.writers


@dataclass(frozen=True)
class CacheShape:
    """What a cache takes from the architecture."""

    layers: int
    heads: int
    head_dim: int
    dtype: Any

    def segment(self, histories: int, slots: int, native: bool) -> tuple[jax.Array, jax.Array]:
        """Empty keys [G, N, H, slots], or as the values for native kernels, and values [G, N, slots, H]."""
        values = jnp.zeros((histories, self.heads, slots, self.head_dim), self.dtype)
        return values if native else values.swapaxes(2, 3), values


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
    native: bool = False,
) -> DecoderCache:
    """An empty cache around the cross-attention keys and values of a batch.

    Args:
        cross_keys: L arrays [B, N, S, H], or none.
        cross_values: likewise.
        source_mask: [B, S] bool.
        shape: of the decoder.
        beams: K.
        capacity: C, the most tokens that will be written.
        ancestry: keep an ancestry table instead of a history for each beam.
        target_mask: [B, C] bool, False at the pads of a prompt that will be written; None if it has none.
        native: lay it out for native kernels.
    """
    B = source_mask.shape[0]
    table = _own_slots(B, beams, capacity) if ancestry else None
    histories, writers = (B, beams) if ancestry else (B * beams, 1)
    keys, values = shape.segment(histories, capacity * writers, native)
    return DecoderCache(
        self_keys=((keys,),) * shape.layers,
        self_values=((values,),) * shape.layers,
        cross_keys=cross_keys if native else tuple(keys.swapaxes(2, 3) for keys in cross_keys),
        cross_values=cross_values,
        source_mask=source_mask,
        length=jnp.int32(0),
        ancestry=table,
        target_mask=target_mask,
        beams=beams,
        native=native,
    )


def grow(cache: DecoderCache, capacity: int) -> DecoderCache:
    """Make room for `capacity` tokens by one more segment; what is written from now on goes there.

    Args:
        cache: full, so that the next token is the new segment's first; not one for native kernels.
        capacity: the new C.
    """
    more = capacity - cache.capacity
    if more <= 0:
        return cache
    keys = tuple((*segments, _longer(segments[-1], 3, more * cache.writers)) for segments in cache.self_keys)
    values = tuple((*segments, _longer(segments[-1], 2, more * cache.writers)) for segments in cache.self_values)
    table, mask = cache.ancestry, cache.target_mask
    if table is not None:
        table = jnp.concatenate([table, _own_slots(table.shape[0], cache.beams, more)], axis=2)
    if mask is not None:
        mask = jnp.pad(mask, ((0, 0), (0, more)), constant_values=True)
    return dataclasses.replace(cache, self_keys=keys, self_values=values, ancestry=table, target_mask=mask)


def expand_beams(cache: DecoderCache, beams: int, *, ancestry: bool) -> DecoderCache:
    """Let `beams` beams go on from one row per prompt, each with its own copy of what was written so far.

    Args:
        cache: with K = 1 and a single segment.
        beams: the new K.
        ancestry: keep an ancestry table instead of a history for each beam.
    """

    def copies(slots: jax.Array, axis: int) -> tuple[jax.Array]:
        return (jnp.repeat(slots, beams, axis=axis if ancestry else 0),)

    return dataclasses.replace(
        cache,
        self_keys=tuple(copies(keys, 2 if cache.native else 3) for (keys,) in cache.self_keys),
        self_values=tuple(copies(values, 2) for (values,) in cache.self_values),
        ancestry=_own_slots(cache.source_mask.shape[0], beams, cache.capacity) if ancestry else None,
        beams=beams,
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


def _longer(slots: jax.Array, axis: int, size: int) -> jax.Array:
    """An empty segment like `slots`, of another size."""
    return jnp.zeros((*slots.shape[:axis], size, *slots.shape[axis + 1 :]), slots.dtype)


def positions(cache: DecoderCache, T: int) -> jax.Array:
    """The positions of the next T tokens: [T], or [B, 1, T] where the prompts hold pads."""
    if cache.target_mask is None:
        return cache.length + jnp.arange(T)
    places = jax.lax.dynamic_slice_in_dim(positions_from_mask(cache.target_mask), cache.length, T, axis=1)
    return places[:, None]


def by_history(x: jax.Array, histories: int) -> jax.Array:
    """What belongs to each beam [B, N, K, T, H], by history: [G, N, T * J, H], in the order of slots."""
    B, N, K, T, H = x.shape
    if histories == B:
        return x.swapaxes(2, 3).reshape(B, N, T * K, H)
    return jnp.moveaxis(x, 2, 1).reshape(B * K, N, T, H)


def by_beam(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `by_history`: [G, N, T * J, H] to `shape`, [B, N, K, T, H]."""
    B, N, K, T, H = shape
    if x.shape[0] == B:
        return x.reshape(B, N, T, K, H).swapaxes(2, 3)
    return jnp.moveaxis(x.reshape(B, K, N, T, H), 1, 2)


def append(
    keys: Segments, values: Segments, new: tuple[jax.Array, jax.Array], length: jax.Array
) -> tuple[Segments, Segments]:
    """Write T new tokens at `length`, which lies in the last segment.

    Args:
        keys: segments [G, N, H, C' * J].
        values: segments [G, N, C' * J, H].
        new: keys and values [B, N, K, T, H].
        length: scalar int32, tokens written before.
    """
    G = keys[-1].shape[0]
    B, _, K, _, _ = new[0].shape
    writers = K if G == B else 1
    before = sum(segment.shape[2] for segment in values[:-1])
    new_keys, new_values = (by_history(one, G).astype(keys[-1].dtype) for one in new)
    place, zero = length * writers - before, jnp.zeros_like(length)
    last_keys = jax.lax.dynamic_update_slice(keys[-1], new_keys.swapaxes(2, 3), (zero, zero, zero, place))
    last_values = jax.lax.dynamic_update_slice(values[-1], new_values, (zero, zero, place, zero))
    # The barrier keeps XLA from writing twice, once for attention and once, after copying the cache, for the next step.
    last_keys, last_values = jax.lax.optimization_barrier((last_keys, last_values))
    return (*keys[:-1], last_keys), (*values[:-1], last_values)


def self_attention_mask(cache: DecoderCache, T: int) -> jax.Array:
    """The mask for T new tokens per beam: [G or 1, 1, T * J, C * J], queries and slots by time, then by beam."""
    visible = cache_mask(cache.length, T, cache.capacity)[None]
    if cache.target_mask is not None:
        visible = visible & cache.target_mask[:, None, :]
    if cache.ancestry is not None:
        return ancestry_mask(cache.ancestry, visible)
    if cache.target_mask is not None:
        visible = jnp.repeat(visible, cache.beams, axis=0)
    return visible[:, None]


def sight_of_slots(cache: DecoderCache, T: int) -> Sight:
    """What T new tokens per beam see of what was written, in the form that the cache asks for."""
    if not cache.native:
        return self_attention_mask(cache, T)
    B, C = cache.source_mask.shape[0], cache.capacity
    table = jnp.zeros((B, cache.beams, C), jnp.int32) if cache.ancestry is None else cache.ancestry.astype(jnp.int32)
    if cache.target_mask is not None:
        table = jnp.where(cache.target_mask[:, None, :], table, -1)
    return Owners(table.reshape(-1, cache.writers, C), cache.length)


def sight_of_source(cache: DecoderCache) -> Sight:
    """What all queries see of their prompt, likewise."""
    if not cache.native:
        return padding_mask(cache.source_mask)
    table = jnp.where(cache.source_mask, 0, -1).astype(jnp.int32)
    return Owners(table[:, None], jnp.int32(cache.source_mask.shape[1]))


def reorder(cache: DecoderCache, parents: jax.Array) -> DecoderCache:
    """Let beam k continue the history of beam `parents[:, k]`.

    Args:
        cache: the cache after a step.
        parents: [B, K] integers in 0 .. K - 1.

    Returns:
        The cache in which row k holds what row `parents[:, k]` held. Beam k writes on into its own slot.
    """
    if cache.ancestry is None:
        rows = (jnp.arange(len(parents))[:, None] * cache.beams + parents).reshape(-1)
        moved = jax.tree.map(lambda slots: slots[rows], (cache.self_keys, cache.self_values))
        return dataclasses.replace(cache, self_keys=moved[0], self_values=moved[1])
    inherited = jnp.take_along_axis(cache.ancestry, parents[:, :, None], axis=1)
    own = jnp.arange(cache.beams, dtype=inherited.dtype)[:, None]
    written = jnp.arange(cache.capacity) < cache.length
    return dataclasses.replace(cache, ancestry=jnp.where(written, inherited, own))
