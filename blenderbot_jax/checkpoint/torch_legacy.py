"""PyTorch's legacy checkpoints (`torch.save` before version 1.6), read without PyTorch and without running a pickle.

Such a file is five pickles and the storages in a row: a magic number, a protocol version, facts about the machine, the
state dict, the list of the storages' keys, and then for each key the number of elements (8 bytes) and their bytes.

Source: torch/serialization.py (`_legacy_save`, `_legacy_load`).
"""

import os
import struct
from pathlib import Path
from typing import BinaryIO, NoReturn

from blenderbot_jax.checkpoint.pickle_data import interpret_next
from blenderbot_jax.checkpoint.tensor_file import CheckpointError, TensorEntry, is_count, quote
from blenderbot_jax.checkpoint.torch_state import (
    DAMAGED,
    MAX_PICKLE_BYTES,
    OTHER_FILE,
    RESAVE,
    StateDict,
    Storage,
    entries_of,
)

MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_COUNT = struct.Struct("<q")


def read_torch_legacy(path: str | os.PathLike[str], part: str | None = None) -> dict[str, TensorEntry]:
    """Read and check the table of contents of a legacy PyTorch checkpoint that holds a plain state dict.

    Args:
        path: the file, usually `pytorch_model.bin`.
        part: as in `read_torch`.

    Returns:
        The entries by name, in the order of the state dict. Tied tensors have equal entries.

    Raises:
        CheckpointError: the file is damaged, hostile, or holds more than tensors by name; the message names the file,
            the tensor or symbol, and the rule.
        OSError: the file cannot be opened.
    """
    with open(path, "rb") as file:
        return _Legacy(Path(path), file, part).entries()


class _Legacy:
    """One pass over the file, from the first pickle to the last storage."""

    def __init__(self, path: Path, file: BinaryIO, part: str | None):
        self._path = path
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self._state = StateDict(path, part)
        self._storages: dict[str, Storage] = {}

    def entries(self) -> dict[str, TensorEntry]:
        self._check_preamble()
        where = f"{self._path}: state dict"
        state = self._state
        value = interpret_next(self._file, MAX_PICKLE_BYTES, where, state.symbols, self._storage, state.unread)
        views = self._state.views(value)
        return entries_of(self._path, views, self._positions().__getitem__)

    def _check_preamble(self) -> None:
        if (magic := self._plain("magic number")) != MAGIC:
            raise self._refusal(f"must begin with the magic number of PyTorch's files, not {quote(magic)}", OTHER_FILE)
        if (version := self._plain("protocol version")) != _PROTOCOL:
            raise self._refusal(f"must have protocol version {_PROTOCOL}, has {quote(version)}", RESAVE)
        system = self._plain("system information")
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise self._refusal("was not written on a little-endian machine, only those files are read", RESAVE)

    def _plain(self, what: str) -> object:
        """The next pickle, which may name nothing."""

        def refuse(reference: object) -> NoReturn:
            raise self._refusal(f"the {what} must be plain values, it refers to {quote(reference)}", DAMAGED)

        return interpret_next(self._file, MAX_PICKLE_BYTES, f"{self._path}: {what}", {}, refuse)

    def _storage(self, reference: object) -> Storage:
        key, dtype, count, part = self._state.storage(reference, 6)
        if not is_count(count) or count * dtype.itemsize > self._size:
            rule = f"storage {key!r} must lie in the file's {self._size} bytes, it is said to have {quote(count)}"
            raise self._refusal(f"{rule} elements of {dtype.itemsize} bytes", DAMAGED)
        storage = Storage(key, dtype, count)
        if self._storages.setdefault(key, storage) != storage:
            raise self._refusal(f"storage {key!r} is described in two ways", DAMAGED)
        return storage if part is None else self._part(storage, part)

    def _part(self, storage: Storage, part: object) -> Storage:
        """For (key, offset, number of elements): old files hold storages that are parts of others."""
        _, first, count = part if isinstance(part, tuple) and len(part) == 3 else (None, None, None)
        if not is_count(first) or not is_count(count) or first + count > storage.count:
            raise self._refusal(f"a part of storage {storage.key!r} must lie within its {storage.count}", DAMAGED)
        return Storage(storage.key, storage.dtype, count, first)

    def _positions(self) -> dict[str, int]:
        """Where the bytes of each storage begin, by its key."""
        keys = self._plain("list of storages")
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise self._refusal(f"the list of storages must be a list of keys, it is {quote(keys)}", DAMAGED)
        if len(keys) != len(self._storages) or set(keys) != self._storages.keys():
            rule = f"the list must name the {len(self._storages)} storages that tensors use, once each"
            raise self._refusal(f"{rule}, it has {len(keys)} keys", DAMAGED)
        positions = {}
        for key in keys:
            positions[key] = self._position(self._storages[key])
        if self._file.tell() != self._size:
            rule = f"must end with its last storage, at byte {self._file.tell()}, not at byte {self._size}"
            raise self._refusal(rule, DAMAGED)
        return positions

    def _position(self, storage: Storage) -> int:
        """Where the bytes of the storage begin that comes next in the file; leaves the file behind them."""
        raw = self._file.read(_COUNT.size)
        if raw != _COUNT.pack(storage.count):
            rule = f"storage {storage.key!r} must begin with its number of elements, {storage.count}"
            raise self._refusal(f"{rule}, begins with {quote(raw)}", DAMAGED)
        begin = self._file.tell()
        end = begin + storage.count * storage.dtype.itemsize
        if end > self._size:
            raise self._refusal(f"storage {storage.key!r} must end within {self._size} bytes, ends at {end}", DAMAGED)
        self._file.seek(end)
        return begin

    def _refusal(self, rule: str, way_out: str) -> CheckpointError:
        return self._state.refusal(rule, way_out)
