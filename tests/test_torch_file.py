"""Which container a file of PyTorch is in is told by its content, whatever its name."""

import numpy as np
import pytest

from blenderbot_jax.checkpoint.tensor_file import CheckpointError
from blenderbot_jax.checkpoint.torch_file import read_torch
from tests.torch_pickles import VALUES, state_dict, tensor, write_legacy, write_zip


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_the_container_is_told_by_the_content(tmp_path, write):
    write(tmp_path / "weights", state_dict(weight=tensor()))
    np.testing.assert_array_equal(read_torch(str(tmp_path / "weights"))["weight"].read(), VALUES.reshape(2, 3))


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x80\x04}."])
def test_a_file_in_neither_is_refused_showing_how_it_begins(tmp_path, content):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="zip archive or a legacy file of PyTorch, begins with b") as error:
        read_torch(path)
    assert repr(content)[2:10] in str(error.value)


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_torch(tmp_path / "pytorch_model.bin")
