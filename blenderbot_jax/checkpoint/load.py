"""Loading weights: find the files of a folder, compare them with what the model expects, read tensor by tensor.

Everything that can be wrong is looked for first and reported at once; only then is a tensor read and placed.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from blenderbot_jax.checkpoint.names import Target, flatten, is_leftover, source_name, target_of, unflatten
from blenderbot_jax.checkpoint.tensor_file import CheckpointError, TensorEntry, read_safetensors
from blenderbot_jax.checkpoint.torch_file import read_torch_zip
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.hub import SAFETENSORS, SMALL_FILES, TORCH_FILES, locate

_READERS = {"model.safetensors": read_safetensors, "pytorch_model.bin": read_torch_zip}
_SAFETENSORS_NAMES = ("model.safetensors", "model.safetensors.index.json")
_MAX_INDEX_BYTES = 100_000_000
_OPTIONAL = "final_logits_bias"
_ALIGNMENT = 64


def fetch(name_or_folder: str | os.PathLike[str], **hub_options: Any) -> Path:
    """The folder of a checkpoint with its weights, downloaded if need be; safetensors rather than `.bin`.

    Args:
        name_or_folder: a folder, a hub name, or "demo".
        hub_options: `revision`, `cache_dir`, `local_files_only`, `token`; see `locate`.
    """
    folder = locate(name_or_folder, SMALL_FILES + SAFETENSORS, **hub_options)
    if Path(name_or_folder).is_dir() or any((folder / name).is_file() for name in _SAFETENSORS_NAMES):
        return folder
    return locate(name_or_folder, SMALL_FILES + TORCH_FILES, **hub_options)


def load_params(
    folder: Path, config: BlenderbotConfig, expected: Mapping[str, Any], dtype: Any, *, root: str = ""
) -> dict[str, Any]:
    """Read a checkpoint's weights into a parameter tree.

    Args:
        folder: holds `model.safetensors` or `pytorch_model.bin`, whole or in shards with their index.
        config: the architecture.
        expected: the model's parameter tree with anything that has a `.shape` as leaves.
        dtype: storage of the result.
        root: where `expected` stands in the tree of the whole model ("model/" for the model without head).

    Raises:
        CheckpointError: naming every tensor that is missing, unexpected, misshapen, or unequal to its alias.
    """
    entries = tensor_entries(folder)
    shapes = {root + path: tuple(leaf.shape) for path, leaf in flatten(dict(expected)).items()}
    sources = _match(folder, entries, shapes, config, headless=bool(root))
    flat = {}
    # The largest first: what reading it takes besides is gone again before the rest is there.
    for path in sorted(shapes, key=lambda path: -math.prod(shapes[path])):
        if path in sources:
            entry, transposed = sources[path]
            array = entry.read()
            flat[path] = _place(array.T if transposed else array, dtype)
        else:
            flat[path] = _place(np.zeros(shapes[path]), dtype)
    return unflatten({path.removeprefix(root): flat[path] for path in shapes})


def _place(array: np.ndarray, dtype: Any) -> jax.Array:
    """A contiguous copy in `dtype` on the device.

    On a CPU, JAX adopts memory that begins at a multiple of 64 bytes, and copies any other.
    """
    dtype = np.dtype(dtype)
    size = array.size * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    copy = memory[begin : begin + size].view(dtype).reshape(array.shape)
    np.copyto(copy, array, casting="unsafe")
    return jax.device_put(copy)


def tensor_entries(folder: Path) -> dict[str, TensorEntry]:
    """Every tensor of a folder's weights, by its key in the files."""
    for name, reader in _READERS.items():
        if (folder / name).is_file():
            return reader(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_shards(index, reader)
    present = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_file())) or "nothing"
    raise CheckpointError(
        f"{folder} holds no weights that can be read: they are called {' or '.join(_READERS)} "
        f"(or the same in shards, with .index.json). The folder holds {present}"
    )


def _read_shards(index: Path, reader: Any) -> dict[str, TensorEntry]:
    weight_map = _read_weight_map(index)
    shards = {}
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name or name in ("", ".", ".."):
            raise CheckpointError(f"{index}: a shard is a file beside the index, {name!r} is a path elsewhere")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index}: the shard {name} is not there; fetch it, or the whole checkpoint again")
        shards[name] = reader(index.parent / name)
    absent = [key for key, name in weight_map.items() if key not in shards[name]]
    if absent:
        raise CheckpointError(f"{index} promises tensors that their shards do not hold: {_listed(absent)}")
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


def _match(
    folder: Path,
    entries: dict[str, TensorEntry],
    shapes: dict[str, tuple[int, ...]],
    config: BlenderbotConfig,
    *,
    headless: bool,
) -> dict[str, tuple[TensorEntry, bool]]:
    """Which entry fills which leaf, and whether it is transposed on the way."""
    targets = {key: target_of(key) for key in entries}
    sources: dict[str, tuple[TensorEntry, bool]] = {}
    problems: list[str] = []
    unexpected = []
    # Aliases come last, so that a leaf is filled from its own name wherever the file has it.
    for key, target in sorted(targets.items(), key=lambda item: item[1] is not None and item[1].alias):
        if target is None or target.path not in shapes:
            if not _may_be_left(target, config, headless):
                unexpected.append(key)
        elif problem := _misfit(key, entries[key], target, shapes[target.path]):
            problems.append(problem)
        elif target.path not in sources:
            sources[target.path] = entries[key], target.transposed
        elif not _equal(entries[key], sources[target.path][0]):
            problems.append(f"{key} should be another name of {target.path}, but its values differ")
    named = {target.path for target in targets.values() if target}
    missing = [source_name(path) for path in shapes if path not in named and path != _OPTIONAL]
    if missing:
        problems.insert(0, f"missing: {_listed(missing)}")
    if unexpected:
        problems.insert(0, f"unexpected: {_listed(unexpected)}")
    if problems:
        raise CheckpointError(f"the weights in {folder} do not fit its config.json:\n  " + "\n  ".join(problems))
    return sources


def _may_be_left(target: Target | None, config: BlenderbotConfig, headless: bool) -> bool:
    if target is None:
        return False
    return is_leftover(target.path, config) or (headless and target.path == _OPTIONAL)


def _misfit(key: str, entry: TensorEntry, target: Target, shape: tuple[int, ...]) -> str | None:
    stored = shape[::-1] if target.transposed else shape
    if entry.shape != stored:
        return f"{key} has shape {list(entry.shape)}, the configuration asks for {list(stored)}"
    # bfloat16 is no subtype of numpy's floating, but is of kind "V" there.
    if entry.dtype.kind not in "fV":
        return f"{key} holds {entry.dtype}, weights are floating point"
    return None


def _equal(one: TensorEntry, other: TensorEntry) -> bool:
    if (one.path, one.offset, one.strides) == (other.path, other.offset, other.strides):
        return True
    return bool(np.array_equal(one.read(), other.read()))


def _listed(names: list[str], most: int = 1000) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
