"""Flax weights: what flax writes reads equal, and nothing else is taken for weights.

The damaged and hostile files are put together byte by byte.
"""

import struct

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.serialization import msgpack_serialize, to_bytes

from blenderbot_jax.checkpoint import flax_file
from blenderbot_jax.checkpoint.flax_file import read_flax
from blenderbot_jax.checkpoint.names import flatten
from blenderbot_jax.checkpoint.tensor_file import CheckpointError

VALUES = np.arange(6, dtype="<f4").reshape(2, 3)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "flax_model.msgpack"


def refusal(path, content):
    """The message with which a file is refused."""
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_flax(path)
    assert str(error.value).startswith(f"{path}: ")
    assert len(str(error.value)) < len(str(path)) + 500
    return str(error.value)


# A small assembler of MessagePack.


def text(value):
    return b"\xd9" + bytes([len(value)]) + value.encode()


def binary(value):
    return b"\xc4" + bytes([len(value)]) + value


def table(**values):
    return bytes([0x80 | len(values)]) + b"".join(text(name) + value for name, value in values.items())


def extension(content, code=1):
    return b"\xc8" + struct.pack(">Hb", len(content), code) + content


def content_of(shape=b"\x92\x02\x03", dtype=None, data=None):
    return b"\x93" + shape + (text("float32") if dtype is None else dtype) + (data or binary(VALUES.tobytes()))


ARRAY = extension(content_of())


# Honest files.


@pytest.mark.parametrize("write", [msgpack_serialize, to_bytes])
def test_what_flax_writes_reads_equal(path, write):
    rng = np.random.default_rng(0)
    layers = {str(i): {"fc1": {"kernel": rng.normal(size=(4, 5 + i)), "bias": np.zeros(0, "f4")}} for i in range(20)}
    tree = {
        "final_logits_bias": np.array([[1.5, -2]], "f4"),
        "model": {"encoder": {"layers": layers, "layer_norm": {"scale": jnp.arange(300.0)}}, "x" * 300: {"y": VALUES}},
        "lm_head": {"kernel": np.ones((100, 300), "f2")},
    }
    path.write_bytes(write(tree))
    entries, leaves = read_flax(str(path)), flatten(tree)
    assert sorted(entries) == sorted(leaves)
    for name, expected in leaves.items():
        read = entries[name].read()
        assert (read.dtype, read.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", ml_dtypes.bfloat16, "i8", "i4", "i2", "i1", "u1", "?"])
def test_every_dtype_reads_as_flax_wrote_it(path, dtype):
    tree = {"model": {"matrix": np.arange(12).reshape(3, 4).astype(dtype), "scalar": np.array(1).astype(dtype)}}
    path.write_bytes(msgpack_serialize(tree))
    for name, entry in read_flax(path).items():
        expected = tree["model"][name.removeprefix("model/")]
        read = entry.read()
        assert (read.dtype, read.shape, read.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


@pytest.mark.parametrize("size", [1, 20, 100, 300, 70_000])
def test_extensions_of_every_length_read(path, size):
    tree = {"shared": {"embedding": np.arange(size, dtype="u1")}}
    path.write_bytes(msgpack_serialize(tree))
    np.testing.assert_array_equal(read_flax(path)["shared/embedding"].read(), tree["shared"]["embedding"])


def test_a_hand_made_file_reads_its_values_where_they_lie(path):
    path.write_bytes(table(shared=table(embedding=ARRAY), final_logits_bias=ARRAY))
    entries = read_flax(path)
    assert list(entries) == ["shared/embedding", "final_logits_bias"]
    assert entries["shared/embedding"].offset == path.read_bytes().index(VALUES.tobytes())
    np.testing.assert_array_equal(entries["final_logits_bias"].read(), VALUES)


def test_a_file_without_parameters_is_empty(path):
    path.write_bytes(b"\x80")
    assert read_flax(path) == {}


def test_a_missing_file_is_an_os_error(path):
    with pytest.raises(FileNotFoundError):
        read_flax(path)


# What is no weights.


def test_an_array_in_chunks_is_refused_by_name(path, monkeypatch):
    monkeypatch.setattr("flax.serialization.MAX_CHUNK_SIZE", 16)
    content = msgpack_serialize({"shared": {"embedding": np.arange(100.0)}})
    assert "'shared/embedding' is an array in chunks" in refusal(path, content)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (1 + 2j, "it is a complex number"),
        (np.float32(3), "it is a numpy scalar"),
        (3, "it is a plain value"),
        (-1.5, "it is a plain value"),
        (None, "it is a plain value"),
        ("x", "it is a text"),
        (b"x", "it is bytes"),
        ([np.zeros(2)], "it is an array of values"),
    ],
)
def test_other_values_are_refused_by_the_name_of_the_parameter(path, value, found):
    message = refusal(path, msgpack_serialize({"model": {"step": value}}))
    assert f"'model/step' must be an array of numbers or a map of them, {found}" in message


