"""Attention itself, between the projections: weights over keys, and what queries gather from a cache.

All sums and the softmax are in float32. Shapes: T queries, S keys, H head width; S' the slots of a segment.
"""

from functools import partial

import jax
import jax.numpy as jnp

from blenderbot_jax.cache import Segments
from blenderbot_jax.kernels import DType, precision_for

# Up to these, elementwise attention costs a GPU less than the kernels that matrix products would add.
_FEW_PRODUCTS, _FEW_SLOTS = 2**22, 128


def attention_weights(q: jax.Array, k: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax of scaled products in float32, [..., T, S]; masked keys get zero unless a row has no other."""
    precision = precision_for(q.dtype)
    scores = jnp.einsum("...th,...sh->...ts", q, k, precision=precision, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5
    return jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min), axis=-1)


def gather_values(q: jax.Array, keys: Segments, values: Segments, mask: jax.Array) -> jax.Array:
    """What queries [..., T, H] gather from a cache: segments of keys [..., H, S'] and of values [..., S', H].

    The same as `attention_weights` times values, in the form that suits the platform; computed in the cache's dtype.
    """
    slots = sum(segment.shape[-2] for segment in values)
    few = len(keys) == 1 and q.shape[-2] > 1 and slots <= _FEW_SLOTS and q.size * slots <= _FEW_PRODUCTS
    on_gpu = gather_in_one_kernel if few else gather_by_softmax
    return jax.lax.platform_dependent(q, keys, values, mask, cuda=on_gpu, default=gather_then_divide)


def gather_then_divide(q: jax.Array, keys: Segments, values: Segments, mask: jax.Array) -> jax.Array:
    """`gather_values` in an order that is cheap on CPUs: the sum divides the result, not the weights."""
    scores = _cache_scores(q, keys, mask)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1, keepdims=True)
    return (_weighted(weights.astype(keys[0].dtype), values, q.dtype) / total).astype(q.dtype)


def gather_by_softmax(q: jax.Array, keys: Segments, values: Segments, mask: jax.Array) -> jax.Array:
    """`gather_values` with a softmax between the products, which XLA makes one kernel of on GPUs."""
    weights = jax.nn.softmax(_cache_scores(q, keys, mask), axis=-1)
    return _weighted(weights.astype(keys[0].dtype), values, q.dtype).astype(q.dtype)


def gather_in_one_kernel(q: jax.Array, keys: Segments, values: Segments, mask: jax.Array) -> jax.Array:
    """`gather_values` as elementwise products and sums, for few and short queries and a single segment.

    XLA makes one kernel of it on a GPU, with what comes before; matrix products take three or four. Keys and values are
    read again for every query.
    """
    queries, wide_keys, wide_values = (x.astype(jnp.float32) for x in (q, jnp.swapaxes(keys[0], -1, -2), values[0]))
    scores = (queries[..., :, None, :] * wide_keys[..., None, :, :]).sum(axis=-1) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min), axis=-1)
    weights = weights.astype(keys[0].dtype).astype(jnp.float32)
    return (weights[..., None] * wide_values[..., None, :, :]).sum(axis=-2).astype(q.dtype)


def _cache_scores(q: jax.Array, keys: Segments, mask: jax.Array) -> jax.Array:
    """Scaled products in float32 over all segments, [..., T, S]; masked ones have the least finite number."""
    dot = partial(jnp.einsum, precision=precision_for(q.dtype), preferred_element_type=jnp.float32)
    scores = [dot("...th,...hs->...ts", q.astype(segment.dtype), segment) for segment in keys]
    joined = scores[0] if len(scores) == 1 else jnp.concatenate(scores, axis=-1)
    return jnp.where(mask, joined * q.shape[-1] ** -0.5, jnp.finfo(jnp.float32).min)


def _weighted(weights: jax.Array, values: Segments, dtype: DType) -> jax.Array:
    """Weights [..., T, S] times values, in float32."""
    dot = partial(jnp.einsum, precision=precision_for(dtype), preferred_element_type=jnp.float32)
    ends = [sum(segment.shape[-2] for segment in values[: i + 1]) for i in range(len(values))]
    parts = jnp.split(weights, ends[:-1], axis=-1)
    gathered = [dot("...ts,...sh->...th", part, segment) for part, segment in zip(parts, values, strict=True)]
    return sum(gathered[1:], gathered[0])
