"""Kernels of linear layers: plain arrays, and forms that a backend reads faster.

A form is a registered dataclass with `__rmatmul__`, so `x @ kernel` is all a layer needs to know. Forms are made from
plain kernels [in, out] by `prepare`, for decoding alone, and by `quantize`, which checkpoints store too; the form that
a step of training multiplies has a module of its own, `dense`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blenderbot_jax import native
from blenderbot_jax.aligned import aligned_copy
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
        return kernel.__rmatmul__(x if accumulate is None else x.astype(accumulate))
    product = partial(jnp.matmul, precision=precision_for(x.dtype), preferred_element_type=accumulate)
    kernel = kernel.astype(x.dtype)
    if math.prod(x.shape[:-1]) == 1 and x.dtype == jnp.bfloat16:
        return jax.lax.platform_dependent(x, kernel, cpu=partial(_with_second_row, product), default=product)
    return product(x, kernel)


def matmul_each(x: jax.Array, kernels: Sequence[Any]) -> list[jax.Array]:
    """`x @ kernel` for several kernels; in one call where they are of one native form."""
    for form in (BlockedKernel, BlockedInt8Kernel):
        if all(isinstance(kernel, form) and kernel.native for kernel in kernels):
            return form.multiply(x, kernels)
    return [matmul(x, kernel) for kernel in kernels]


def _with_second_row(product: Callable[[jax.Array, Any], jax.Array], x: jax.Array, kernel: Any) -> jax.Array:
    """The product of a single row, which on a CPU falls into a scalar loop in short types, with a row of zeros."""
    rows = jnp.pad(x.reshape(1, -1), ((0, 1), (0, 0)))
    return product(rows, kernel)[0].reshape(*x.shape[:-1], -1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlockedKernel:
    """A kernel cut into blocks of columns, each contiguous in memory: for products of a few rows on a CPU.

    Such a product spends its time waiting for weights. Row by row, the columns of a [in, out] kernel come from as many
    memory pages as there are rows; a block comes from a few.
    """

    blocks: jax.Array
    """[out / W rounded up, in, W]; columns past `features` are zero. W is `BLOCK`, or `native.COLUMNS`."""
    features: int = field(metadata={"static": True})
    """Columns of the kernel, out."""
    native: bool = field(default=False, metadata={"static": True})
    """Whether `native.product` multiplies on CPUs, rather than XLA."""

    @classmethod
    def pack(cls, kernel: jax.Array, *, natively: bool = False) -> "BlockedKernel":
        """From a plain kernel [in, out]."""
        xp, given = _module_of(kernel)
        rows, features = kernel.shape
        width = native.COLUMNS if natively else BLOCK
        padded = _padded(xp, given, 1, width)
        blocks = _contiguous(xp, padded.reshape(rows, -1, width).swapaxes(0, 1))
        return cls(jax.device_put(blocks), features, natively)

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        return self.multiply(x, [self])[0]

    @classmethod
    def multiply(cls, x: jax.Array, kernels: Sequence["BlockedKernel"]) -> list[jax.Array]:
        """`x @ kernel` for each of some kernels, all of them native or none."""

        def by_xla(x: jax.Array, *blocks: jax.Array) -> list[jax.Array]:
            return [kernel._by_blocks(x, part) for kernel, part in zip(kernels, blocks, strict=True)]

        blocks, features = [kernel.blocks for kernel in kernels], [kernel.features for kernel in kernels]
        if not kernels[0].native:
            return by_xla(x, *blocks)
        ours = partial(native.products, features=features)
        return _cast_each(jax.lax.platform_dependent(x, *blocks, cpu=ours, default=by_xla), x.dtype)

    def _by_blocks(self, x: jax.Array, blocks: jax.Array) -> jax.Array:
        rows = x.reshape(-1, x.shape[-1])
        # With a second row of zeros a single one gets the faster of two products.
        padded = jnp.pad(rows, ((0, int(len(rows) == 1)), (0, 0)))
        # Behind the barrier the rows are copied; without it XLA computes them anew for every block.
        every = jnp.broadcast_to(jax.lax.optimization_barrier(padded), (len(blocks), *padded.shape))
        product = jnp.einsum(
            "pmi,pio->pmo",
            every,
            blocks.astype(x.dtype),
            precision=precision_for(x.dtype),
            preferred_element_type=jnp.float32,
        )
        joined = product.swapaxes(0, 1).reshape(len(padded), -1)[: len(rows), : self.features]
        return joined.reshape(*x.shape[:-1], self.features)


def _module_of(array: jax.Array) -> tuple[Any, Any]:
    """numpy and a concrete array, since numpy compiles nothing; or jax and a traced one."""
    values = concrete(array)
    return (jnp, array) if values is None else (np, values)


def _padded(xp: Any, array: Any, *multiples: int) -> Any:
    """With zeros up to the next multiple along each axis; the array itself where there is nothing to add."""
    added = [-size % multiple for size, multiple in zip(array.shape, multiples, strict=True)]
    return xp.pad(array, [(0, more) for more in added]) if any(added) else array


def _contiguous(xp: Any, array: Any) -> Any:
    """In one piece: traced arrays always are, and numpy's get one that JAX takes over."""
    return aligned_copy(array) if xp is np else array


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
        return cls.from_rows(kernel.T)

    @classmethod
    def from_rows(cls, rows: jax.Array) -> "Int8Kernel":
        """From the rows of a plain kernel's transpose [out, in]."""
        rows = rows.astype(jnp.float32)
        scales = jnp.maximum(jnp.abs(rows).max(axis=1), _TINY) / 127
        return cls(jnp.round(rows / scales[:, None]).astype(jnp.int8), scales)

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        product = jax.lax.platform_dependent(x, self.values, self.scales, cpu=_quantised_rows, default=_widened)
        return product.astype(x.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlockedInt8Kernel:
    """An `Int8Kernel` as `native.product_int8` reads it: blocks of columns, in each four inputs side by side."""

    blocks: jax.Array
    """[out / 32 rounded up, in / 4 rounded up, 32, 4] uint8, the values raised by 128; what only fills up is 128."""
    scales: jax.Array
    """[out] float32."""
    inner: int = field(metadata={"static": True})
    """Rows of the kernel, in."""

    @classmethod
    def pack(cls, kernel: Int8Kernel) -> "BlockedInt8Kernel":
        """From the form that `quantize` gives and checkpoints store."""
        xp, values = _module_of(kernel.values)
        inner = values.shape[1]
        # Four values are moved as one word; raising each by 128 turns its highest bit.
        words = _padded(xp, values, native.COLUMNS, _UNIT).view(xp.uint32)
        raised = words.reshape(-1, native.COLUMNS, words.shape[1]).swapaxes(1, 2) ^ xp.uint32(_RAISED * 0x01010101)
        blocks = _contiguous(xp, raised).view(xp.uint8).reshape(*raised.shape, _UNIT)
        return cls(jax.device_put(blocks), kernel.scales, inner)

    @property
    def native(self) -> bool:
        """It always is."""
        return True

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        return self.multiply(x, [self])[0]

    @classmethod
    def multiply(cls, x: jax.Array, kernels: Sequence["BlockedInt8Kernel"]) -> list[jax.Array]:
        """`x @ kernel` for each of some kernels."""

        def by_xla(x: jax.Array, *parts: jax.Array) -> list[jax.Array]:
            pairs = zip(kernels, parts[::2], parts[1::2], strict=True)
            return [(x @ kernel._unpacked(blocks, scales)).astype(jnp.float32) for kernel, blocks, scales in pairs]

        parts = [part for kernel in kernels for part in (kernel.blocks, kernel.scales)]
        return _cast_each(jax.lax.platform_dependent(x, *parts, cpu=native.products_int8, default=by_xla), x.dtype)

    def _unpacked(self, blocks: jax.Array, scales: jax.Array) -> Int8Kernel:
        values = blocks.swapaxes(1, 2).reshape(-1, _UNIT * blocks.shape[1]) ^ jnp.uint8(_RAISED)
        return Int8Kernel(jax.lax.bitcast_convert_type(values[: len(scales), : self.inner], jnp.int8), scales)


def _cast_each(arrays: Sequence[jax.Array], dtype: DType) -> list[jax.Array]:
    return [array.astype(dtype) for array in arrays]


def is_native(params: Any) -> bool:
    """Whether a tree, or one of a tuple of them, has kernels that `native` multiplies."""
    kinds = BlockedKernel, BlockedInt8Kernel
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, kinds))
    return any(isinstance(leaf, kinds) and leaf.native for leaf in leaves)


_TINY = 1e-30
# Inputs that one instruction multiplies and adds up, and by how much it wants one side raised.
_UNIT, _RAISED = 4, 128


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
