"""The legacy container of PyTorch's files: its preamble, its list of storages, and the storages in a row."""

import pickle
import struct

import numpy as np
import pytest

from blenderbot_jax.checkpoint.tensor_file import CheckpointError
from blenderbot_jax.checkpoint.torch_legacy import read_torch_legacy
from tests.torch_pickles import (
    EMPTY_DICT,
    FALSE,
    MAGIC,
    NONE,
    ORDERED_DICT,
    PROTO,
    SYSTEM,
    VALUES,
    call,
    group,
    items,
    legacy_bytes,
    number,
    state_dict,
    storage,
    symbol,
    tensor,
    text,
)

HONEST = state_dict(weight=tensor())
DATA = struct.pack("<q", 6) + VALUES.tobytes()
FIVE = number(5)


def described(kind="torch.FloatStorage", key="0", count=6, part=NONE):
    """A storage with its sixth value, which may say that it is a part of another."""
    named = group(text("storage"), symbol(kind), text(key), text("cpu"), number(count), part)
    return named + b"\x94Q"  # the instruction between, which only remembers it, tells that nothing is to be added


def part(first, count, key="1"):
    return group(text(key), number(first), number(count))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pytorch_model.bin"


def refusal(path, content):
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_torch_legacy(path)
    assert str(error.value).startswith(f"{path}: ")
    assert len(str(error.value)) < len(str(path)) + 600
    return str(error.value)


def test_storages_follow_in_the_order_of_their_list(path):
    second = np.array([7, -8], "<f2")
    program = state_dict(
        a=tensor(), b=tensor(storage("torch.HalfStorage", "00", 2), shape=(2,), strides=(1,)), c=tensor(strides=(1, 2))
    )
    data = struct.pack("<q", 2) + second.tobytes() + DATA
    path.write_bytes(legacy_bytes(program, keys=["00", "0"], storages=data))
    entries = read_torch_legacy(str(path))
    assert list(entries) == ["a", "b", "c"]
    np.testing.assert_array_equal(entries["a"].read(), VALUES.reshape(2, 3))
    np.testing.assert_array_equal(entries["b"].read(), second)
    np.testing.assert_array_equal(entries["c"].read(), VALUES.reshape(3, 2).T)


def test_a_storage_may_be_a_part_of_another(path):
    sub = described(part=part(2, 4))
    program = state_dict(a=tensor(), b=tensor(sub, offset=1, shape=(3,), strides=(1,)))
    path.write_bytes(legacy_bytes(program))
    np.testing.assert_array_equal(read_torch_legacy(path)["b"].read(), VALUES[3:])


def test_the_entries_lie_where_torch_put_them(path):
    torch = pytest.importorskip("torch")
    saved = {str(i): torch.full((i, 3), float(i)).to(torch.float16 if i % 2 else torch.float32) for i in range(12)}
    saved["tied"] = saved["5"]
    torch.save(saved, path, _use_new_zipfile_serialization=False)
    entries = read_torch_legacy(path)
    assert entries["tied"] == entries["5"]
    for name, expected in saved.items():
        np.testing.assert_array_equal(entries[name].read(), expected.numpy())
    # Torch adds nothing behind the storages, and neither may anyone else.
    assert "must end with its last storage" in refusal(path, path.read_bytes() + b"\0")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_preamble_may_be_of_any_protocol(path, protocol):
    head = b"".join(pickle.dumps(value, protocol) for value in (MAGIC, 1001, SYSTEM))
    whole = legacy_bytes(HONEST)
    old = b"".join(pickle.dumps(value, 2) for value in (MAGIC, 1001, SYSTEM))
    path.write_bytes(head + whole.removeprefix(old))
    assert list(read_torch_legacy(path)) == ["weight"]


