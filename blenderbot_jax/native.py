"""Products and attention for decoding on x86 processors with AVX-512, as functions of a program.

XLA's own are made for large matrices. Decoding multiplies a few rows by all weights, and attends to a few slots of a
long cache: `native/` has C++ for just that, built with the package where there is a compiler. All of it has a plain
form, to which the tests hold it; `prepare` decides who uses it.
"""

import ctypes
import importlib.util
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

COLUMNS = 32
"""Of a block of a kernel."""
WIDEST_HEAD = 128
"""The most numbers of a head that attention takes: eight registers."""
_FEW_SHORT_ROWS = 24
_LIBRARY = "_blenderbot_jax_native"
_FUNCTIONS = ("products", "products_int8", "dense_product", "attention", "append", "layer_norm")


@cache
def available() -> bool:
    """Whether the library was built, and runs on this machine's processor; it is loaded at the first call."""
    try:
        library = _load()
        if not library.blenderbot_jax_runs_here():
            return False
        for name in _FUNCTIONS:
            handler = jax.ffi.pycapsule(getattr(library, f"blenderbot_jax_{name}"))
            jax.ffi.register_ffi_target(_target(name), handler, platform="cpu")
    except Exception:  # not built, or for another machine, or for a jaxlib that this one does not understand
        return False
    return True


@cache
def _load() -> ctypes.CDLL:
    spec = importlib.util.find_spec(_LIBRARY)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(_LIBRARY)
    return ctypes.cdll.LoadLibrary(spec.origin)


def multiplies_short(rows: int) -> bool:
    """Whether `products` beat XLA's in bfloat16, for so many rows.

    They widen weights in registers. That is best where reading them takes the time, and for any number of rows on
    processors that have no product of bfloat16 numbers themselves.
    """
    return rows <= _FEW_SHORT_ROWS or not _load().blenderbot_jax_multiplies_bfloat16()


def attends(dtype: Any, width: int) -> bool:
    """Whether `attention` takes heads of this width over keys and values in this dtype."""
    return width <= WIDEST_HEAD and dtype in (jnp.float32, jnp.bfloat16)


def products(x: jax.Array, *kernels: jax.Array, features: Sequence[int]) -> list[jax.Array]:
    """Rows times each of some kernels in blocks of columns, in float32; one after the other, each with all threads.

    Args:
        x: [..., in].
        kernels: [out / 32 rounded up, in, 32], float32 or bfloat16.
        features: columns of each kernel, out.

    Returns:
        [..., out] float32 each.
    """
    results = [_float32(*x.shape[:-1], out) for out in features]
    room = _float32(*x.shape)
    return _call("products", [room, *results], x.astype(jnp.float32), *kernels)[1:]


def products_int8(x: jax.Array, *kernels: jax.Array) -> list[jax.Array]:
    """Rows, each rounded to 8 bits by its own scale, times each of some kernels in 8 bits; summed in integers.

    Args:
        x: [..., in].
        kernels: of each its blocks [out / 32 rounded up, in / 4 rounded up, 32, 4] uint8, which are its numbers raised
            by 128, and its scales [out] float32.

    Returns:
        [..., out] float32 each.
    """
    rows, (blocks, *_) = math.prod(x.shape[:-1]), kernels
    room = [_float32(rows, blocks.shape[1]), _float32(rows), jax.ShapeDtypeStruct((rows,), jnp.int32)]
    results = [_float32(*x.shape[:-1], *scales.shape) for scales in kernels[1::2]]
    return _call("products_int8", room + results, x.astype(jnp.float32), *kernels)[len(room) :]


def dense_product(a: jax.Array, b: jax.Array, transposed_a: bool = False, transposed_b: bool = False) -> jax.Array:
    """The product [m, n] of two matrices in float32, as large as those of training.

    Args:
        a: [m, k]; or [k, m], if `transposed_a`.
        b: [k, n]; or [n, k], if `transposed_b`.
        transposed_a: whether `a` is the transpose of what is multiplied.
        transposed_b: likewise.
    """
    m, n = a.shape[1 if transposed_a else 0], b.shape[0 if transposed_b else 1]
    results = [_float32(a.size), _float32(m, n)]
    wide = a.astype(jnp.float32), b.astype(jnp.float32)
    flags = (np.bool_(flag) for flag in (transposed_a, transposed_b))
    return _call("dense_product", results, *wide, **dict(zip(("transposed_a", "transposed_b"), flags, strict=True)))[1]


def attention(q: jax.Array, keys: jax.Array, values: jax.Array, owners: jax.Array, length: jax.Array) -> jax.Array:
    """What queries gather from the slots that are theirs; the others are not read.

    Args:
        q: [..., N * H], the rows of G histories, of J beams each, of T times each; H as `attends` says.
        keys: [G, N, C * J, H], float32 or bfloat16, slots by time, then by beam.
        values: likewise.
        owners: [G, J, C] int32: at each place of beam j's history, the beam whose slot holds it; below 0: hidden.
        length: scalar int32; a query of time t sees the first `length + t + 1` places.

    Returns:
        As q, in float32; for a query that sees nothing the mean over all places.
    """
    return _call("attention", _float32(*q.shape), q.astype(jnp.float32), keys, values, owners, length)


def append(slots: jax.Array, rows: jax.Array, length: jax.Array, writers: int) -> jax.Array:
    """Write keys or values of T times into a cache, in place where nothing else holds it.

    Args:
        slots: [G, N, C * J, H], float32 or bfloat16.
        rows: [..., N * H], as the queries of `attention`.
        length: scalar int32, the places written before; the program fails if T more do not fit.
        writers: J.
    """
    result = jax.ShapeDtypeStruct(slots.shape, slots.dtype)
    arguments = rows.astype(jnp.float32), slots, length
    return _call("append", result, *arguments, aliases={1: 0}, writers=np.int64(writers))


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """Normalise the last axis of x, [..., D], in float32 and two passes; scale and bias are [D]."""
    wide = (array.astype(jnp.float32) for array in (x, scale, bias))
    return _call("layer_norm", _float32(*x.shape), *wide, epsilon=np.float32(epsilon))


def _call(
    name: str, results: Any, *arguments: jax.Array, aliases: dict[int, int] | None = None, **attributes: np.generic
) -> Any:
    if not available():
        raise RuntimeError(
            "these parameters were prepared for kernels that are not on this machine: prepare those that were loaded"
        )
    call = jax.ffi.ffi_call(_target(name), results, vmap_method="sequential", input_output_aliases=aliases)
    found = call(*arguments, **attributes)
    return list(found) if isinstance(results, list) else found


def _float32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _target(name: str) -> str:
    return f"blenderbot_jax_{name}"
