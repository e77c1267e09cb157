"""Flax weights (`flax_model.msgpack`), read tensor by tensor without building what the file describes.

Such a file is one MessagePack value: maps within maps whose keys spell the path of each parameter, and at the end of
each path an extension of type 1, which holds (shape, name of the dtype, bytes). The walk below steps over those bytes
and notes where they lie. Whatever else MessagePack can express has no place among weights and is refused by name.

Sources: flax/serialization.py (`_ndarray_to_bytes`, `_MsgpackExtType`); the MessagePack specification,
https://github.com/msgpack/msgpack/blob/master/spec.md.
"""

import os
import struct
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np

from blenderbot_jax.checkpoint.tensor_file import CheckpointError, TensorEntry, is_shape, quote

_DTYPES = {
    **{name: np.dtype(name).newbyteorder("<") for name in ("float64", "float32", "float16")},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    # Read so that a stray counter or mask can be listed and refused by its name.
    **{name: np.dtype(name).newbyteorder("<") for name in ("int64", "int32", "int16", "int8", "uint8", "bool")},
}
_ROOTS = frozenset({"model", "final_logits_bias", "lm_head", "shared", "encoder", "decoder"})
_CHUNKED = "__msgpack_chunked_array__"
_MAX_DEPTH = 32  # the deepest parameter lies 7 maps down
_MAX_ITEMS = 1_000_000  # the largest published model has about a thousand
_MAX_TEXT = 1000

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # flax's extension types
_EXTENSION_NAMES = {_COMPLEX: "a complex number", _SCALAR: "a numpy scalar"}

