"""Loading weights: compare the tensors of a folder with what the model expects, then read them one by one.

Everything that can be wrong is looked for first and reported at once; only then is a tensor read and placed.
"""

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from blenderbot_jax.aligned import aligned_copy
from blenderbot_jax.checkpoint.folder import listed, tensor_entries
from blenderbot_jax.checkpoint.names import (
    BIAS,
    EMBED_TOKENS,
    HEAD,
    SCALE,
    SHARED,
    Target,
    flatten,
    is_leftover,
    lacks_head,
    source_name,
    target_of,
    unflatten,
)
from blenderbot_jax.checkpoint.tensor_file import CheckpointError, TensorEntry
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.kernels import Int8Kernel

# Tensors that are read at a time.
_READERS = 4
# From a path in the tree, values as they were read, and a dtype, to the array where it is to lie.
Place = Callable[[str, np.ndarray, Any], jax.Array]


@dataclass(frozen=True)
class Leaf:
    """What fills one leaf of the parameter tree: a tensor of a file, or zeros where the file may lack it."""

    shape: tuple[int, ...]
    entry: TensorEntry | None = None
    transposed: bool = False
    scales: TensorEntry | None = None
    """[out] of a kernel in 8 bits, whose values are then integers."""

    def read(self, dtype: Any = None) -> Any:
        """The values in the tree's orientation; of a kernel in 8 bits, values and scales as they are stored.

        Args:
            dtype: of the values, which JAX then takes over as they lie; None: the file's own.
        """
        if self.entry is None:
            return np.zeros(self.shape, dtype or np.float32)
        array = self.entry.read()
        if self.scales is not None:
            return array, self.scales.read()
        array = array.T if self.transposed else array
        return array if dtype is None else aligned_copy(array, dtype)


def load_params(
    folder: Path,
    config: BlenderbotConfig,
    expected: Mapping[str, Any],
    dtype: Any,
    *,
    root: str = "",
    int8: bool = False,
    place: Place | None = None,
) -> dict[str, Any]:
    """Read a checkpoint's weights into a parameter tree.

    Kernels that are stored in 8 bits come as `Int8Kernel` leaves, whatever the dtype, and are never widened.

    Args:
        folder: holds `model.safetensors`, `pytorch_model.bin`, `flax_model.msgpack` or `model_int8.safetensors`, whole
            or in shards with index.
        config: the architecture.
        expected: the model's parameter tree with anything that has a `.shape` as leaves. What it has no place for at
            all, such as the encoder of a `BlenderbotForCausalLM`, is left in the file.
        dtype: storage of the result.
        root: where `expected` stands in the tree of the whole model ("model/" for the model without head).
        int8: quantise all kernels as they are read, as `quantize` does; only the one at hand is held in another form.
        place: puts each tensor where it is to lie, such as on a mesh; None: on the first device.

    Raises:
        CheckpointError: naming every tensor that is missing, unexpected, misshapen, or unequal to its alias.
    """
    leaves = find_leaves(folder, config, expected, root=root)
    if int8 and lacks_head(leaves):
        table = leaves[SHARED]
        leaves = {**leaves, HEAD: replace(table, shape=table.shape[::-1], transposed=not table.transposed)}

    def is_packed(path: str) -> bool:
        return int8 and path.endswith("/kernel") and leaves[path].scales is None

    def read(path: str) -> Any:
        # What is placed on a mesh or packed is cast there.
        return leaves[path].read(None if place or is_packed(path) else dtype)

    put = place or _place
    flat: dict[str, Any] = {}
    # The largest first: what reading it takes besides is gone again before the rest is there.
    order = sorted(leaves, key=lambda path: -math.prod(leaves[path].shape))
    # Only reading runs in threads: those do not know which device the caller has chosen.
    for path, array in zip(order, _ahead(read, order), strict=True):
        if leaves[path].scales is not None:
            values, scales = array
            flat[path] = _placed(path, values, scales, put)
        else:
            flat[path] = _packed(path, array, place) if is_packed(path) else put(path, array, dtype)
    return unflatten({path.removeprefix(root): flat[path] for path in leaves})


def _ahead(read: Callable[[str], Any], paths: Iterable[str]) -> Iterator[Any]:
    """What `read` gives of each path, in order, a few at a time: while one waits for the disk another is cast."""
    with ThreadPoolExecutor(_READERS) as pool:
        pending: deque[Future[Any]] = deque()
        for path in paths:
            pending.append(pool.submit(read, path))
            if len(pending) > _READERS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def pack(kernel: Any) -> Int8Kernel:
    """A kernel [in, out] in 8 bits. What this takes besides is gone when it returns, unless the kernel is traced."""
    # The transpose of a kernel that was read is the file's own form.
    return jax.block_until_ready(_pack_rows(kernel.T))


@jax.jit
def _pack_rows(rows: jax.Array) -> Int8Kernel:
    return Int8Kernel.from_rows(rows)


def find_leaves(
    folder: Path, config: BlenderbotConfig, expected: Mapping[str, Any], *, root: str = ""
) -> dict[str, Leaf]:
    """What `load_params` will read, by the path of each leaf in the tree of the whole model; no weight is read yet.

    Aliases are the exception: where a file repeats the embedding under other names, they are compared. So are the
    scales of kernels in 8 bits, which are looked through.
    """
    shapes = {root + path: tuple(leaf.shape) for path, leaf in flatten(dict(expected)).items()}
    return _match(folder, tensor_entries(folder), shapes, config)


def _packed(path: str, kernel: np.ndarray, place: Place | None) -> Int8Kernel:
    made = pack(kernel)
    return made if place is None else _placed(path, np.asarray(made.values), np.asarray(made.scales), place)


