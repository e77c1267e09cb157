"""PyTorch's zip checkpoints (`torch.save` since version 1.6), read without PyTorch and without running their pickle.

Such a file is an uncompressed zip archive: `<prefix>/data.pkl` pickles the state dict, in which every tensor is a call
of `_rebuild_tensor_v2` on a storage, and `<prefix>/data/<key>` holds the bytes of one storage. `pickle_data` reads the
pickle as data; the few functions a state dict calls are replaced by the checks below, which turn each tensor into a
`TensorEntry`: a view of bytes that are known to lie in the file.

The archive's checksums are not compared: that would read every weight twice, and PyTorch need not write true ones
(`torch.serialization.set_crc32_options`).

Sources: torch/serialization.py (`_save`), torch/_utils.py (`_rebuild_tensor_v2`); APPNOTE.TXT 4.3.7 for the zip format.
"""

import math
import os
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from re import fullmatch

import ml_dtypes
import numpy as np

from blenderbot_jax.checkpoint.pickle_data import Symbol, interpret
from blenderbot_jax.checkpoint.tensor_file import CheckpointError, TensorEntry, is_count, is_shape, quote, span

_STORAGE_DTYPES = {
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}
_MAX_PICKLE_BYTES = 64 * 2**20
_LEGACY_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")  # opens every file of the format before the zip one
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature ... length of the name, length of the extra field
_ENCRYPTED = 0x1

# The ways out that error messages end with.
_DAMAGED = "the file is damaged: download or save it again"
_OTHER_FILE = "give a file written by torch.save, or download this one again"
_RESAVE = "re-save it with a current PyTorch: `torch.save(torch.load(path, weights_only=True), path)`"
_SAVE_STATE_DICT = "save the weights alone: `torch.save(model.state_dict(), path)`"


def read_torch_zip(path: str | os.PathLike[str]) -> dict[str, TensorEntry]:
    """Read and check the table of contents of a PyTorch zip checkpoint that holds a plain state dict.

    Args:
        path: the file, usually `pytorch_model.bin`.

    Returns:
        The entries by name, in the order of the state dict. Tied tensors have equal entries.

    Raises:
        CheckpointError: the file is damaged, hostile, in the legacy format, or holds more than tensors by name; the
            message names the file, the tensor or symbol, and the rule.
        OSError: the file cannot be opened.
    """
    archive = _Archive(Path(path))
    tensors = _Tensors(archive)
    symbols = {
        "torch._utils._rebuild_tensor_v2": tensors.rebuild,
        "torch._utils._rebuild_parameter": tensors.rebuild_parameter,
        **dict.fromkeys(_STORAGE_DTYPES),
    }
    state = interpret(archive.pickle(), f"{path}: data.pkl", symbols, tensors.storage)
    if not isinstance(state, dict):
        raise archive.refusal(f"must hold a state dict, holds {quote(state)}", _SAVE_STATE_DICT)
    for name, value in state.items():
        if not isinstance(value, TensorEntry):
            rule = f"entry {quote(name)} must be a tensor, as every value of a state dict, it is {quote(value)}"
            raise archive.refusal(rule, _SAVE_STATE_DICT)
    return dict(state)


@dataclass(frozen=True)
class _Storage:
    """The elements of a storage record: what tensors are views of."""

    key: str
    dtype: np.dtype
    offset: int
    count: int


