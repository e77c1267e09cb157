"""Products of training on x86 processors, forward and back: of many rows with a kernel, and of many rows with many.

XLA's take a third longer there, and copy one side of those products that gradients need. A step of training puts its
kernels into the form that stands here, inside the function that it differentiates: gradients are those of the arrays.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from blenderbot_jax import native
from blenderbot_jax.kernels import DType, precision_for


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DenseKernel:
    """A kernel that `native.dense_product` multiplies on CPUs, in both directions of a gradient."""

    values: jax.Array
    """[in, out]; or, transposed, [out, in]. Sums are in float32, whatever the dtype."""
    transposed: bool = field(default=False, metadata={"static": True})

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        rows, values = (part.astype(jnp.float32) for part in (x, self.values))
        found = product(rows.reshape(-1, x.shape[-1]), values, False, self.transposed)
        return found.reshape(*x.shape[:-1], -1).astype(x.dtype)


def product(a: jax.Array, b: jax.Array, transposed_a: bool, transposed_b: bool) -> jax.Array:
    """`A @ B` in float32, whose gradients are products of the same kind.

    Args:
        a: A, [m, k]; or its transpose.
        b: B, [k, n]; or its transpose.
        transposed_a: whether `a` is [k, m].
        transposed_b: whether `b` is [n, k].

    Returns:
        [m, n] float32.

    Example:
        >>> product(jnp.ones((3, 2)), jnp.ones((3, 4)), True, False).tolist()
        [[3.0, 3.0, 3.0, 3.0], [3.0, 3.0, 3.0, 3.0]]
    """
    return jnp.asarray(_product(a, b, transposed_a, transposed_b))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(a: jax.Array, b: jax.Array, transposed_a: bool, transposed_b: bool) -> jax.Array:
    by_xla = partial(_by_xla, transposed_a=transposed_a, transposed_b=transposed_b)
    if not native.available():
        return by_xla(a, b)
    ours = partial(native.dense_product, transposed_a=transposed_a, transposed_b=transposed_b)
    return jax.lax.platform_dependent(a, b, cpu=ours, default=by_xla)


def _by_xla(a: jax.Array, b: jax.Array, *, transposed_a: bool, transposed_b: bool) -> jax.Array:
    inner = (((0 if transposed_a else 1,), (1 if transposed_b else 0,)), ((), ()))
    return jax.lax.dot_general(a, b, inner, precision=precision_for(a.dtype))


def _forward(a: jax.Array, b: jax.Array, transposed_a: bool, transposed_b: bool) -> tuple[jax.Array, Any]:
    return product(a, b, transposed_a, transposed_b), (a, b)


def _backward(transposed_a: bool, transposed_b: bool, sides: Any, change: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The change times B', and A' times the change; of a transposed side its transpose."""
    a, b = sides
    for_a = (b, change, transposed_b, True) if transposed_a else (change, b, False, not transposed_b)
    for_b = (change, a, True, transposed_a) if transposed_b else (a, change, not transposed_a, False)
    return product(*for_a), product(*for_b)


_product.defvjp(_forward, _backward)


def densely(params: Mapping[str, Any], dtype: DType) -> dict[str, Any]:
    """Parameters with plain kernels and a tied head as `DenseKernel`s, where those are faster; the same otherwise.

    Args:
        params: of a model with a head, each whole on one device.
        dtype: the model's, to which kernels are rounded, as plain ones are.
    """
    if jax.default_backend() != "cpu" or not native.available():
        return dict(params)
    made = dict(jax.tree_util.tree_map_with_path(partial(_dense, dtype), params))
    if "lm_head" not in params:
        made["lm_head"] = {"kernel": DenseKernel(params["model"]["shared"]["embedding"].astype(dtype), transposed=True)}
    return made


def _dense(dtype: DType, path: Any, leaf: Any) -> Any:
    plain = jax.tree_util.keystr(path, simple=True, separator="/").endswith("kernel") and leaf.ndim == 2
    return DenseKernel(leaf.astype(dtype)) if plain else leaf