# What a value is, and how its length is stored: in the first byte (an int), or in bytes that follow it (a struct code).
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_LENGTH_CODES = {
    "map": {0xDE: ">H", 0xDF: ">I"},
    "array": {0xDC: ">H", 0xDD: ">I"},
    "text": {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"},
    "bytes": {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"},
    "extension": {0xC7: ">B", 0xC8: ">H", 0xC9: ">I"},
}
_LENGTH_MASKS = {"map": (0xF0, 0x80), "array": (0xF0, 0x90), "text": (0xE0, 0xA0)}
_INTEGERS = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}


def read_flax(path: str | os.PathLike[str]) -> dict[str, TensorEntry]:
    """Read and check the table of contents of a file of Flax weights.

    Args:
        path: the file, usually `flax_model.msgpack`, or one shard of it.

    Returns:
        The entries by the path of the parameter, joined by "/", in the order of the file. Kernels are [in, out], as in
        the parameter tree.

    Raises:
        CheckpointError: the file is damaged or hostile, or holds more than arrays by name; the message names the file,
            the parameter and the rule.
        OSError: the file cannot be opened.
    """
    with open(path, "rb") as file:
        return _Walk(Path(path), file).entries()


class _Walk:
    """One pass over the file: where it stands, and the arrays met so far."""

    def __init__(self, path: Path, file: BinaryIO):
        self._path = path
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self._entries: dict[str, TensorEntry] = {}
        self._items = 0

    def entries(self) -> dict[str, TensorEntry]:
        """Follow the one value that the file holds."""
        kind, length = self._header("the file")
        if kind != "map":
            raise self._refusal(f"must begin with a map of parameters, begins with {_a(kind)}")
        self._map((), length)
        if self._file.tell() != self._size:
            raise self._refusal(f"{self._size - self._file.tell()} bytes follow the parameters")
        return self._entries

    def _map(self, parents: tuple[str, ...], length: int) -> None:
        if len(parents) >= _MAX_DEPTH:
            raise self._refusal(f"maps may lie {_MAX_DEPTH} deep, {quote('/'.join(parents))} goes on")
        names = set()
        for _ in range(length):
            name = self._key(parents)
            if name in names:
                raise self._refusal(f"{quote('/'.join((*parents, name)))} is there twice")
            names.add(name)
            self._value((*parents, name))

    def _key(self, parents: tuple[str, ...]) -> str:
        self._items += 1
        if self._items > _MAX_ITEMS:
            raise self._refusal(f"weights have fewer than {_MAX_ITEMS} names, this file goes on")
        where = f"a key in {quote('/'.join(parents))}" if parents else "a key"
        kind, length = self._header(where)
        if kind != "text":
            raise self._refusal(f"{where} must be a text, it is {_a(kind)}")
        name = self._text(length, where)
        if not name or "/" in name:
            raise self._refusal(f"{where} must be a name without slashes, it is {quote(name)}")
        if name == _CHUNKED:
            rule = f"{quote('/'.join(parents))} is an array in chunks, which only arrays over 1 GB are"
            raise self._refusal(rule, "load it with flax and save it as safetensors")
        if not parents and name not in _ROOTS:
            rule = f"holds {quote(name)}, parameters begin with {', '.join(sorted(_ROOTS))}"
            raise self._refusal(rule, "save the parameters alone: no optimiser state, nothing around them")
        return name

    def _value(self, names: tuple[str, ...]) -> None:
        where = quote("/".join(names))
        kind, length = self._header(where)
        if kind == "map":
            self._map(names, length)
        elif kind == "extension":
            self._entries["/".join(names)] = self._array(where, length)
        else:
            raise self._refusal(f"{where} must be an array of numbers or a map of them, it is {_a(kind)}")

    def _array(self, where: str, length: int) -> TensorEntry:
        """The entry for an extension of `length` bytes; leaves the file behind it."""
        (code,) = struct.unpack("b", self._take(1, where))
        if code != _ARRAY:
            found = _EXTENSION_NAMES.get(code, f"an extension of type {code}")
            raise self._refusal(f"{where} must be an array of numbers or a map of them, it is {found}")
        end = self._file.tell() + length
        if end > self._size:
            raise self._refusal(f"{where} takes {length} bytes, the file ends after {self._size - end + length}")
        if self._header(where) != ("array", 3):
            raise self._refusal(f"{where} must hold shape, dtype and bytes")
        shape, dtype = self._shape(where), self._dtype(where)
        kind, size = self._header(where)
        entry = TensorEntry(self._path, dtype, shape, self._file.tell())
        if kind != "bytes" or size != entry.nbytes:
            rule = f"{dtype} of shape {list(shape)} takes {entry.nbytes} bytes, here are {quote(size)} of {kind}"
            raise self._refusal(f"{where}: {rule}")
        if entry.offset + size != end:
            raise self._refusal(f"{where}: the bytes of the array must end with it")
        self._file.seek(end)
        return entry

    def _shape(self, where: str) -> tuple[int, ...]:
        kind, length = self._header(where)
        # A shape of many sizes is refused below; numpy's limit is 64.
        sizes = [self._integer(where) for _ in range(min(length, 65))] if kind == "array" else None
        if not is_shape(sizes):
            raise self._refusal(f"{where}: the shape must be a list of sizes that an array can have")
        return tuple(sizes)

    def _dtype(self, where: str) -> np.dtype:
        kind, length = self._header(where)
        name = self._text(length, where) if kind == "text" else None
        dtype = _DTYPES.get(name or "")
        if dtype is None:
            rule = f"{where}: the dtype must be one of {', '.join(_DTYPES)}, it is {quote(name or kind)}"
            raise self._refusal(rule, "convert it to one of them and save it again")
        return dtype

    # What MessagePack is made of.

    def _header(self, where: str) -> tuple[str, int]:
        """What comes next, and its length: of bytes, or of items in an array or a map."""
        first = self._take(1, where)[0]
        for kind, (mask, pattern) in _LENGTH_MASKS.items():
            if first & mask == pattern:
                return kind, first & ~mask
        for kind, codes in _LENGTH_CODES.items():
            if code := codes.get(first):
                return kind, self._number(code, where)
        if first in _FIXED_EXTENSIONS:
            return "extension", _FIXED_EXTENSIONS[first]
        return "plain value", 0

    def _integer(self, where: str) -> int:
        first = self._take(1, where)[0]
        if first < 0x80:
            return first
        if first not in _INTEGERS:
            raise self._refusal(f"{where}: a size must be a whole number, zero or more")
        return self._number(_INTEGERS[first], where)

    def _text(self, length: int, where: str) -> str:
        if length > _MAX_TEXT:
            raise self._refusal(f"{where}: a name may take {_MAX_TEXT} bytes, it takes {length}")
        try:
            return self._take(length, where).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._refusal(f"{where}: a name must be UTF-8: {error.reason}") from None

    def _number(self, code: str, where: str) -> int:
        return struct.unpack(code, self._take(struct.calcsize(code), where))[0]

    def _take(self, count: int, where: str) -> bytes:
        taken = self._file.read(count)
        if len(taken) < count:
            raise self._refusal(f"is cut off in {where}")
        return taken

    def _refusal(self, rule: str, way_out: str = "the file is damaged: download or save it again") -> CheckpointError:
        return CheckpointError(f"{self._path}: {rule}; {way_out}")


def _a(kind: str) -> str:
    return {"array": "an array of values", "extension": "an extension", "bytes": "bytes"}.get(kind, f"a {kind}")