def _placed(path: str, values: np.ndarray, scales: np.ndarray, place: Place) -> Int8Kernel:
    return Int8Kernel(place(f"{path}/values", values, np.int8), place(f"{path}/scales", scales, np.float32))


def _place(path: str, array: np.ndarray, dtype: Any) -> jax.Array:
    """On the first device, whatever the path."""
    del path
    return jax.device_put(np.asarray(array, dtype))


def _match(
    folder: Path, entries: dict[str, TensorEntry], shapes: dict[str, tuple[int, ...]], config: BlenderbotConfig
) -> dict[str, Leaf]:
    """Which entry fills which leaf, in the order of the leaves."""
    scales = _scales(entries)
    targets = {key: _target(key, entry, config) for key, entry in entries.items() if key not in scales}
    if lacks_head(shapes) and any(target and target.path == HEAD for target in targets.values()):
        # In 8 bits the head is a copy, for the embedding stays as it is.
        shapes = {**shapes, HEAD: shapes[SHARED][::-1]}
    unexpected = [key for key, target in targets.items() if not _has_place(target, shapes, config)]
    found: dict[str, Leaf] = {}
    problems: list[str] = []
    filling = _in_order(targets, shapes)
    for key, target in filling:
        leaf = Leaf(shapes[target.path], entries[key], target.transposed, scales.get(key + SCALE))
        if problem := _misfit(key, entries[key], leaf):
            problems.append(problem)
        elif target.path not in found:
            found[target.path] = leaf
        elif not _equal(leaf, found[target.path]):
            problems.append(f"{key} should be another name of {target.path}, but its values differ")
    named = {target.path for _, target in filling}
    missing = [path for path in shapes if path not in named and path != BIAS]
    if missing:
        paths = any("/" in key for key in entries)
        problems.insert(0, f"missing: {listed(missing if paths else [source_name(path) for path in missing])}")
    if unexpected:
        problems.insert(0, f"unexpected: {listed(unexpected)}")
    if problems:
        raise CheckpointError(f"the weights in {folder} do not fit its config.json:\n  " + "\n  ".join(problems))
    return {path: found.get(path, Leaf(shape)) for path, shape in shapes.items()}


def _scales(entries: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """The tensors that scale another one, which is there and holds integers, by their own keys."""
    int8 = (key for key, entry in entries.items() if entry.dtype == np.int8)
    return {key + SCALE: entries[key + SCALE] for key in int8 if key + SCALE in entries}


def _target(key: str, entry: TensorEntry, config: BlenderbotConfig) -> Target | None:
    """As `target_of`; a head in 8 bits is not the embedding, even if the two are tied."""
    return target_of(key, tied=config.tie_word_embeddings and entry.dtype != np.int8)


def _has_place(target: Target | None, paths: Collection[str], config: BlenderbotConfig) -> bool:
    """Whether a tensor belongs to the tree, or to a part of the whole model that this tree does without."""
    if target is None:
        return False
    if target.path in paths or is_leftover(target.path, config):
        return True
    part = target.path if target.path == BIAS else "/".join(target.path.split("/")[:2])
    return not any(path == part or path.startswith(f"{part}/") for path in paths)


def _in_order(targets: Mapping[str, Target | None], paths: Collection[str]) -> list[tuple[str, Target]]:
    """The keys that fill a leaf, each with its target; aliases last, so that a leaf's own name comes first."""
    filling = [(key, target) for key, target in targets.items() if target and target.path in paths]
    filling.sort(key=lambda item: item[1].alias)
    named = {target.path for _, target in filling}
    shared = [(key, target) for key, target in targets.items() if target and target.path == SHARED]
    # Up to version 4, transformers untied the head alone: encoder and decoder then share a table, stored once.
    for path in EMBED_TOKENS.values():
        if path in paths and path not in named:
            filling += [(key, replace(target, path=path)) for key, target in shared]
    return filling


def _misfit(key: str, entry: TensorEntry, leaf: Leaf) -> str | None:
    stored = leaf.shape[::-1] if leaf.transposed else leaf.shape
    if entry.shape != stored:
        return f"{key} has shape {list(entry.shape)}, the configuration asks for {list(stored)}"
    if entry.dtype == np.int8 and leaf.transposed:
        return _scales_misfit(key, leaf)
    # bfloat16 is no subtype of numpy's floating, but is of kind "V" there.
    if entry.dtype.kind not in "fV":
        return f"{key} holds {entry.dtype}, weights are floating point"
    return None


def _scales_misfit(key: str, leaf: Leaf) -> str | None:
    if leaf.scales is None:
        return f"{key} holds int8, weights are floating point, or else have scales beside them: {key}{SCALE} is missing"
    if leaf.scales.dtype != np.float32 or leaf.scales.shape != leaf.shape[1:]:
        found = f"{leaf.scales.dtype} of shape {list(leaf.scales.shape)}"
        return f"{key}{SCALE} is {found}, scales are float32, one for each output channel: {list(leaf.shape[1:])}"
    values = leaf.scales.read()
    if not (np.isfinite(values) & (values > 0)).all():
        return f"{key}{SCALE} holds {values[~(np.isfinite(values) & (values > 0))][0]}, scales are finite and above 0"
    return None


def _equal(one: Leaf, other: Leaf) -> bool:
    if one == other:
        return True
    scales = [leaf.scales.read() for leaf in (one, other) if leaf.scales is not None]
    return len(scales) != 1 and np.array_equal(one.read(), other.read()) and np.array_equal(scales[:1], scales[1:])
