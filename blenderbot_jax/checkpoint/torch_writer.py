"""Writing a PyTorch checkpoint tensor by tensor, without PyTorch, so that no more than one of them is in memory.

The file is the zip archive that `torch.save` writes: a pickle of names, shapes and storages, and one record of bytes
for each storage. Records begin at multiples of 64 bytes, as PyTorch's own do, so that they can be mapped into memory.

Sources: torch/serialization.py (`_save`), caffe2/serialize/inline_container.cc (`kFieldAlignment`).
"""

import math
import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import BinaryIO

import ml_dtypes
import numpy as np

from blenderbot_jax.checkpoint.tensor_writer import Pending

_STORAGES = {
    np.dtype("<f8"): "DoubleStorage",
    np.dtype("<f4"): "FloatStorage",
    np.dtype("<f2"): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype("<i8"): "LongStorage",
}
_PREFIX = "archive"
_ALIGNMENT = 64
_LOCAL_HEADER_BYTES = 30
# What PyTorch calls the extra field that fills the header up.
_FILLER = struct.Struct("<2sH")
_NO_HOOKS = b"ccollections\nOrderedDict\n)R"


def write_torch(
    path: str | os.PathLike[str],
    state: Mapping[str, Pending],
    *,
    part: str,
    aliases: Mapping[str, str] | None = None,
    on_progress: Callable[[int], object] = lambda nbytes: None,
) -> None:
    """Write the file that `torch.save({part: state}, path)` would write, as far as a reader can tell.

    Args:
        path: give a temporary name: a file that breaks off half-way is no checkpoint.
        state: tensors by name, in the order they are to have; values of another dtype are cast to the one stated.
        part: the entry that holds them.
        aliases: further names, each of a tensor in `state`, with which it then shares its storage.
        on_progress: called after each tensor with its bytes.

    Raises:
        OSError: the file cannot be written.
    """
    with open(path, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        _record(file, archive, "data.pkl", _program(state, aliases or {}, part))
        _record(file, archive, "byteorder", b"little")
        for number, (name, tensor) in enumerate(state.items()):
            array = np.asarray(tensor.read().astype(tensor.dtype, copy=False), order="C")
            if array.shape != tensor.shape:
                raise ValueError(f"{name} was announced as {list(tensor.shape)}, its values are {list(array.shape)}")
            _record(file, archive, f"data/{number}", array.reshape(-1).view(np.uint8).data)
            on_progress(tensor.nbytes)
        _record(file, archive, "version", b"3\n")


def _record(file: BinaryIO, archive: zipfile.ZipFile, name: str, content: bytes | memoryview) -> None:
    info = zipfile.ZipInfo(f"{_PREFIX}/{name}")  # of 1980, so that the same weights make the same file
    info.file_size = len(content)
    begin = file.tell() + _LOCAL_HEADER_BYTES + len(info.filename) + _FILLER.size
    filler = -begin % _ALIGNMENT
    info.extra = _FILLER.pack(b"FB", filler) + b"Z" * filler
    with archive.open(info, "w") as record:
        record.write(content)


def _program(state: Mapping[str, Pending], aliases: Mapping[str, str], part: str) -> bytes:
    """The pickle, instruction by instruction: {part: OrderedDict of tensors}."""
    tensors = {name: _tensor(number, tensor) for number, (name, tensor) in enumerate(state.items())}
    # Each alias stands behind the tensor that it names.
    also = {name: [alias for alias, own in aliases.items() if own == name] for name in tensors}
    entries = b"".join(_text(key) + tensors[name] for name in tensors for key in (name, *also[name]))
    return b"\x80\x02}" + _text(part) + _NO_HOOKS + b"(" + entries + b"us."


def _tensor(number: int, tensor: Pending) -> bytes:
    count = math.prod(tensor.shape)
    kind = f"ctorch\n{_STORAGES[tensor.dtype]}\n".encode()
    storage = _tuple(_text("storage"), kind, _text(str(number)), _text("cpu"), _whole(count)) + b"Q"
    strides = (math.prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape)))
    shape = _tuple(*map(_whole, tensor.shape)), _tuple(*map(_whole, strides))
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + _tuple(storage, _whole(0), *shape, b"\x89", _NO_HOOKS) + b"R"


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def _whole(value: int) -> bytes:
    """A count: four bytes with a sign, or as many as it takes."""
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)
