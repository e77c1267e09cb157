"""Saving a checkpoint as a folder that transformers loads, whole or not at all."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import save_file

from blenderbot_jax.checkpoint.names import SHARED, flatten, source_name
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.files import make_public

_ARCHITECTURES = {True: "BlenderbotForConditionalGeneration", False: "BlenderbotSmallForConditionalGeneration"}


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

    All files are written to a temporary folder first and moved when they are complete: a failure leaves an existing
    folder as it was. Files of other names that stand in it are left alone.

    Args:
        folder: made if it is missing.
        config: the architecture.
        params: the parameters of a `BlenderbotForConditionalGeneration`, in the dtype they are to be stored in.
        generation_config: a `GenerationConfig`.
        tokenizer: a tokenizer with `save_pretrained`.

    Raises:
        ValueError: the parameters are not those of a model with a head, or of another configuration.

    Example:
        >>> save_pretrained("my-model", model.config, params, GenerationConfig.recipe(), tokenizer)
    """
    leaves = flatten(params)
    if "final_logits_bias" not in leaves:
        raise ValueError(
            "save_pretrained takes the parameters of BlenderbotForConditionalGeneration, which hold final_logits_bias; "
            f"these begin with {', '.join(list(params)[:3])}"
        )
    table, wanted = tuple(leaves[SHARED].shape), (config.vocab_size, config.d_model)
    if table != wanted:
        raise ValueError(
            f"the parameters' embedding is {list(table)}, the configuration says {list(wanted)}: save them with the "
            "config of their own model (resize_token_embeddings returns one)"
        )
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Inside the folder where there is one: it may be a mounted volume, and files move only within a file system.
    parent = folder if folder.is_dir() else folder.parent
    staging = Path(tempfile.mkdtemp(dir=parent, prefix=f".{folder.name}."))
    try:
        _write(staging, config, leaves, generation_config, tokenizer)
        folder.mkdir(exist_ok=True)
        for path in sorted(staging.iterdir()):
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(staging)


def _write(
    folder: Path,
    config: BlenderbotConfig,
    leaves: dict[str, Any],
    generation_config: SavesJson | None,
    tokenizer: SavesFolder | None,
) -> None:
    tensors = {}
    for path, leaf in leaves.items():
        array = np.asarray(leaf)
        tensors[source_name(path)] = np.ascontiguousarray(array.T if path.endswith("/kernel") else array)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    make_public(folder / "model.safetensors")
    stored = config.replace(
        unknown_keys=json.dumps(
            {
                **{key: value for key, value in config.extra.items() if key != "torch_dtype"},
                "architectures": [_ARCHITECTURES[config.normalize_before]],
                "dtype": str(tensors["model.shared.weight"].dtype),
            }
        )
    )
    stored.save_json(folder / "config.json")
    if generation_config is not None:
        generation_config.save_json(folder / "generation_config.json")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
