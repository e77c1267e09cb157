"""PyTorch's weight files (`pytorch_model.bin`): which of the two containers one is in, told by its content."""

import os

from blenderbot_jax.checkpoint.tensor_file import CheckpointError, TensorEntry, quote
from blenderbot_jax.checkpoint.torch_legacy import MAGIC, read_torch_legacy
from blenderbot_jax.checkpoint.torch_state import OTHER_FILE
from blenderbot_jax.checkpoint.torch_zip import read_torch_zip


def read_torch(path: str | os.PathLike[str], part: str | None = None) -> dict[str, TensorEntry]:
    """Read and check the table of contents of a file that `torch.save` has written, of any version.

    Args:
        path: the file, usually `pytorch_model.bin`.
        part: the entry that is the state dict, where the file also holds what goes on with training; of that the bytes
            of tensors are left alone, and objects are neither built nor looked at. None: the file is a state dict.

    Returns:
        The entries by name, in the order of the state dict. Tied tensors have equal entries.

    Raises:
        CheckpointError: the file is damaged, hostile, or holds more than tensors by name.
        OSError: the file cannot be opened.
    """
    with open(path, "rb") as file:
        head = file.read(32)
    if head.startswith(b"PK"):
        return read_torch_zip(path, part)
    # The first pickle of a legacy file is this number, in its ten bytes whatever the pickle's protocol.
    if MAGIC.to_bytes(10, "little") in head:
        return read_torch_legacy(path, part)
    rule = f"must be a zip archive or a legacy file of PyTorch, begins with {quote(head)}"
    raise CheckpointError(f"{path}: {rule}; {OTHER_FILE}")
