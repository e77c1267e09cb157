"""Kernels of linear layers: plain arrays, and forms that a backend reads faster.

A form is a registered dataclass with `__rmatmul__`, so `x @ kernel` is all a layer needs to know. Forms are made from
plain kernels [in, out] by `prepare`, for decoding alone, and by `quantize`, which checkpoints store too; training knows
plain arrays alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blenderbot_jax.checks import concrete

DType = Any
# The columns that XLA's products on x86 take at a time: a block of that width is read from one place in memory.
BLOCK = 64


def precision_for(dtype: DType) -> jax.lax.Precision | None:
    """Full precision for float32, which GPUs and TPUs would otherwise cut short; the default for half precision."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def matmul(x: jax.Array, kernel: Any, accumulate: DType = None) -> jax.Array:
    """`x @ kernel`; a kernel that is not an array (packed, quantised, adapted) brings its own `__rmatmul__`.

    `accumulate` is the dtype of the sums and of the result, that of `x` if None.
    """
    if not hasattr(kernel, "astype"):
        product = kernel.__rmatmul__(x)
        return product if accumulate is None else product.astype(accumulate)
    product = partial(jnp.matmul, precision=precision_for(x.dtype), preferred_element_type=accumulate)
    kernel = kernel.astype(x.dtype)
    if math.prod(x.shape[:-1]) == 1 and x.dtype == jnp.bfloat16:
        return jax.lax.platform_dependent(x, kernel, cpu=partial(_with_second_row, product), default=product)
    return product(x, kernel)


def _with_second_row(product: Callable[[jax.Array, Any], jax.Array], x: jax.Array, kernel: Any) -> jax.Array:
    """The product of a single row, which on a CPU falls into a scalar loop in short types, with a row of zeros."""
    rows = jnp.pad(x.reshape(1, -1), ((0, 1), (0, 0)))
    return product(rows, kernel)[0].reshape(*x.shape[:-1], -1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlockedKernel:
    """A kernel cut into blocks of columns, each contiguous in memory: for products of a few rows on a CPU.

    Such a product spends its time waiting for weights. Row by row, 64 columns of a [in, out] kernel come from as many
    memory pages as there are rows; a block comes from a few.
    """

    blocks: jax.Array
    """[out / 64 rounded up, in, 64]; columns past `features` are zero."""
    features: int = field(metadata={"static": True})
    """Columns of the kernel, out."""

    @classmethod
    def pack(cls, kernel: jax.Array) -> "BlockedKernel":
        """From a plain kernel [in, out]."""
        values = concrete(kernel)
        # numpy compiles nothing; a traced kernel needs jax.
        xp, given = (jnp, kernel) if values is None else (np, values)
        rows, features = kernel.shape
        padded = xp.pad(given, ((0, 0), (0, -features % BLOCK)))
        blocks = padded.reshape(rows, -1, BLOCK).swapaxes(0, 1)
        return cls(blocks if xp is jnp else jax.device_put(np.ascontiguousarray(blocks)), features)

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        rows = x.reshape(-1, x.shape[-1])
        # With a second row of zeros a single one gets the faster of two products.
        padded = jnp.pad(rows, ((0, int(len(rows) == 1)), (0, 0)))
        # Behind the barrier the rows are copied; without it XLA computes them anew for every block.
        every = jnp.broadcast_to(jax.lax.optimization_barrier(padded), (len(self.blocks), *padded.shape))
        blocks = self.blocks.astype(x.dtype)
        product = jnp.einsum("pmi,pio->pmo", every, blocks, precision=precision_for(x.dtype))
        joined = product.swapaxes(0, 1).reshape(len(padded), -1)[: len(rows), : self.features]
        return joined.reshape(*x.shape[:-1], self.features)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8Kernel:
    """A kernel in 8 bits: symmetric, one scale per output channel.

    On a CPU the rows of `x` are quantised too, each by its own scale, and the product is summed in integers. Elsewhere
    the values are widened inside the product, which then reads a quarter of the bytes and rounds nothing else.
    """

    values: jax.Array
    """[out, in] int8: transposed, as integer products read it."""
    scales: jax.Array
    """[out] float32."""

    @classmethod
    def pack(cls, kernel: jax.Array) -> "Int8Kernel":
        """From a plain kernel [in, out]."""
        transposed = kernel.astype(jnp.float32).T
        scales = jnp.maximum(jnp.abs(transposed).max(axis=1), _TINY) / 127
        return cls(jnp.round(transposed / scales[:, None]).astype(jnp.int8), scales)

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        product = jax.lax.platform_dependent(x, self.values, self.scales, cpu=_quantised_rows, default=_widened)
        return product.astype(x.dtype)


_TINY = 1e-30


def _widened(x: jax.Array, values: jax.Array, scales: jax.Array) -> jax.Array:
    product = jnp.einsum("...i,oi->...o", x, values.astype(x.dtype), preferred_element_type=jnp.float32)
    return product * scales


def _quantised_rows(x: jax.Array, values: jax.Array, scales: jax.Array) -> jax.Array:
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    row_scales = jnp.maximum(jnp.abs(rows).max(axis=1, keepdims=True), _TINY) / 127
    quantised = jnp.round(rows / row_scales).astype(jnp.int8)
    # A product with a single row falls into a scalar loop, twenty times slower than with two.
    padded = jnp.pad(quantised, ((0, int(len(rows) == 1)), (0, 0)))
    sums = jax.lax.dot_general(padded, values, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
    product = sums[: len(rows)].astype(jnp.float32) * (row_scales * scales)
    return product.reshape(*x.shape[:-1], len(values))
