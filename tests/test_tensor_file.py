"""The table of contents of safetensors files, and reading single tensors."""

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blenderbot_jax.checkpoint.tensor_file import CheckpointError, TensorEntry, read_safetensors
from tests.fuzzing import refused_or_consistent

WEIGHT = np.arange(6, dtype="<f4").reshape(2, 3)
BIAS = np.array([1.5, -2.0], "<f2")
HEADER = {
    "weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "bias": {"dtype": "F16", "shape": [2], "data_offsets": [24, 28]},
}
DATA = WEIGHT.tobytes() + BIAS.tobytes()


def file_bytes(header=HEADER, data=DATA, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def with_weight(**fields):
    return {**HEADER, "weight": {**HEADER["weight"], **fields}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("mutations") / "model.safetensors"


# Reading.


def test_entries_come_in_header_order_with_dtype_shape_and_position(path):
    path.write_bytes(file_bytes())
    entries = read_safetensors(str(path))
    start = len(file_bytes()) - len(DATA)
    assert list(entries.items()) == [
        ("weight", TensorEntry(path, np.dtype("<f4"), (2, 3), start)),
        ("bias", TensorEntry(path, np.dtype("<f2"), (2,), start + 24)),
    ]
    assert entries["weight"].nbytes == 24
    np.testing.assert_array_equal(entries["weight"].read(), WEIGHT)
    np.testing.assert_array_equal(entries["bias"].read(), BIAS)


def test_what_is_read_can_be_written_to_and_leaves_the_file_alone(path):
    path.write_bytes(file_bytes())
    entry = read_safetensors(path)["weight"]
    entry.read()[:] = 0
    np.testing.assert_array_equal(entry.read(), WEIGHT)


def test_metadata_and_padding_are_skipped(path):
    path.write_bytes(file_bytes(json.dumps({"__metadata__": {"format": "pt"}, **HEADER}).encode() + b"   "))
    assert list(read_safetensors(path)) == ["weight", "bias"]


def test_a_file_without_tensors_is_empty(path):
    path.write_bytes(file_bytes({}, b""))
    assert read_safetensors(path) == {}


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", ml_dtypes.bfloat16, "i8", "i4", "i2", "i1", "u1", "?"])
def test_files_of_the_safetensors_library_read_equal(path, dtype):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    tensors = {
        "matrix": np.arange(12).reshape(3, 4).astype(dtype),
        "scalar": np.array(1).astype(dtype),
        "empty": np.zeros((0, 5), dtype),
    }
    save_file(tensors, path, metadata={"format": "np"})
    entries = read_safetensors(path)
    assert entries.keys() == tensors.keys()
    for name, expected in tensors.items():
        read = entries[name].read()
        assert (read.dtype, read.shape) == (expected.dtype, expected.shape)
        assert read.tobytes() == expected.tobytes()


def test_a_strided_entry_reads_the_view_as_a_contiguous_array(path):
    stored = np.arange(20, dtype="<f4").reshape(4, 5)
    path.write_bytes(b"head" + stored.tobytes())
    transposed_slice = TensorEntry(path, stored.dtype, (3, 2), offset=4 + 4 * 6, strides=(1, 5))
    read = transposed_slice.read()
    np.testing.assert_array_equal(read, stored[1:3, 1:4].T)
    assert read.flags.c_contiguous
    assert read.base is None


def test_a_file_cut_after_its_header_was_read_is_an_error(path):
    path.write_bytes(file_bytes())
    entry = read_safetensors(path)["bias"]
    path.write_bytes(file_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"needs 4 bytes from byte .* got 3"):
        entry.read()


def test_a_missing_file_is_an_os_error(path):
    with pytest.raises(FileNotFoundError):
        read_safetensors(path)


# Damaged and hostile files.


@pytest.mark.parametrize("length", [10 * 2**30, 2**64 - 1, len(file_bytes()) - 7])
def test_a_header_longer_than_the_file_is_refused(path, length):
    path.write_bytes(file_bytes(length=length))
    with pytest.raises(CheckpointError, match=f"it claims {length}"):
        read_safetensors(path)


def test_a_header_over_the_limit_is_refused_without_reading_it(path):
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 10 * 2**30))
        file.truncate(11 * 2**30)  # sparse: takes no room on disk
    with pytest.raises(CheckpointError, match="may take 100000000 bytes"):
        read_safetensors(path)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "8 bytes of header length, this one has 0"),
        (b"\x01\x02", "8 bytes of header length, this one has 2"),
        (file_bytes(b"not json", b""), "must be JSON"),
        (file_bytes(b'{"a": "\xff"}', b""), "JSON in UTF-8"),
        (file_bytes("{}".encode("utf-16"), b""), "JSON in UTF-8"),
        (file_bytes(b"[" * 100_000, b""), "nested without end"),
        (file_bytes(b'{"a":' * 100_000, b""), "nested without end"),
        (file_bytes(b"9" * 5000, b""), "must be JSON"),
        (file_bytes(b"[1]", b""), "must be a JSON object"),
        (file_bytes(b'{"a": 1, "a": 2}', b""), "'a' is there twice"),
        (file_bytes({"weight": [1]}, b""), "tensor 'weight': must be a JSON object"),
        (file_bytes({"weight": {}}, b""), "dtype must be one of F64, .* it is None"),
        (file_bytes(with_weight(dtype="F8_E4M3")), "it is 'F8_E4M3'"),
        (file_bytes(with_weight(dtype=["F32"])), "dtype must be one of"),
        (file_bytes(with_weight(shape=6)), "must be a list of sizes, it is 6"),
        (file_bytes(with_weight(shape=[-2, -3])), r"it is \[-2, -3\]"),
        (file_bytes(with_weight(shape=[2.0, 3])), "must be a list of sizes"),
        (file_bytes(with_weight(shape=[True, 6])), "must be a list of sizes"),
        (file_bytes(with_weight(shape=[2**40, 2**40])), "must be a list of sizes"),
        (file_bytes(with_weight(shape=[0, 2**62, 4])), "must be a list of sizes"),
        (file_bytes(with_weight(shape=[1] * 65)), "must be a list of sizes"),
        (file_bytes(with_weight(shape=[2, 4])), "takes 32 bytes, data_offsets .* give 24"),
        (file_bytes(with_weight(data_offsets=[0])), r"must be \[begin, end\]"),
        (file_bytes(with_weight(data_offsets=[-24, 0])), r"must be \[begin, end\]"),
        (file_bytes(with_weight(data_offsets=[24, 0])), "must lie within the 28 data bytes"),
        (file_bytes(with_weight(data_offsets=[5, 29])), "must lie within the 28 data bytes"),
        (file_bytes(with_weight(data_offsets=[2, 26])), "'weight': leaves a hole"),
        (file_bytes({**HEADER, "bias": {**HEADER["bias"], "data_offsets": [22, 26]}}), "'bias': overlaps"),
        (file_bytes({**HEADER, "alias": HEADER["weight"]}), "overlaps"),
        (file_bytes(data=DATA[:-1]), "must lie within the 27 data bytes"),
        (file_bytes(data=DATA + b"\0"), "the tensors take 28 bytes, the file holds 29"),
    ],
)
def test_a_file_that_breaks_a_rule_is_refused_by_that_rule(path, content, rule):
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rule) as refusal:
        read_safetensors(path)
    assert str(refusal.value).startswith(f"{path}: ")


def test_an_error_message_stays_short_whatever_the_file_says(path):
    path.write_bytes(file_bytes({"\x1b[31m" + "x" * 10_000: {"dtype": "y" * 10_000}}, b""))
    with pytest.raises(CheckpointError) as refusal:
        read_safetensors(path)
    assert len(str(refusal.value)) < len(str(path)) + 500
    assert "\x1b" not in str(refusal.value)


@settings(max_examples=300, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, len(file_bytes()) - 1), st.integers(0, 255)), max_size=4),
    end=st.integers(0, len(file_bytes())) | st.just(len(file_bytes())),
)
def test_a_mutated_file_is_either_refused_or_reads_as_it_says(scratch: Path, edits, end):
    content = bytearray(file_bytes())
    for position, value in edits:
        content[position] = value
    scratch.write_bytes(content[:end])
    refused_or_consistent(read_safetensors, scratch)
