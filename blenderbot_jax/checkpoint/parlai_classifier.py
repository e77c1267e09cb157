"""The weights of ParlAI's `transformer/classifier`, as parameters of `EncoderClassifier`.

What a BlenderBot has no place for is folded into what it has: the embedding of a segment, the same at every token of a
text, into the table of positions, and the scale of the encoder's output into the layer behind it.

Source: ParlAI, `parlai/agents/transformer/modules/wrappers.py` (`TransformerLinearWrapper`) and `encoder.py`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blenderbot_jax.checkpoint.names import target_of, unflatten
from blenderbot_jax.checkpoint.parlai_file import STATE, Named, PositionTable, check_names, side_names
from blenderbot_jax.checkpoint.torch_file import read_torch
from blenderbot_jax.config import BlenderbotConfig

_POSITIONS, _SEGMENTS = "transformer.position_embeddings.weight", "transformer.segment_embeddings.weight"
_HEAD = "additional_linear_layer"


def classifier_names(config: BlenderbotConfig, classes: int, segments: int = 0) -> dict[str, Named]:
    """Every tensor of a classifier's state dict in ParlAI.

    Args:
        config: of the encoder.
        classes: C.
        segments: rows of the table of segments; 0 where there is none.

    Example:
        >>> classifier_names(BlenderbotConfig(), 2)["additional_linear_layer.weight"].shape
        (2, 2560)
    """
    return dict(_rows(config, classes, segments))


def read_classifier(
    path: Path,
    config: BlenderbotConfig,
    classes: int,
    *,
    segments: int = 0,
    output_scaling: float = 1.0,
    learned_positions: bool = True,
    dtype: Any = jnp.float32,
) -> dict[str, Any]:
    """Read a classifier's weights.

    Args:
        path: the file of the weights.
        config: of the encoder.
        classes: C.
        segments: rows of the table of segments; 0 where there is none.
        output_scaling: of the encoder's states.
        learned_positions: without it, a table of positions that the file lacks is computed.
        dtype: of the result.

    Returns:
        The parameters of `EncoderClassifier`.

    Raises:
        CheckpointError: the file is damaged or hostile, or does not hold what the arguments say.
        OSError: the file cannot be opened.
    """
    names = classifier_names(config, classes, segments)
    entries = dict(read_torch(path, STATE))
    if not learned_positions and _POSITIONS not in entries:
        entries[_POSITIONS] = PositionTable(path, np.dtype(np.float32), names[_POSITIONS].shape, 0)
    check_names(path, entries, names)
    read = {key: entries[key].read().astype(np.float32) for key, named in names.items() if not named.alias}
    if segments:
        read[_POSITIONS] = read[_POSITIONS] + read.pop(_SEGMENTS)[0]
    head = {"kernel": output_scaling * read.pop(f"{_HEAD}.weight").T, "bias": read.pop(f"{_HEAD}.bias")}
    flat = {f"model/head/{name}": value for name, value in head.items()}
    for key, value in read.items():
        target = target_of(names[key].published)
        assert target is not None, key  # the names are those of the table
        flat[target.path] = value.T if target.transposed else value
    return jax.tree.map(lambda value: jnp.asarray(value, dtype), unflatten(flat)["model"])


def _rows(config: BlenderbotConfig, classes: int, segments: int) -> Iterator[tuple[str, Named]]:
    yield "transformer.embeddings.weight", Named("model.shared.weight", (config.vocab_size, config.d_model))
    for key, named in side_names(config, "encoder"):
        yield key.replace("encoder.", "transformer.", 1), named
    if segments:
        yield _SEGMENTS, Named("", (segments, config.d_model))
    yield f"{_HEAD}.weight", Named("", (classes, config.d_model))
    yield f"{_HEAD}.bias", Named("", (classes,))
