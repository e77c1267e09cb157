"""Products and attention for decoding on x86 processors with AVX-512, as functions of a program.

XLA's own are made for large matrices. Decoding multiplies a few rows by all weights, and attends to a few slots of a long
cache: `native/` has C++ for just that, built with the package where there is a compiler. All of it has a plain form, to
which the tests hold it; `prepare` decides who uses it.
"""

import ctypes
import importlib.util
import math
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

COLUMNS = 32
"""Of a block of a kernel."""
WIDEST_HEAD = 128
"""The most numbers of a head that attention takes: eight registers."""
_LIBRARY = "_blenderbot_jax_native"
_FUNCTIONS = ("product", "product_int8", "attention", "append")


@cache
def available() -> bool:
    """Whether the library was built, and runs on this machine's processor; it is loaded at the first call."""
    spec = importlib.util.find_spec(_LIBRARY)
    if spec is None or spec.origin is None:
        return False
    try:
        library = ctypes.cdll.LoadLibrary(spec.origin)
        if not library.blenderbot_jax_runs_here():
            return False
        for name in _FUNCTIONS:
            handler = jax.ffi.pycapsule(getattr(library, f"blenderbot_jax_{name}"))
            jax.ffi.register_ffi_target(_target(name), handler, platform="cpu")
    except Exception:  # built for another machine, or for a release of jaxlib that this one does not understand
        return False
    return True


def attends(dtype: Any, width: int) -> bool:
    """Whether `attention` takes heads of this width over keys and values in this dtype."""
    return width <= WIDEST_HEAD and dtype in (jnp.float32, jnp.bfloat16)


def product(x: jax.Array, blocks: jax.Array, features: int) -> jax.Array:
    """Rows times a kernel in blocks of columns, in float32.

    Args:
        x: [..., in].
        blocks: [out / 32 rounded up, in, 32], float32 or bfloat16.
        features: columns of the kernel, out.

    Returns:
        [..., out] float32.
    """
    out, room = _float32(*x.shape[:-1], features), _float32(*x.shape)
    return _call("product", (out, room), x.astype(jnp.float32), blocks)[0]


def product_int8(x: jax.Array, blocks: jax.Array, scales: jax.Array) -> jax.Array:
    """Rows, each rounded to 8 bits by its own scale, times a kernel in 8 bits; summed in integers.

    Args:
        x: [..., in].
        blocks: [out / 32 rounded up, in / 4 rounded up, 32, 4] uint8, the kernel's numbers raised by 128.
        scales: [out] float32.

    Returns:
        [..., out] float32.
    """
    rows = math.prod(x.shape[:-1])
    out, room = _float32(*x.shape[:-1], *scales.shape), _float32(rows, blocks.shape[1])
    sums = jax.ShapeDtypeStruct((rows,), jnp.int32)
    return _call("product_int8", (out, room, _float32(rows), sums), x.astype(jnp.float32), blocks, scales)[0]


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


def _call(
    name: str, results: Any, *arguments: jax.Array, aliases: dict[int, int] | None = None, **attributes: np.int64
) -> Any:
    if not available():
        raise RuntimeError(
            "these parameters were prepared for kernels that are not on this machine: prepare those that were loaded"
        )
    call = jax.ffi.ffi_call(_target(name), results, vmap_method="sequential", input_output_aliases=aliases)
    return call(*arguments, **attributes)


def _float32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _target(name: str) -> str:
    return f"blenderbot_jax_{name}"
