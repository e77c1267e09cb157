"""The one table of names: which tensor of a published file is which leaf of the parameter tree.

Every key of a file must match exactly one row. Torch stores a linear layer as [out, in], the tree as [in, out]. Flax
files use the paths of the tree itself and its orientation. A kernel in 8 bits is stored as [out, in] too, under the
same key, and its scales [out] under that key with `_scale` behind it.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from blenderbot_jax.config import BlenderbotConfig

SHARED = "model/shared/embedding"
HEAD = "lm_head/kernel"
BIAS = "final_logits_bias"
# Tables of their own in an untied model, other names of SHARED in a tied one.
EMBED_TOKENS = {side: f"model/{side}/embed_tokens/embedding" for side in ("encoder", "decoder")}
_TIED_TO_SHARED = frozenset({*EMBED_TOKENS.values(), HEAD})
# Behind the key, or the path, of a kernel in 8 bits: its scales.
SCALE = "_scale"

_SIDE = r"(?:model\.)?(encoder|decoder)\."
_LAYER = _SIDE + r"layers\.(\d+)\."


@dataclass(frozen=True)
class Row:
    """Keys that match `pattern` go to `path`, whose {0}, {1}, ... are the pattern's groups."""

    pattern: str
    path: str
    transposed: bool = False


TABLE = (
    Row(r"final_logits_bias", BIAS),
    Row(r"(?:model\.)?shared\.weight", SHARED),
    Row(_SIDE + r"embed_tokens\.weight", "model/{0}/embed_tokens/embedding"),
    Row(r"lm_head\.weight", HEAD, True),
    Row(_SIDE + r"embed_positions\.weight", "model/{0}/embed_positions/embedding"),
    Row(_SIDE + r"(layer_norm|layernorm_embedding)\.weight", "model/{0}/{1}/scale"),
    Row(_SIDE + r"(layer_norm|layernorm_embedding)\.bias", "model/{0}/{1}/bias"),
    Row(
        _LAYER + r"(self_attn|encoder_attn)\.([qkv]|out)_proj\.weight", "model/{0}/layers/{1}/{2}/{3}_proj/kernel", True
    ),
    Row(_LAYER + r"(self_attn|encoder_attn)\.([qkv]|out)_proj\.bias", "model/{0}/layers/{1}/{2}/{3}_proj/bias"),
    Row(_LAYER + r"(fc1|fc2)\.weight", "model/{0}/layers/{1}/{2}/kernel", True),
    Row(_LAYER + r"(fc1|fc2)\.bias", "model/{0}/layers/{1}/{2}/bias"),
    Row(_LAYER + r"(\w+_layer_norm)\.weight", "model/{0}/layers/{1}/{2}/scale"),
    Row(_LAYER + r"(\w+_layer_norm)\.bias", "model/{0}/layers/{1}/{2}/bias"),
)
_COMPILED = tuple((re.compile(row.pattern), row) for row in TABLE)


@dataclass(frozen=True)
class Target:
    """Where one tensor of a file belongs."""

    path: str
    transposed: bool
    alias: bool
    """A second name for a leaf that has its own: it may be absent, and must be equal where present."""


def target_of(key: str, *, tied: bool = True) -> Target | None:
    """The leaf that a file's key names, or None if no row of the table knows the key.

    Args:
        key: dotted as PyTorch names it, or with slashes as Flax does.
        tied: one table serves encoder, decoder and head (`tie_word_embeddings`), so all their names mean it.

    Example:
        >>> target_of("model.encoder.layers.0.fc1.weight")
        Target(path='model/encoder/layers/0/fc1/kernel', transposed=True, alias=False)
    """
    target = _flax_target(key) if "/" in key else _torch_target(key)
    if target is None or not tied or target.path not in _TIED_TO_SHARED:
        return target
    # A head [V, D] is the table as it lies in a PyTorch file; in a Flax file it is [D, V].
    return Target(SHARED, transposed=target.path == HEAD and not target.transposed, alias=True)


def _torch_target(key: str) -> Target | None:
    for pattern, row in _COMPILED:
        if found := pattern.fullmatch(key):
            return Target(row.path.format(*found.groups()), row.transposed, alias=False)
    return None


def _flax_target(path: str) -> Target | None:
    target = _torch_target(source_name(path))
    # `weight` stands for three different leaves, so the way back must end where it began.
    if target is None or path not in (target.path, target.path.removeprefix("model/")):
        return None
    return replace(target, transposed=False)


def source_name(path: str) -> str:
    """The key under which transformers stores a leaf.

    Example:
        >>> source_name("model/encoder/layers/0/fc1/kernel")
        'model.encoder.layers.0.fc1.weight'
    """
    *parents, leaf = path.split("/")
    torch_leaf = {**dict.fromkeys(("kernel", "embedding", "scale"), "weight"), f"kernel{SCALE}": f"weight{SCALE}"}
    return ".".join([*parents, torch_leaf.get(leaf, leaf)])


def is_leftover(path: str, config: BlenderbotConfig) -> bool:
    """True for tensors that early pre-norm files carry without using them."""
    return config.normalize_before and "/layernorm_embedding/" in path


def lacks_head(paths: Collection[str]) -> bool:
    """Whether these are the paths, in the whole model, of a model whose logits are products with its embedding."""
    with_head = BIAS in paths or not any(path.startswith("model/encoder/") for path in paths)
    return with_head and SHARED in paths and not {HEAD, EMBED_TOKENS["decoder"]} & set(paths)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict as one dict of `/`-joined paths."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}/"))
        else:
            flat[prefix + key] = value
    return flat


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree
