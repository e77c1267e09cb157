"""The zip container of PyTorch's files: its records, their sizes and their headers."""

import struct
import zipfile

import pytest

from blenderbot_jax.checkpoint.tensor_file import CheckpointError
from blenderbot_jax.checkpoint.torch_zip import read_torch_zip
from tests.torch_pickles import (
    EMPTY_DICT,
    PROTO,
    VALUES,
    group,
    items,
    number,
    state_dict,
    storage,
    tensor,
    text,
    write_zip,
)

FIVE = number(5)
HONEST = state_dict(weight=tensor())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pytorch_model.bin"


def refusal(path, program, records=None, **options):
    """The message with which a file is refused."""
    write_zip(path, program, records, **options)
    with pytest.raises(CheckpointError) as error:
        read_torch_zip(path)
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value)


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (FIVE + b"Q", "a storage is named by five values, not by 5"),
        (group(text("module"), FIVE, FIVE, FIVE, FIVE) + b"Q", "a storage is named by five values"),
        (storage(key="1"), "record 'data/1' is missing"),
        (storage(count=5), "must hold 5 elements of 4 bytes, its record has 24"),
        (storage(count=-6), "must hold -6 elements"),
        (storage(count=2**1000), "its record has 24 bytes"),
        (storage(kind="torch.DoubleStorage"), "must hold 6 elements of 8 bytes"),
    ],
)
def test_a_storage_that_is_not_its_record_is_refused(path, value, rule):
    assert rule in refusal(path, PROTO + EMPTY_DICT + items(a=value) + b".")


def test_the_order_of_bytes_need_not_be_stated(path):
    write_zip(path, HONEST, {"byteorder": None})
    assert list(read_torch_zip(path)) == ["weight"]


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_a_compressed_pickle_is_refused_before_it_is_unpacked(path, compression):
    bomb = bytes(2**25)
    assert "'data.pkl' is compressed" in refusal(path, bomb, {"byteorder": None}, compression=compression)


def test_a_compressed_storage_is_refused(path):
    write_zip(path, HONEST, {"data/0": None, "byteorder": None})
    with zipfile.ZipFile(path, "a", compression=zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(24))
    with pytest.raises(CheckpointError, match="'data/0' is compressed"):
        read_torch_zip(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_records_of_one_name_are_refused(path):
    write_zip(path, HONEST)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", bytes(24))
    with pytest.raises(CheckpointError, match="two records of one name"):
        read_torch_zip(path)


@pytest.mark.parametrize(
    ("records", "rule"),
    [
        ({"byteorder": b"big"}, "big-endian"),
        ({"byteorder": b"?" * 99}, "'byteorder' may take 16 bytes, has 99"),
        ({"data.pkl": None}, "must hold one <name>/data.pkl, holds 0"),
        ({"../other/data.pkl": None, "data.pkl": None, "deep/data.pkl": b"}."}, "holds 0"),
        ({"data/0": None}, "record 'data/0' is missing"),
        ({"data/0": VALUES.tobytes()[:-1]}, "must hold 6 elements of 4 bytes, its record has 23"),
        ({"data.pkl": bytes(2**26 + 1)}, "'data.pkl' may take 67108864 bytes"),
    ],
)
def test_an_archive_with_wrong_records_is_refused(path, records, rule):
    assert rule in refusal(path, HONEST, records)


def test_an_archive_with_two_pickles_is_refused(path):
    write_zip(path, HONEST)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", HONEST)
    with pytest.raises(CheckpointError, match="holds 2"):
        read_torch_zip(path)


def test_a_truncated_archive_is_refused_as_such(path):
    write_zip(path, HONEST)
    whole = path.read_bytes()
    for end in (4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(CheckpointError, match="cut off or damaged"):
            read_torch_zip(path)


@pytest.mark.parametrize(
    ("header", "field", "value", "rule"),
    [
        (b"PK\3\4", 26, b"\xff\xff", "'data/0' must end within the file's"),  # length of the name
        (b"PK\3\4", 0, b"PK\0\0", "'data/0' has no plain zip header"),
        (b"PK\1\2", 8, b"\1\0", "'data/0' has no plain zip header"),  # flags: encrypted
        (b"PK\1\2", 42, b"\xff\xff\xff\x7f", "'data/0' has no plain zip header"),  # position of the local header
    ],
)
def test_a_record_with_a_damaged_header_is_refused(path, header, field, value, rule):
    write_zip(path, HONEST, {"byteorder": None, "version": None})
    content = bytearray(path.read_bytes())
    place = content.rindex(header) + field  # data/0 is the last record
    content[place : place + len(value)] = value
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rule):
        read_torch_zip(path)


def test_a_record_that_points_before_the_file_is_refused(path):
    write_zip(path, HONEST, {"byteorder": None})
    content = bytearray(path.read_bytes())
    directory_offset = len(content) - 6  # zipfile shifts every record by how far this one number is off
    (true_offset,) = struct.unpack_from("<I", content, directory_offset)
    struct.pack_into("<I", content, directory_offset, true_offset + 5000)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"'data.pkl' has no plain zip header|cut off or damaged"):
        read_torch_zip(path)
