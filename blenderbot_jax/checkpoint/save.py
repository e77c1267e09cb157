"""Saving a checkpoint as a folder that transformers loads, whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from blenderbot_jax.checkpoint.folder import INT8_FILE, weights_in
from blenderbot_jax.checkpoint.names import BIAS, EMBED_TOKENS, HEAD, SCALE, SHARED, flatten, source_name
from blenderbot_jax.checkpoint.tensor_writer import Pending, write_safetensors
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.files import make_public
from blenderbot_jax.kernels import Int8Kernel

_SEQ2SEQ, _HEADLESS, _CAUSAL = "ForConditionalGeneration", "Model", "ForCausalLM"


class SavesJson(Protocol):
    """A GenerationConfig, or anything that writes itself as JSON."""

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write the file."""
        ...


class SavesFolder(Protocol):
    """A tokenizer, or anything that writes its files into a folder."""

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Any:
        """Write the files."""
        ...


def save_pretrained(
    folder: str | os.PathLike[str],
    config: BlenderbotConfig,
    params: dict[str, Any],
    generation_config: SavesJson | None = None,
    tokenizer: SavesFolder | None = None,
) -> None:
    """Write a checkpoint folder: config.json, model.safetensors, and what else is given.

    Parameters from `quantize` go to `model_int8.safetensors` instead, which `from_pretrained` reads back bit for bit,
    and which transformers does not take for weights of its own: kernels int8 [out, in] under their published names,
    each with float32 scales [out] under its name and `_scale`, and the other weights in their own dtype.

    All files are written to a temporary folder first and moved when they are complete: a failure leaves an existing
    folder as it was. Files of other names that stand in it are left alone.

    Args:
        folder: made if it is missing.
        config: the architecture.
        params: the parameters of a `BlenderbotForConditionalGeneration`, `BlenderbotModel` or `BlenderbotForCausalLM`,
            in the dtype they are to be stored in. Which of them it is shows in the tree, and stands in config.json.
        generation_config: a `GenerationConfig`.
        tokenizer: a tokenizer with `save_pretrained`.

    Raises:
        ValueError: the parameters are those of none of the models, or of another configuration; or they are prepared
            for decoding; or they are quantised, and the folder holds weights that would be read in their place.

    Example:
        >>> save_pretrained("my-model", model.config, params, GenerationConfig.recipe(), tokenizer)
    """
    leaves = {}
    for path, leaf in flatten(params).items():
        leaves |= _pending(path, leaf)
    save_leaves(folder, config, leaves, generation_config, tokenizer)


def save_leaves(
    folder: str | os.PathLike[str],
    config: BlenderbotConfig,
    leaves: Mapping[str, Pending],
    generation_config: SavesJson | None = None,
    tokenizer: SavesFolder | None = None,
    on_progress: Callable[[int], object] = lambda nbytes: None,
) -> None:
    """`save_pretrained` for leaves that are read when their turn comes, by their path in the tree.

    Args:
        folder, config, generation_config, tokenizer: as in `save_pretrained`.
        leaves: shapes and values as in the tree, kernels [in, out]; those in 8 bits [out, in], with scales beside them.
        on_progress: called after each tensor with its bytes.

    Raises:
        ValueError: as `save_pretrained` does.
    """
    kind = _kind_of(leaves)
    _check_configuration(config, leaves)
    folder, name = Path(folder), _file_name(folder, leaves)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Inside the folder where there is one: it may be a mounted volume, and files move only within a file system.
    parent = folder if folder.is_dir() else folder.parent
    staging = Path(tempfile.mkdtemp(dir=parent, prefix=f".{folder.name}."))
    try:
        tensors = {_key(path, kind): _as_stored(path, leaf) for path, leaf in leaves.items()}
        write_safetensors(staging / name, tensors, on_progress)
        make_public(staging / name)
        _stored_config(config, kind, _table(leaves).dtype).save_json(staging / "config.json")
        if generation_config is not None:
            generation_config.save_json(staging / "generation_config.json")
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
        folder.mkdir(exist_ok=True)
        for path in sorted(staging.iterdir()):
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(staging)


