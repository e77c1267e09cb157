"""The weights of ParlAI's checkpoints under their published names: one table, read in either direction.

ParlAI pickles a dict whose entry `model` is the state dict; what else it holds goes on with training and is left
unread. Which tensors there are follows from options and dictionary alone, so that what is missing, left over or of
another shape is named in ParlAI's own words before a single tensor is read.

Source: ParlAI, `parlai/agents/transformer/modules/` (`encoder.py`, `decoder.py`, `attention.py`, `ffn.py`).
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blenderbot_jax.checkpoint.tensor_file import CheckpointError, TensorEntry
from blenderbot_jax.checkpoint.torch_file import read_torch
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.parlai import beside, read_options

STATE = "model"
# The id that a reply begins with, in the state dict as a tensor: the options say it too.
START = "START"

# For each kind of layer, in ParlAI's order: module, published module, and the shape of its weight by letters. D is the
# width, F the feed-forward width, P positions, V the vocabulary; a bias has the first of them.
_LINEARS = {f"{name}_lin": f"{name}_proj" for name in ("q", "k", "v", "out")}


def _attention(module: str, published: str) -> tuple[tuple[str, str, str], ...]:
    return tuple((f"{module}.{ours}", f"{published}.{theirs}", "DD") for ours, theirs in _LINEARS.items())


_FEED_FORWARD = (("ffn.lin1", "fc1", "FD"), ("ffn.lin2", "fc2", "DF"))
_LAYERS = {
    "encoder": (
        *_attention("attention", "self_attn"),
        ("norm1", "self_attn_layer_norm", "D"),
        *_FEED_FORWARD,
        ("norm2", "final_layer_norm", "D"),
    ),
    "decoder": (
        *_attention("self_attention", "self_attn"),
        ("norm1", "self_attn_layer_norm", "D"),
        *_attention("encoder_attention", "encoder_attn"),
        ("norm2", "encoder_attn_layer_norm", "D"),
        *_FEED_FORWARD,
        ("norm3", "final_layer_norm", "D"),
    ),
}
# What the norm beside the layers is: ParlAI has one name for both of its places.
_OUTER_NORM = {True: "layer_norm", False: "layernorm_embedding"}


@dataclass(frozen=True)
class Named:
    """One tensor of a state dict."""

    published: str
    """The key under which transformers stores it."""
    shape: tuple[int, ...]
    alias: bool = False
    """Another name of a tensor that has its own: it may be absent, and must be equal where present."""


@dataclass(frozen=True)
class PositionTable(TensorEntry):
    """The table of positions that ParlAI computes, for a state dict that lacks it."""

    def read(self) -> np.ndarray:
        """The values [P, D]."""
        return sinusoids(*self.shape).astype(self.dtype)


def read_parlai(path: str | os.PathLike[str]) -> dict[str, TensorEntry]:
    """Read and check the table of contents of the weights of a ParlAI checkpoint.

    Args:
        path: of the weights, in a folder that `parlai.published` has made.

    Returns:
        The entries by published name. The embedding is there under each of its names.

    Raises:
        CheckpointError: the file is damaged or hostile, or does not hold what the options say; every misfit is named.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    own = path.resolve()  # messages show where the weights are, not the folder that links to them
    config = BlenderbotConfig.from_json(path.parent / "config.json")
    names = tensor_names(config)
    entries = {key: entry for key, entry in read_torch(own, STATE).items() if key != START}
    if not read_options(beside(path, ".opt")).get("learn_positional_embeddings"):
        entries = {**_computed(entries, names, own), **entries}
    check_names(own, entries, names)
    return {names[key].published: entry for key, entry in entries.items()}


def tensor_names(config: BlenderbotConfig) -> dict[str, Named]:
    """Every tensor of a model's state dict in ParlAI, `START` aside, in ParlAI's order.

    Example:
        >>> names = tensor_names(BlenderbotConfig.blenderbot_9b())
        >>> names["decoder.layers.31.norm3.weight"].published
        'model.decoder.layers.31.final_layer_norm.weight'
    """
    return dict(_rows(config))


