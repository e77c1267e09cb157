"""Tensors in files: where each one lies, and reading it without mapping or copying the rest.

A reader of a format (`read_safetensors` here, `torch_file.read_torch`, `flax_file.read_flax`) checks the whole table of
contents first and returns one `TensorEntry` per tensor; the bytes are read later, one tensor at a time, so that a
loader never holds more than the tensor at hand beside the parameters it builds.
"""

import json
import math
import os
import reprlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import ml_dtypes
import numpy as np

# The integer types are read so that a stray buffer (position ids, masks) can be listed and refused by its name.
SAFETENSORS_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
_MAX_COUNT = 2**48  # no file is larger, and eight-byte elements still fit numpy's 63-bit sizes
_MAX_RANK = 64  # numpy's own limit


class CheckpointError(ValueError):
    """A weights file is damaged, hostile, or of a kind that is not supported."""


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies in a file, and how to read it.

    The readers of this package only make entries that lie within their file; `dtype` is the little-endian one on disk,
    `offset` the absolute position in bytes of the first element, and `strides` counts elements (None: row-major).
    """

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...] | None = None

    @property
    def nbytes(self) -> int:
        """The size of the array that `read` returns."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Read the tensor, and only its bytes, into a new contiguous array.

        Returns:
            An array of `shape` and `dtype` that shares memory with nothing.

        Raises:
            CheckpointError: the file has become shorter since its table of contents was read.
            OSError: the file cannot be opened.
        """
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        count = math.prod(self.shape) if self.strides is None else span(self.shape, self.strides)
        # Bytes, because fromfile knows no bfloat16; and no memory map, whose pages would count as resident.
        raw = np.fromfile(self.path, np.uint8, count=count * self.dtype.itemsize, offset=self.offset)
        if raw.size != count * self.dtype.itemsize:
            wanted = f"{count * self.dtype.itemsize} bytes from byte {self.offset}"
            raise CheckpointError(f"{self.path}: needs {wanted}, got {raw.size}; the file changed while it was read")
        flat = raw.view(self.dtype)
        if self.strides is None:
            return flat.reshape(self.shape)
        byte_strides = [stride * self.dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, byte_strides).copy()


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, TensorEntry]:
    """Read and check the table of contents of a safetensors file.

    Args:
        path: the file.

    Returns:
        The entries by name, in the order of the header.

    Raises:
        CheckpointError: the file breaks a rule of the format; the message names the file, the tensor and the rule.
        OSError: the file cannot be opened.

    Source: https://github.com/huggingface/safetensors#format
    """
    path = Path(path)
    header, data_start, data_size = _read_header(path)
    header.pop("__metadata__", None)
    entries = {name: _entry(path, name, fields, data_start, data_size) for name, fields in header.items()}
    _check_layout(path, entries, data_start, data_size)
    return entries


def span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """The number of elements from the first to the last one of a non-empty strided view, both included."""
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def is_count(value: object) -> TypeGuard[int]:
    """Whether a value from a file is a whole number, not a bool, that can count elements or bytes of a file."""
    return type(value) is int and 0 <= value <= _MAX_COUNT


def is_shape(value: object) -> TypeGuard[Sequence[int]]:
    """Whether a value from a file is a shape numpy can hold, zero sizes aside as numpy does."""
    if not isinstance(value, list | tuple) or len(value) > _MAX_RANK or not all(is_count(size) for size in value):
        return False
    return math.prod(max(size, 1) for size in value) <= _MAX_COUNT


def quote(value: object) -> str:
    """A value from a file as an error message can show it: one short line, whatever the value."""
    # reprlib follows lists, dicts and tuples to a bounded depth; of anything else the type says enough.
    plain = value is None or isinstance(value, bool | int | float | str | bytes)
    return _shorten.repr(value) if plain else f"a value of type {type(value).__name__}"


_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = 100


def _read_header(path: Path) -> tuple[dict[str, object], int, int]:
    """The header of a safetensors file as a dict, the position of the data after it, and their size."""
    with open(path, "rb") as file:
        file_size = os.fstat(file.fileno()).st_size
        prefix = file.read(8)
        if len(prefix) < 8:
            raise _damaged(path, f"a file begins with 8 bytes of header length, this one has {file_size} bytes in all")
        (length,) = struct.unpack("<Q", prefix)
        limit = min(file_size - 8, _MAX_HEADER_BYTES)
        if length > limit:
            raise _damaged(path, f"the header may take {limit} bytes in a file of {file_size}, it claims {length}")
        text = file.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError:
        raise _damaged(path, "the header must be JSON two levels deep, this one is nested without end") from None
    except ValueError as error:
        raise _damaged(path, f"the header must be JSON in UTF-8 without duplicate keys: {error}") from None
    if not isinstance(header, dict):
        raise _damaged(path, f"the header must be a JSON object, it is {quote(header)}")
    return header, 8 + length, file_size - 8 - length


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object as a dict; ValueError on a key met twice, where json would keep the last."""
    fields: dict[str, object] = {}
    for key, value in pairs:
        if key in fields:
            raise ValueError(f"{quote(key)} is there twice")
        fields[key] = value
    return fields


def _entry(path: Path, name: str, fields: object, data_start: int, data_size: int) -> TensorEntry:
    """One tensor's line of the header, checked on its own."""
    if not isinstance(fields, dict):
        raise _damaged(path, f"tensor {quote(name)}: must be a JSON object, it is {quote(fields)}")
    code, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    dtype = SAFETENSORS_DTYPES.get(code) if isinstance(code, str) else None
    if dtype is None:
        rule = f"dtype must be one of {', '.join(SAFETENSORS_DTYPES)}, it is {quote(code)}"
        raise CheckpointError(f"{path}: tensor {quote(name)}: {rule}; convert it to one of them and save it again")
    if not is_shape(shape):
        raise _damaged(path, f"tensor {quote(name)}: shape must be a list of sizes, it is {_short_json(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(is_count(offset) for offset in offsets):
        raise _damaged(path, f"tensor {quote(name)}: data_offsets must be [begin, end], is {_short_json(offsets)}")
    begin, end = offsets
    if not begin <= end <= data_size:
        raise _damaged(path, f"tensor {quote(name)}: data_offsets {offsets} must lie within the {data_size} data bytes")
    entry = TensorEntry(path, dtype, tuple(shape), data_start + begin)
    if end - begin != entry.nbytes:
        rule = f"{code} of shape {list(shape)} takes {entry.nbytes} bytes, data_offsets {offsets} give {end - begin}"
        raise _damaged(path, f"tensor {quote(name)}: {rule}")
    return entry


def _check_layout(path: Path, entries: dict[str, TensorEntry], data_start: int, data_size: int) -> None:
    """Refuse tensors that overlap, and bytes that belong to none: the format allows neither."""
    position = data_start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if entry.offset != position:
            relation = "overlaps the tensor before it" if entry.offset < position else "leaves a hole before it"
            place = f"begins at byte {entry.offset - data_start} of the data, must begin at {position - data_start}"
            raise _damaged(path, f"tensor {quote(name)}: {relation}: it {place}")
        position += entry.nbytes
    if position != data_start + data_size:
        raise _damaged(path, f"the tensors take {position - data_start} bytes, the file holds {data_size} after them")


def _short_json(value: object) -> str:
    """A value of the header for an error message; JSON is finite, so reprlib may look into it."""
    return _shorten.repr(value)


def _damaged(path: Path, rule: str) -> CheckpointError:
    return CheckpointError(f"{path}: {rule}; the file is damaged or no safetensors file: download or save it again")
