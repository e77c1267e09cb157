"""prepare: parameters in the form that this machine decodes with fastest."""

from typing import Any

import jax
import jax.numpy as jnp

from blenderbot_jax.kernels import BlockedKernel

# Blocks win up to this many rows; from 16 on plain kernels do.
_FEW_ROWS = 12
# What is smaller stays in a processor's cache, whatever its form.
_LEAST_BYTES = 2**21
# The products of earlier releases copy blocks before they use them.
_LEAST_JAX = (0, 12)


def prepare(model: Any, params: Any, *, rows: int = 1) -> Any:
    """Pack a model's weights for decoding, once; `generate` takes the result in place of the parameters.

    Replies are the same up to rounding. Whatever the machine, matrices and embeddings are cast to the model's dtype,
    which decoding would otherwise do at every step. On a CPU, in float32 and for a few rows, the decoder's large
    kernels are cut into blocks that lie in one piece of memory each (`BlockedKernel`), and so is a copy of the tied
    embeddings, for the logits. What is quantised stays as it is.

    Args:
        model: what the parameters are for; an `Ensemble` too.
        params: its parameters. They are not changed; where nothing else holds them, `params = prepare(model, params)`
            lets them go.
        rows: B * K, the prompts of a batch times the beams or samples of each. More rows than these are decoded
            correctly, but slower.

    Returns:
        Parameters of the same tree, with some kernels in another form, and maybe an `lm_head`. They are for decoding
        alone: not to be saved, not to be trained.

    Raises:
        ValueError: rows below 1.

    Example:
        >>> fast = prepare(model, params, rows=4)
        >>> out = generate(model, fast, [[300, 2]], config=GenerationConfig(num_beams=4))
        >>> out.sequences.shape
        (1, 1, 21)
    """
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise ValueError(f"rows counts the prompts of a batch times their beams, so it is at least 1, not {rows!r}")
    members = getattr(model, "members", None)
    if members is not None:
        return tuple(prepare(one, tree, rows=rows) for one, tree in zip(members, params, strict=True))
    cast = jax.tree_util.tree_map_with_path(lambda path, leaf: _cast(path, leaf, model.dtype), params)
    return _blocked(cast) if blocks_pay(model.dtype, rows) else cast


def blocks_pay(dtype: Any, rows: int) -> bool:
    """Whether kernels in blocks are the fastest form here, for products of so many rows in this dtype."""
    here = jax.default_backend() == "cpu" and jax.__version_info__ >= _LEAST_JAX
    return here and dtype == jnp.float32 and rows <= _FEW_ROWS


def _cast(path: Any, leaf: jax.Array, dtype: Any) -> jax.Array:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return leaf.astype(dtype) if name.endswith(("kernel", "embedding")) else leaf


def _blocked(params: dict[str, Any]) -> dict[str, Any]:
    """The decoder's kernels in blocks, but for those that read the prompt, which has many rows."""

    def pack(path: Any, leaf: jax.Array) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        once = name.endswith(("encoder_attn/k_proj/kernel", "encoder_attn/v_proj/kernel"))
        return _packed(leaf) if name.endswith("kernel") and not once else leaf

    root = dict(params["model"])
    root["decoder"] = jax.tree_util.tree_map_with_path(pack, root["decoder"])
    packed = {**params, "model": root}
    if "lm_head" in params:
        return packed | {"lm_head": jax.tree_util.tree_map_with_path(pack, params["lm_head"])}
    table = root["shared"]["embedding"]
    return packed | {"lm_head": {"kernel": _packed(table.T)}} if _is_large(table) else packed


def _packed(kernel: jax.Array) -> Any:
    return BlockedKernel.pack(kernel) if _is_large(kernel) else kernel


def _is_large(kernel: jax.Array) -> bool:
    return kernel.size * kernel.dtype.itemsize >= _LEAST_BYTES