def test_other_roots_are_refused_by_name(path):
    assert "holds 'params', parameters begin with decoder" in refusal(
        path, msgpack_serialize({"params": {"model": {}}, "step": 3})
    )


@pytest.mark.parametrize("content", [msgpack_serialize([VALUES]), msgpack_serialize(VALUES), b"\xc0", b"version 1"])
def test_a_file_that_is_no_map_is_refused(path, content):
    assert "must begin with a map of parameters" in refusal(path, content)


@pytest.mark.parametrize("content", [b"", table(shared=table(embedding=ARRAY))[:-1], b"\x81", b"\xdf\0", b"\x81\xda\1"])
def test_a_file_that_ends_early_is_refused(path, content):
    message = refusal(path, content)
    assert "is cut off" in message or "the file ends" in message


def test_every_cut_is_refused(path):
    whole = table(model=table(a=table(b=ARRAY)), final_logits_bias=ARRAY)
    for end in range(len(whole)):
        refusal(path, whole[:end])


def nested(depth):
    return b"".join(b"\x81" + text("model" if i == 0 else "x") for i in range(depth)) + b"\x80"


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (table(shared=ARRAY) + b"\0", "1 bytes follow the parameters"),
        (nested(40), "maps may lie 32 deep"),
        (nested(100_000), "maps may lie 32 deep"),
        (b"\x82" + 2 * (text("model") + b"\x80"), "'model' is there twice"),
        (b"\x81\x05\x80", "a key must be a text, it is a plain value"),
        (b"\x81" + binary(b"model") + b"\x80", "a key must be a text, it is bytes"),
        (b"\x81\xa0\x80", "must be a name without slashes, it is ''"),
        (table(model=table(**{"a/b": b"\x80"})), "must be a name without slashes, it is 'a/b'"),
        (b"\x81\xda\xff\xff" + b"x" * 65535, "a name may take 1000 bytes, it takes 65535"),
        (b"\x81\xdb\xff\xff\xff\xff", "a name may take 1000 bytes, it takes 4294967295"),
        (b"\x81\xa2\xff\xfe\x80", "a name must be UTF-8"),
        (b"\xdf\xff\xff\xff\xff", "is cut off"),
        (table(model=extension(content_of(), 5)), "it is an extension of type 5"),
        (table(model=extension(content_of(), -1)), "it is an extension of type -1"),
        (table(model=b"\xc9\xff\xff\xff\xff\x01"), "takes 4294967295 bytes, the file ends after 0"),
        (table(model=b"\xd4\x01\x90"), "must hold shape, dtype and bytes"),
        (table(model=extension(b"\x92" + content_of()[1:])), "must hold shape, dtype and bytes"),
        (table(model=extension(content_of(shape=b"\x06"))), "the shape must be a list of sizes"),
        (table(model=extension(content_of(shape=b"\x92\xff\xfd"))), "a size must be a whole number, zero or more"),
        (table(model=extension(content_of(shape=b"\x92\xc3\x06"))), "a size must be a whole number, zero or more"),
        (table(model=extension(content_of(shape=b"\x92\xcb" + bytes(8)))), "a size must be a whole number"),
        (table(model=extension(content_of(shape=b"\x92" + 2 * (b"\xcf" + b"\xff" * 8)))), "a list of sizes"),
        (table(model=extension(content_of(shape=b"\xdc\0\x41" + b"\1" * 65))), "the shape must be a list of sizes"),
        (table(model=extension(content_of(shape=b"\xdd\xff\xff\xff\xff"))), "a size must be a whole number"),
        (table(model=extension(content_of(dtype=text("float8_e4m3")))), "it is 'float8_e4m3'"),
        (table(model=extension(content_of(dtype=text("O")))), "the dtype must be one of float64"),
        (table(model=extension(content_of(dtype=b"\x05"))), "the dtype must be one of float64"),
        (table(model=extension(content_of(data=binary(bytes(23))))), "takes 24 bytes, here are 23"),
        (table(model=extension(content_of(data=text("x" * 24)))), "takes 24 bytes, here are 24 of text"),
        (table(model=extension(content_of() + b"\0")), "the bytes of the array must end with it"),
        (table(model=extension(content_of()[:-1])) + b"\0", "the bytes of the array must end with it"),
    ],
)
def test_a_file_that_breaks_a_rule_is_refused_by_that_rule(path, content, rule):
    assert rule in refusal(path, content)


def test_a_file_of_names_without_end_is_refused(path, monkeypatch):
    monkeypatch.setattr(flax_file, "_MAX_ITEMS", 1000)
    content = b"\x81" + text("model") + b"\xdf\0\0\x10\0"
    content += b"".join(text(str(i)) + b"\x80" for i in range(4096))
    assert "fewer than 1000 names" in refusal(path, content)


def test_an_array_larger_than_its_bytes_is_never_built(path):
    huge = extension(content_of(shape=b"\x92\xce\xff\xff\xff\xff\x01", data=b"\xc6\xff\xff\xff\xff"))
    assert "takes 17179869180 bytes, here are 4294967295" in refusal(path, table(model=huge))
