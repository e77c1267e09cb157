"""The weight files of a folder: which of them to read, whole or in shards, and fetching them from the hub."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blenderbot_jax.checkpoint.flax_file import read_flax
from blenderbot_jax.checkpoint.parlai_file import read_parlai
from blenderbot_jax.checkpoint.tensor_file import CheckpointError, TensorEntry, read_safetensors
from blenderbot_jax.checkpoint.torch_file import read_torch
from blenderbot_jax.hub import FLAX_FILES, SAFETENSORS, SMALL_FILES, TORCH_FILES, locate
from blenderbot_jax.parlai import MODEL


@dataclass(frozen=True)
class Format:
    """One kind of weights file."""

    name: str
    """Of the whole file; shards are listed in `<name>.index.json`."""
    patterns: tuple[str, ...]
    """What to fetch from the hub."""
    read: Callable[[str | os.PathLike[str]], dict[str, TensorEntry]]

    def within(self, folder: Path) -> Path | None:
        """The file, or the index of its shards, if the folder has one of them."""
        for path in (folder / self.name, folder / f"{self.name}.index.json"):
            if path.is_file():
                return path
        return None


INT8_FILE = "model_int8.safetensors"
# Where a folder holds several, the first is read. Kernels in 8 bits have a file name that transformers does not look
# for: it would load the integers without their scales. ParlAI's file stands in folders that `locate` has made.
FORMATS = (
    Format("model.safetensors", SAFETENSORS, read_safetensors),
    Format("pytorch_model.bin", TORCH_FILES, read_torch),
    Format("flax_model.msgpack", FLAX_FILES, read_flax),
    Format(INT8_FILE, SAFETENSORS, read_safetensors),
    Format(MODEL, (), read_parlai),
)
_MAX_INDEX_BYTES = 100_000_000


def fetch(name_or_folder: str | os.PathLike[str], **hub_options: Any) -> Path:
    """The folder of a checkpoint with its weights, downloaded if need be: safetensors, else `.bin`, else Flax.

    Args:
        name_or_folder: a folder, a hub name, "demo", or a checkpoint of ParlAI.
        hub_options: `revision`, `cache_dir`, `local_files_only`, `token`; see `locate`.

    Raises:
        CheckpointNotFoundError: no such folder, and no such model to be had.
    """
    folder = Path(name_or_folder)
    for form in FORMATS:
        folder = locate(name_or_folder, SMALL_FILES + form.patterns, **hub_options)
        if Path(name_or_folder).exists() or form.within(folder):
            break
    return folder


def weights_in(folder: Path) -> tuple[Format, Path] | None:
    """The format that a folder's weights are read in, and their file or the index of their shards."""
    for form in FORMATS:
        if path := form.within(folder):
            return form, path
    return None


def tensor_entries(folder: Path) -> dict[str, TensorEntry]:
    """Every tensor of a folder's weights, by its key in the files."""
    found = weights_in(folder)
    if found is None:
        present = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_file())) or "nothing"
        raise CheckpointError(
            f"{folder} holds no weights that can be read: they are called {' or '.join(form.name for form in FORMATS)} "
            f"(or the same in shards, with .index.json). The folder holds {present}"
        )
    form, path = found
    return form.read(path) if path.name == form.name else _read_shards(path, form)


def _read_shards(index: Path, form: Format) -> dict[str, TensorEntry]:
    weight_map = _read_weight_map(index)
    shards = {}
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name or name in ("", ".", ".."):
            raise CheckpointError(f"{index}: a shard is a file beside the index, {name!r} is a path elsewhere")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index}: the shard {name} is not there; fetch it, or the whole checkpoint again")
        shards[name] = form.read(index.parent / name)
    absent = [key for key, name in weight_map.items() if key not in shards[name]]
    if absent:
        raise CheckpointError(f"{index} promises tensors that their shards do not hold: {listed(absent)}")
    return {key: shards[name][key] for key, name in weight_map.items()}


def _read_weight_map(index: Path) -> dict[str, str]:
    if index.stat().st_size > _MAX_INDEX_BYTES:
        raise CheckpointError(f"{index} is larger than {_MAX_INDEX_BYTES} bytes, which no index is")
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{index} is not an index: it must hold an object with a weight_map") from error
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index}: weight_map must map each tensor's key to a file name")
    return weight_map


def listed(names: list[str], most: int = 1000) -> str:
    """Names for an error message."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