class _Tensors:
    """What stands in for the calls in a state dict: checks of their arguments that end in entries."""

    def __init__(self, archive: "_Archive"):
        self._archive = archive

    def storage(self, reference: object) -> _Storage:
        """For the persistent id ("storage", type, key, location, number of elements)."""
        if not isinstance(reference, tuple) or len(reference) != 5 or reference[0] != "storage":
            raise self._archive.refusal(f"a storage is named by five values, not by {quote(reference)}", _RESAVE)
        _, kind, key, _, count = reference
        dtype = _STORAGE_DTYPES.get(kind.name) if isinstance(kind, Symbol) else None
        if dtype is None:
            raise self._archive.refusal(f"a storage has one of the types {', '.join(_STORAGE_DTYPES)}", _RESAVE)
        # Keys are numbers in practice; a path would be harmless here, but nothing honest writes one.
        if not isinstance(key, str) or not fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", key) or ".." in key:
            raise self._archive.refusal(f"the key of a storage must be a plain name, it is {quote(key)}", _DAMAGED)
        offset, size = self._archive.locate(f"data/{key}")
        if not is_count(count) or count * dtype.itemsize != size:
            wanted = f"{quote(count)} elements of {dtype.itemsize} bytes"
            raise self._archive.refusal(f"storage {key!r} must hold {wanted}, its record has {size} bytes", _DAMAGED)
        return _Storage(key, dtype, offset, count)

    def rebuild(self, arguments: tuple[object, ...]) -> TensorEntry:
        """For _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata=None)."""
        if len(arguments) not in {6, 7}:
            raise self._archive.refusal(f"a tensor is built from 6 or 7 values, not {len(arguments)}", _RESAVE)
        storage, offset, shape, strides, requires_grad, hooks = arguments[:6]
        if not isinstance(storage, _Storage):
            raise self._archive.refusal(f"a tensor must be a view of a storage, not of {quote(storage)}", _RESAVE)
        # Metadata can negate or conjugate the values, so anything in it must not be passed over.
        if not _is_plain(requires_grad, hooks) or (len(arguments) == 7 and arguments[6] not in (None, {})):
            rule = "a tensor must have no hooks and no metadata such as a pending negation"
            raise self._archive.refusal(rule, "save it after `.detach().resolve_neg()`")
        if not is_shape(shape) or not isinstance(strides, tuple) or len(strides) != len(shape):
            raise self._archive.refusal("a tensor needs one size and one stride per dimension", _DAMAGED)
        if not is_count(offset) or not all(is_count(stride) for stride in strides):
            rule = f"of storage {storage.key!r}: offset and strides must be whole numbers, zero or more"
            raise self._archive.refusal(rule, _DAMAGED)
        return self._view(storage, offset, tuple(shape), strides)

    def _view(self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> TensorEntry:
        """A view whose first and last element lie within its storage."""
        count = math.prod(shape)
        end = offset + (span(shape, strides) if count else 0)
        if end > storage.count:
            rule = f"shape {shape}, strides {strides} from element {offset} reach element {end}"
            raise self._archive.refusal(f"{rule}, storage {storage.key!r} has {storage.count}", _DAMAGED)
        # A stride of 0 repeats elements: a file of a few bytes could ask for any amount of memory.
        if count > storage.count:
            rule = f"shape {shape} has more elements than its storage {storage.key!r}, {storage.count}"
            raise self._archive.refusal(rule, "save it after `.contiguous()`")
        first = storage.offset + offset * storage.dtype.itemsize
        return TensorEntry(self._archive.path, storage.dtype, shape, first, _element_strides(shape, strides))

    def rebuild_parameter(self, arguments: tuple[object, ...]) -> TensorEntry:
        """For _rebuild_parameter(tensor, requires_grad, hooks)."""
        tensor, requires_grad, hooks = arguments if len(arguments) == 3 else (None, None, None)
        if not isinstance(tensor, TensorEntry) or not _is_plain(requires_grad, hooks):
            raise self._archive.refusal("a parameter is a tensor, a bool and no hooks", _RESAVE)
        return tensor


def _is_plain(requires_grad: object, hooks: object) -> bool:
    return isinstance(requires_grad, bool) and isinstance(hooks, OrderedDict) and not hooks


def _element_strides(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...] | None:
    """Strides as a TensorEntry states them: None for row-major, 0 in a dimension of one element or none."""
    row_major = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    moving = tuple(stride if size > 1 else 0 for size, stride in zip(shape, strides, strict=True))
    wanted = tuple(stride if size > 1 else 0 for size, stride in zip(shape, row_major, strict=True))
    return None if 0 in shape or moving == wanted else moving


class _Archive:
    """The zip archive: where each of its records lies, every record uncompressed and within the file."""

    def __init__(self, path: Path):
        self.path = path
        self._file_size = path.stat().st_size
        self._records = self._read_directory()
        prefixes = [name.removesuffix("/data.pkl") for name in self._records if fullmatch(r"[^/]+/data\.pkl", name)]
        if len(prefixes) != 1:
            raise self.refusal(f"must hold one <name>/data.pkl, holds {len(prefixes)}", _OTHER_FILE)
        self._prefix = prefixes[0]
        if f"{self._prefix}/byteorder" in self._records and self._read("byteorder", 16) != b"little":
            raise self.refusal("was written on a big-endian machine, only little-endian files are read", _RESAVE)

    def pickle(self) -> bytes:
        """The pickled state dict."""
        return self._read("data.pkl", _MAX_PICKLE_BYTES)

    def locate(self, name: str) -> tuple[int, int]:
        """The position and the size in bytes of a record's content in the file.

        The directory at the end of an archive only points to the header before each record, whose own length is part of
        where the content begins.
        """
        record = self._records.get(f"{self._prefix}/{name}")
        if record is None:
            raise self.refusal(f"record {quote(name)} is missing", _DAMAGED)
        if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
            raise self.refusal(f"record {quote(name)} is compressed, PyTorch never writes one", _RESAVE)
        # A damaged directory can point anywhere, before the beginning too.
        inside = 0 <= record.header_offset <= self._file_size
        header = self._bytes(record.header_offset, _LOCAL_HEADER.size) if inside else b""
        if len(header) != _LOCAL_HEADER.size or not header.startswith(b"PK\3\4") or record.flag_bits & _ENCRYPTED:
            raise self.refusal(f"record {quote(name)} has no plain zip header before it", _DAMAGED)
        _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        begin = record.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        if begin + record.file_size > self._file_size:
            rule = f"record {quote(name)} must end within the file's {self._file_size} bytes"
            raise self.refusal(f"{rule}, ends at {begin + record.file_size}", _DAMAGED)
        return begin, record.file_size

    def refusal(self, rule: str, way_out: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {rule}; {way_out}")

    def _read(self, name: str, limit: int) -> bytes:
        begin, size = self.locate(name)
        if size > limit:
            raise self.refusal(f"record {quote(name)} may take {limit} bytes, has {size}", _DAMAGED)
        return self._bytes(begin, size)

    def _bytes(self, begin: int, size: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(begin)
            return file.read(size)

    def _read_directory(self) -> dict[str, zipfile.ZipInfo]:
        head = self._bytes(0, 32)
        if _LEGACY_MAGIC in head:
            raise self.refusal("is in the legacy container (PyTorch before 1.6)", _RESAVE)
        if not head.startswith(b"PK"):
            raise self.refusal(f"must be a zip archive, begins with {quote(head)}", _OTHER_FILE)
        try:
            with zipfile.ZipFile(self.path) as archive:
                records = archive.infolist()
        # zipfile lets errors of the modules it decodes with escape on damaged directories.
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OSError) as error:
            raise self.refusal(f"is a zip archive that is cut off or damaged ({error})", _DAMAGED) from None
        by_name = {record.filename: record for record in records}
        if len(by_name) != len(records):
            raise self.refusal("holds two records of one name", _DAMAGED)
        return by_name
