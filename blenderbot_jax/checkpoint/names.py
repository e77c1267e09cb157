"""The one table of names: which tensor of a published file is which leaf of the parameter tree.

Every key of a file must match exactly one row. Torch stores a linear layer as [out, in], the tree as [in, out].
"""

import re
from dataclasses import dataclass
from typing import Any

from blenderbot_jax.config import BlenderbotConfig

SHARED = "model/shared/embedding"

_SIDE = r"(?:model\.)?(encoder|decoder)\."
_LAYER = _SIDE + r"layers\.(\d+)\."


@dataclass(frozen=True)
class Row:
    """Keys that match `pattern` go to `path`, whose {0}, {1}, ... are the pattern's groups."""

    pattern: str
    path: str
    transposed: bool = False
    alias: bool = False
    """A second name for a leaf that has its own: it may be absent, and must be equal where present."""


TABLE = (
    Row(r"final_logits_bias", "final_logits_bias"),
    Row(r"(?:model\.)?shared\.weight", SHARED),
    Row(_SIDE + r"embed_tokens\.weight", SHARED, alias=True),
    Row(r"lm_head\.weight", SHARED, alias=True),
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


def target_of(key: str) -> Target | None:
    """The leaf that a file's key names, or None if no row of the table knows the key.

    Example:
        >>> target_of("model.encoder.layers.0.fc1.weight")
        Target(path='model/encoder/layers/0/fc1/kernel', transposed=True, alias=False)
    """
    for pattern, row in _COMPILED:
        if found := pattern.fullmatch(key):
            return Target(row.path.format(*found.groups()), row.transposed, row.alias)
    return None


def source_name(path: str) -> str:
    """The key under which transformers stores a leaf.

    Example:
        >>> source_name("model/encoder/layers/0/fc1/kernel")
        'model.encoder.layers.0.fc1.weight'
    """
    *parents, leaf = path.split("/")
    torch_leaf = "weight" if leaf in ("kernel", "embedding", "scale") else leaf
    return ".".join([*parents, torch_leaf])


def is_leftover(path: str, config: BlenderbotConfig) -> bool:
    """True for tensors that early pre-norm files carry without using them."""
    return config.normalize_before and "/layernorm_embedding/" in path


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
