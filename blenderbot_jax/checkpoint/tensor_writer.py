"""Writing a safetensors file tensor by tensor, so that no more than one of them is in memory at a time."""

import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from blenderbot_jax.checkpoint.tensor_file import SAFETENSORS_DTYPES

_CODES = {dtype: code for code, dtype in SAFETENSORS_DTYPES.items()}
_HEADER_ALIGNMENT = 8
# The safetensors library writes dtypes in this order, and so keeps every tensor aligned to its own width.
_ORDER = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")


@dataclass(frozen=True)
class Pending:
    """A tensor still to be written: what the header says of it, and how to get its values when its turn comes."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """The bytes it takes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def transposed(self) -> "Pending":
        """The same values with the dimensions the other way round."""
        return Pending(self.shape[::-1], self.dtype, lambda: self.read().T)


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Pending],
    on_progress: Callable[[int], object] = lambda nbytes: None,
) -> None:
    """Write the file that the safetensors library would write, byte for byte, without holding all of it.

    Args:
        path: give a temporary name: a file that breaks off half-way is no checkpoint.
        tensors: by name; values of another dtype are cast to the one stated.
        on_progress: called after each tensor with its bytes.

    Raises:
        OSError: the file cannot be written.

    Source: https://github.com/huggingface/safetensors#format
    """
    names = sorted(tensors, key=lambda name: (_ORDER.index(_CODES[tensors[name].dtype]), name))
    with open(path, "wb") as file:
        file.write(_header({name: tensors[name] for name in names}))
        for name in names:
            tensor = tensors[name]
            array = np.asarray(tensor.read().astype(tensor.dtype, copy=False), order="C")
            if array.shape != tensor.shape:
                raise ValueError(f"{name} was announced as {list(tensor.shape)}, its values are {list(array.shape)}")
            file.write(array.reshape(-1).view(np.uint8).data)
            on_progress(tensor.nbytes)


def _header(tensors: Mapping[str, Pending]) -> bytes:
    fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, tensor in tensors.items():
        offsets = [position, position + tensor.nbytes]
        fields[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        position = offsets[1]
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    return struct.pack("<Q", len(text)) + text