@pytest.mark.parametrize(
    ("parts", "rule"),
    [
        ({"magic": MAGIC + 1}, "must begin with the magic number"),
        ({"magic": "text"}, "must begin with the magic number of PyTorch's files, not 'text'"),
        ({"version": 1002}, "must have protocol version 1001, has 1002"),
        ({"system": {**SYSTEM, "little_endian": False}}, "not written on a little-endian machine"),
        ({"system": {**SYSTEM, "little_endian": 1}}, "not written on a little-endian machine"),
        ({"system": {}}, "not written on a little-endian machine"),
        ({"system": [1]}, "not written on a little-endian machine"),
        ({"keys": []}, "must name the 1 storages that tensors use, once each, it has 0 keys"),
        ({"keys": ["0", "0"]}, "once each, it has 2 keys"),
        ({"keys": ["1"]}, "must name the 1 storages"),
        ({"keys": [0]}, "must be a list of keys"),
        ({"keys": [["0"]]}, "must be a list of keys"),
        ({"storages": b""}, "must begin with its number of elements, 6, begins with b''"),
        ({"storages": DATA[:5]}, "must begin with its number of elements, 6"),
        ({"storages": struct.pack("<q", 7) + DATA[8:]}, "must begin with its number of elements, 6"),
        ({"storages": struct.pack("<q", -6) + DATA[8:]}, "must begin with its number of elements, 6"),
        ({"storages": struct.pack(">q", 6) + DATA[8:]}, "must begin with its number of elements, 6"),
        ({"storages": DATA[:-1]}, "'0' must end within"),
        ({"storages": DATA + b"\0"}, "must end with its last storage"),
        ({"storages": DATA + DATA}, "must end with its last storage"),
    ],
)
def test_a_container_that_breaks_a_rule_is_refused_by_that_rule(path, parts, rule):
    assert rule in refusal(path, legacy_bytes(HONEST, **parts))


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (FIVE + b"Q", "a storage is named by six values, not by 5"),
        (group(text("module"), FIVE, FIVE, FIVE, FIVE) + b"Q", "a storage is named by six values"),
        (tensor(storage(count=2**40)), "must lie in the file's"),
        (tensor(storage(count=2**200)), "must lie in the file's"),
        (tensor(storage(count=-6)), "must lie in the file's"),
        (tensor(storage("torch.DoubleStorage", count=6)), "storage '0' must end within"),
        (tensor(storage(count=5), shape=(5,), strides=(1,)), "must begin with its number of elements, 5"),
        (tensor() + text("b") + tensor(storage(count=7)), "storage '0' is described in two ways"),
        (tensor() + text("b") + tensor(storage("torch.IntStorage")), "storage '0' is described in two ways"),
        (tensor(described(part=FIVE)), "a part of storage '0' must lie within its 6"),
        (tensor(described(part=part(3, 4))), "a part of storage '0' must lie within its 6"),
        (tensor(described(part=part(-1, 4))), "a part of storage '0' must lie within its 6"),
        (tensor(described(part=part(2, 4))), "reach element 6, storage '0' has 4"),
    ],
)
def test_a_storage_that_is_not_as_described_is_refused(path, value, rule):
    assert rule in refusal(path, legacy_bytes(PROTO + EMPTY_DICT + items(a=value) + b"."))


def test_every_cut_is_refused(path):
    whole = legacy_bytes(HONEST)
    for end in range(len(whole)):
        refusal(path, whole[:end])


@pytest.mark.parametrize("place", ["magic", "version", "system", "keys"])
def test_code_in_any_of_the_pickles_is_refused_and_does_not_run(tmp_path, path, place):
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self):
            return open, (str(canary), "w")

    given = [Payload()] if place == "keys" else Payload()
    assert "nothing was executed" in refusal(path, legacy_bytes(HONEST, **{place: given}))
    assert not canary.exists()


@pytest.mark.parametrize("place", ["magic", "keys"])
def test_only_the_state_dict_may_refer_to_storages(path, place):
    whole = legacy_bytes(HONEST)
    plain = pickle.dumps(MAGIC if place == "magic" else ["0"], 2)
    assert "must be plain values, it refers to 'x'" in refusal(path, whole.replace(plain, PROTO + text("x") + b"Q."))


def test_a_long_pickle_is_refused_without_reading_it(path):
    with open(path, "wb") as file:
        file.write(legacy_bytes(PROTO + b"X" + struct.pack("<I", 2**32 - 1), keys=[], storages=b""))
        file.truncate(2**33)  # sparse: takes no room on disk
    with pytest.raises(CheckpointError, match="state dict, byte 7: is cut off: 4294967295 more bytes must follow"):
        read_torch_legacy(path)


def test_metadata_and_attributes_read_as_in_the_zip_container(path):
    with_state = PROTO + ORDERED_DICT + items(a=tensor(extra=(FALSE, ORDERED_DICT, NONE)))
    with_state += EMPTY_DICT + items(_metadata=call("collections.OrderedDict")) + b"b."
    path.write_bytes(legacy_bytes(with_state))
    assert list(read_torch_legacy(path)) == ["a"]