def sinusoids(positions: int, width: int) -> np.ndarray:
    """The positions [P, D] that ParlAI computes: sines in even columns, cosines in odd ones; float32.

    Example:
        >>> sinusoids(2, 4)[1].round(4).tolist()
        [0.8414999842643738, 0.5403000116348267, 0.009999999776482582, 1.0]
    """
    angles = np.arange(positions)[:, None] / np.power(10000.0, 2 * np.arange(width // 2) / width)
    table = np.empty((positions, width), np.float32)
    table[:, 0::2], table[:, 1::2] = np.sin(angles), np.cos(angles)
    return table


def _rows(config: BlenderbotConfig) -> Iterator[tuple[str, Named]]:
    table = (config.vocab_size, config.d_model)
    yield "embeddings.weight", Named("model.shared.weight", table)
    for side in ("encoder", "decoder"):
        yield f"{side}.embeddings.weight", Named(f"model.{side}.embed_tokens.weight", table, True)
        yield from side_names(config, side)


def side_names(config: BlenderbotConfig, side: str) -> Iterator[tuple[str, Named]]:
    """The tensors of one side, the table of tokens aside, in ParlAI's order.

    Args:
        config: the architecture.
        side: "encoder" or "decoder".

    Example:
        >>> dict(side_names(BlenderbotConfig.blenderbot_9b(), "encoder"))["encoder.layers.3.ffn.lin2.weight"].shape
        (4096, 16384)
    """
    sizes = {"D": config.d_model, "P": config.max_position_embeddings, "F": getattr(config, f"{side}_ffn_dim")}
    table = Named(f"model.{side}.embed_positions.weight", (sizes["P"], sizes["D"]))
    yield f"{side}.position_embeddings.weight", table
    modules = [("norm_embeddings", _OUTER_NORM[config.normalize_before], "D")]
    for i in range(getattr(config, f"{side}_layers")):
        modules += [(f"layers.{i}.{ours}", f"layers.{i}.{theirs}", shape) for ours, theirs, shape in _LAYERS[side]]
    for ours, theirs, letters in modules:
        shape = tuple(sizes[letter] for letter in letters)
        yield f"{side}.{ours}.weight", Named(f"model.{side}.{theirs}.weight", shape)
        yield f"{side}.{ours}.bias", Named(f"model.{side}.{theirs}.bias", shape[:1])


def _computed(entries: Mapping[str, TensorEntry], names: Mapping[str, Named], path: Path) -> dict[str, TensorEntry]:
    """The tables of positions, in the dtype of the embedding."""
    dtype = entries["embeddings.weight"].dtype if "embeddings.weight" in entries else np.dtype(np.float32)
    keys = [f"{side}.position_embeddings.weight" for side in ("encoder", "decoder")]
    return {key: PositionTable(path, dtype, names[key].shape, 0) for key in keys}


def check_names(path: Path, entries: Mapping[str, TensorEntry], names: Mapping[str, Named]) -> None:
    """Refuse a state dict that is not what the options say.

    Raises:
        CheckpointError: naming every tensor that is missing, unexpected or misshapen.
    """
    problems = [*_misfits(entries, names)]
    if problems:
        raise CheckpointError(f"{path} does not hold what {path.name}.opt says:\n  " + "\n  ".join(problems))


def _misfits(entries: Mapping[str, TensorEntry], names: Mapping[str, Named]) -> Iterator[str]:
    if unexpected := [key for key in entries if key not in names]:
        yield f"unexpected: {', '.join(unexpected)}"
    if missing := [key for key, named in names.items() if key not in entries and not named.alias]:
        yield f"missing: {', '.join(missing)}"
    for key, entry in entries.items():
        if key in names and entry.shape != names[key].shape:
            yield f"{key} is {list(entry.shape)}, the options and the dictionary say {list(names[key].shape)}"
