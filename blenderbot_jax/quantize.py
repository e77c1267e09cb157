"""int8 weights: a parameter tree whose kernels are a quarter of their float32 size."""

from typing import Any

import jax.numpy as jnp

from blenderbot_jax.checkpoint.load import pack
from blenderbot_jax.checkpoint.names import HEAD, SHARED, flatten, lacks_head, unflatten
from blenderbot_jax.kernels import Int8Kernel

QUANTIZATIONS = ("int8",)


def quantize(params: Any) -> Any:
    """Put the kernels of all linear layers into 8 bits, symmetric, with one scale per output channel.

    The result stands in for the parameters wherever they are only read: `model.apply`, `generate`, `token_log_probs`,
    `save_pretrained`. Norms, biases, positions and embeddings stay as they are. A model whose head is its embedding
    gets a copy of that in 8 bits under `lm_head`, and looks tokens up in the embedding itself. On a CPU the inputs of a
    product are rounded to 8 bits too, each row by its own scale; elsewhere they are not.

    Gradients through the result are undefined: train the parameters themselves. Kernels are packed one at a time,
    beside those that are given; `Checkpoint.from_pretrained(..., quantize="int8")` holds no others.

    Args:
        params: of any of the models, arrays as `from_pretrained` or training gives them; or an ensemble's tuple.

    Returns:
        A tree of the same paths whose kernels are `Int8Kernel` leaves: `values` int8 [out, in], `scales` float32 [out].

    Raises:
        ValueError: kernels that are quantised or prepared already, or are no matrices of floating-point numbers.

    Example:
        >>> small = quantize(params)
        >>> generate(model, small, [[300, 2]], config=GenerationConfig(max_length=12)).sequences.shape
        (1, 1, 12)
    """
    if isinstance(params, tuple | list):
        return tuple(quantize(member) for member in params)
    leaves = flatten(params)
    kernels = {path for path in leaves if path.endswith("/kernel")}
    for path in kernels:
        _check(path, leaves[path])
    made = {path: pack(leaf) if path in kernels else leaf for path, leaf in leaves.items()}
    if lacks_head(leaves):
        made[HEAD] = pack(leaves[SHARED].T)
    return unflatten(made)


def is_quantized(params: Any) -> bool:
    """Whether a parameter tree, or one of an ensemble's, holds kernels in 8 bits.

    Args:
        params: a parameter tree, or a tuple of them.
    """
    trees = params if isinstance(params, tuple | list) else (params,)
    return any(isinstance(leaf, Int8Kernel) for tree in trees for leaf in flatten(tree).values())


def check_quantization(name: str | None) -> None:
    """Refuse the name of a quantisation that there is not.

    Args:
        name: "int8", or None for none.

    Raises:
        ValueError: any other.
    """
    if name is not None and name not in QUANTIZATIONS:
        raise ValueError(f"quantize is {' or '.join(map(repr, QUANTIZATIONS))}, or None for none, not {name!r}")


def _check(path: str, kernel: Any) -> None:
    if isinstance(kernel, Int8Kernel):
        raise ValueError(f"{path} is in 8 bits already: quantize takes the parameters as they were loaded or trained")
    if not hasattr(kernel, "dtype"):
        raise ValueError(f"{path} is a {type(kernel).__name__}: quantize first, and prepare what it returns")
    if kernel.ndim != 2 or not jnp.issubdtype(kernel.dtype, jnp.floating):
        found = f"{kernel.dtype} of shape {list(kernel.shape)}"
        raise ValueError(
            f"{path} is {found}: quantize takes kernels [in, out] in floating point, under vmap if stacked"
        )
