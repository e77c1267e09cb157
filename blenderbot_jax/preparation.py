"""prepare: parameters in the form that this machine decodes with fastest."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from blenderbot_jax import native
from blenderbot_jax.kernels import BlockedInt8Kernel, BlockedKernel, Int8Kernel
from blenderbot_jax.parallel import mesh_of

# XLA's products of blocks win up to this many rows; from 16 on those of plain kernels do.
_FEW_ROWS = 12
# What is smaller stays in a processor's cache, whatever its form.
_LEAST_BYTES = 2**21
# The products of earlier releases copy blocks before they use them.
_LEAST_JAX = (0, 12)
# The leaves that multiply or are looked up; norms and biases are added in their own dtype.
_CAST = ("kernel", "embedding")


def prepare(model: Any, params: Any, *, rows: int = 1, natively: bool | None = None, donate: bool = False) -> Any:
    """Pack a model's weights for decoding, once; `generate` takes the result in place of the parameters.

    Replies are the same up to rounding. Whatever the machine, matrices and embeddings are cast to the model's dtype,
    which decoding would otherwise do at every step. On a CPU kernels are cut into blocks that lie in one piece of
    memory each, and so is a copy of the tied embeddings, for the logits. Where `native` is available, that is all
    kernels, those in 8 bits too, and decoding multiplies and attends by what stands there; elsewhere it is the
    decoder's large ones in float32, for a few rows. Parameters on a mesh are cast and keep their form.

    Args:
        model: what the parameters are for; an `Ensemble` too.
        params: its parameters. They are not changed, unless they are donated.
        rows: B * K, the prompts of a batch times the beams or samples of each. More rows than these are decoded
            correctly, but maybe slower.
        natively: False leaves all to XLA, so that the result can be exported or lowered for another machine; None takes
            `native` where it is available, and True insists.
        donate: whether the parameters may be used up, as `jax.jit` uses up what it is donated: an array that gets
            another form is deleted as soon as that is there, so that memory holds the model once and not twice. One
            that stands in several places, such as in two members of an ensemble, is kept.

    Returns:
        Parameters of the same tree, with some kernels in another form, and maybe an `lm_head`. They are for decoding
        alone, on this machine: not to be saved, not to be trained.

    Raises:
        ValueError: rows below 1.
        RuntimeError: `natively` is True, and `native` is not available, or the parameters are on a mesh.

    Example:
        >>> fast = prepare(model, params, rows=4)
        >>> out = generate(model, fast, [[300, 2]], config=GenerationConfig(num_beams=4))
        >>> out.sequences.shape
        (1, 1, 21)
    """
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise ValueError(f"rows counts the prompts of a batch times their beams, so it is at least 1, not {rows!r}")
    there = jax.default_backend() == "cpu" and native.available()
    if natively and not there:
        raise RuntimeError(
            "there are no native kernels here: they need x86-64 Linux, a processor with AVX-512 VNNI, JAX on the CPU, "
            "and a C++ compiler when the package is installed; natively=None does without where it must"
        )
    if natively and mesh_of(params) is not None:
        raise RuntimeError("native kernels read parameters that lie whole on one device: load them without a mesh")
    natively = there if natively is None else natively
    return _prepared(model, params, rows, natively, shared_arrays(params) if donate else None)


def shared_arrays(*trees: Any) -> set[int]:
    """The ids of the arrays that stand in more than one place of some parameter trees."""
    places = Counter(map(id, jax.tree.leaves(trees)))
    return {array for array, count in places.items() if count > 1}


def _prepared(model: Any, params: Any, rows: int, natively: bool, spared: set[int] | None) -> Any:
    """`prepare`, which frees what gets another form but for the arrays of these ids; None frees nothing."""
    members = getattr(model, "members", None)
    if members is not None:
        return tuple(_prepared(one, tree, rows, natively, spared) for one, tree in zip(members, params, strict=True))
    whole = mesh_of(params) is None
    natively = whole and natively and _is_native_dtype(model.dtype, rows)
    blocked = whole and not natively and blocks_pay(model.dtype, rows)

    def form(path: Any, leaf: Any) -> Any:
        name = _name(path)
        made = leaf.astype(model.dtype) if name.endswith(_CAST) and not _is_int8(leaf) else leaf
        if natively and name.endswith("kernel"):
            made = _native_form(made)
        elif blocked and _reads_steps(name) and not _is_int8(leaf):
            made = _packed(made)
        if spared is not None:
            _delete(leaf, made, spared)
        return made

    made = jax.tree_util.tree_map_with_path(form, params, is_leaf=_is_int8)
    if natively:
        return _with_head(made, _native_form)
    return _with_head(made, BlockedKernel.pack) if blocked and _is_large(_embedding(made)) else made


def _delete(old: Any, new: Any, spared: set[int]) -> None:
    """Free the arrays of a leaf that its new form does without."""
    kept = spared | {id(array) for array in jax.tree.leaves(jax.block_until_ready(new))}
    for array in jax.tree.leaves(old):
        if isinstance(array, jax.Array) and id(array) not in kept:
            array.delete()


def _is_native_dtype(dtype: Any, rows: int) -> bool:
    return dtype == jnp.float32 or (dtype == jnp.bfloat16 and native.multiplies_short(rows))


def blocks_pay(dtype: Any, rows: int) -> bool:
    """Whether kernels in blocks are XLA's fastest form here, for products of so many rows in this dtype."""
    here = jax.default_backend() == "cpu" and jax.__version_info__ >= _LEAST_JAX
    return here and dtype == jnp.float32 and rows <= _FEW_ROWS


def _native_form(kernel: Any) -> Any:
    return BlockedInt8Kernel.pack(kernel) if _is_int8(kernel) else BlockedKernel.pack(kernel, natively=True)


def _reads_steps(name: str) -> bool:
    """Whether a leaf is a kernel that every step multiplies; those that read the prompt once have many rows."""
    once = name.endswith(("encoder_attn/k_proj/kernel", "encoder_attn/v_proj/kernel"))
    return name.startswith(("model/decoder", "lm_head")) and name.endswith("kernel") and not once


def _with_head(params: dict[str, Any], form: Callable[[jax.Array], Any]) -> dict[str, Any]:
    """With a head of its own where that is the tied embedding."""
    if "lm_head" in params:
        return params
    return params | {"lm_head": {"kernel": form(_embedding(params).T)}}


def _embedding(params: dict[str, Any]) -> jax.Array:
    return params["model"]["shared"]["embedding"]


def _packed(kernel: jax.Array) -> Any:
    return BlockedKernel.pack(kernel) if _is_large(kernel) else kernel


def _is_large(kernel: jax.Array) -> bool:
    return kernel.size * kernel.dtype.itemsize >= _LEAST_BYTES


def _is_int8(leaf: Any) -> bool:
    return isinstance(leaf, Int8Kernel)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