def _pending(path: str, leaf: Any) -> dict[str, Pending]:
    """A leaf as it is to be written, by path."""
    if isinstance(leaf, Int8Kernel):
        return {**_pending(path, leaf.values), **_pending(path + SCALE, leaf.scales)}
    if not hasattr(leaf, "dtype"):
        form = type(leaf).__name__
        raise ValueError(f"{path} is a {form}: save the parameters as they were before they were prepared for decoding")
    return {path: Pending(tuple(leaf.shape), np.dtype(leaf.dtype), partial(np.asarray, leaf))}


def _as_stored(path: str, leaf: Pending) -> Pending:
    return leaf.transposed if path.endswith("/kernel") and leaf.dtype != np.int8 else leaf


def _file_name(folder: str | os.PathLike[str], leaves: Mapping[str, Pending]) -> str:
    """Of the weights file; quantised weights that a reader of the folder would pass over are refused."""
    if not any(leaf.dtype == np.int8 for leaf in leaves.values()):
        return "model.safetensors"
    there = weights_in(Path(folder))
    if there and there[0].name != INT8_FILE:
        raise ValueError(f"{folder} holds {there[1].name}, which is read before {INT8_FILE}: choose another folder")
    return INT8_FILE


def _kind_of(paths: Iterable[str]) -> str:
    """Which of the three models has this tree."""
    parts = {part for path in paths for part in (path.split("/")[0], "/".join(path.split("/")[:2]))}
    if {BIAS, "model/encoder", "model/decoder"} <= parts:
        return _SEQ2SEQ
    if "model/decoder" in parts and not {BIAS, "model/encoder"} & parts:
        return _CAUSAL
    if {"encoder", "decoder"} <= parts:
        return _HEADLESS
    raise ValueError(
        "save_pretrained takes the parameters of BlenderbotForConditionalGeneration (final_logits_bias and a model of "
        "encoder and decoder), BlenderbotModel (encoder and decoder) or BlenderbotForCausalLM (a model of a decoder "
        f"alone); these hold {', '.join(sorted(parts)) or 'nothing'}"
    )


def _check_configuration(config: BlenderbotConfig, leaves: Mapping[str, Pending]) -> None:
    table, wanted = _table(leaves).shape, (config.vocab_size, config.d_model)
    if table != wanted:
        raise ValueError(
            f"the parameters' embedding is {list(table)}, the configuration says {list(wanted)}: save them with the "
            "config of their own model (resize_token_embeddings returns one)"
        )
    if config.tie_word_embeddings == (EMBED_TOKENS["decoder"] in _whole(leaves)):
        held = "one embedding for all" if not config.tie_word_embeddings else "tables of their own for decoder and head"
        raise ValueError(
            f"the parameters hold {held}, the configuration says "
            f"tie_word_embeddings={config.tie_word_embeddings}: save them with the config of their own model"
        )


def _whole(leaves: Mapping[str, Pending]) -> dict[str, Pending]:
    """The leaves by their path in the whole model, which has a `model/` that the model without head lacks."""
    whole = {path for path in leaves if path in (BIAS, HEAD, HEAD + SCALE) or path.startswith("model/")}
    return {path if path in whole else f"model/{path}": leaf for path, leaf in leaves.items()}


def _table(leaves: Mapping[str, Pending]) -> Pending:
    """The embedding, or in an untied model one of them."""
    whole = _whole(leaves)
    for path in (SHARED, EMBED_TOKENS["decoder"]):
        if path in whole:
            return whole[path]
    raise ValueError(f"the parameters hold no embedding: {SHARED} is missing")


def _key(path: str, kind: str) -> str:
    """The key under which transformers stores a leaf; it keeps a tied decoder's table under the decoder's name."""
    return source_name(EMBED_TOKENS["decoder"] if kind == _CAUSAL and path == SHARED else path)


def _stored_config(config: BlenderbotConfig, kind: str, dtype: np.dtype) -> BlenderbotConfig:
    """The configuration as transformers writes it for this model."""
    family = "Blenderbot" if config.normalize_before else "BlenderbotSmall"
    kept = {key: value for key, value in config.extra.items() if key != "torch_dtype"}
    extra = {**kept, "architectures": [family + kind], "dtype": str(dtype)}
    causal = kind == _CAUSAL
    return config.replace(is_decoder=causal, is_encoder_decoder=not causal, unknown_keys=json.dumps(extra))
