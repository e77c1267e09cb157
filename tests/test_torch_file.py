"""PyTorch zip checkpoints: honest ones read as PyTorch reads them, hostile ones are refused and run nothing.

The hostile files are put together here instruction by instruction, so these tests need no PyTorch.
"""

import os
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blenderbot_jax.checkpoint.tensor_file import CheckpointError
from blenderbot_jax.checkpoint.torch_file import read_torch_zip

VALUES = np.arange(6, dtype="<f4")

# A small assembler of pickles: each function returns the instructions that leave one value on the stack.
PROTO = b"\x80\x02"
FALSE, NONE, EMPTY_TUPLE, EMPTY_LIST, EMPTY_DICT = b"\x89", b"N", b")", b"]", b"}"


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value):
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def group(*items):
    return b"(" + b"".join(items) + b"t"


def symbol(name):
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def call(name, *arguments):
    return symbol(name) + group(*arguments) + b"R"


def items(**values):
    return b"(" + b"".join(text(name) + value for name, value in values.items()) + b"u"


ORDERED_DICT = call("collections.OrderedDict")


def storage(kind="torch.FloatStorage", key="0", count=6):
    return group(text("storage"), symbol(kind), text(key), text("cpu"), number(count)) + b"Q"


def tensor(source=None, offset=0, shape=(2, 3), strides=(3, 1), extra=(FALSE, ORDERED_DICT)):
    shape, strides = (group(*map(number, values)) for values in (shape, strides))
    return call("torch._utils._rebuild_tensor_v2", source or storage(), number(offset), shape, strides, *extra)


def state_dict(**values):
    return PROTO + ORDERED_DICT + items(**values) + b"."


def write_zip(path, program, records=None, **options):
    """A checkpoint around a pickle; records override or, with None, remove the usual ones."""
    content = {"data.pkl": program, "byteorder": b"little", "data/0": VALUES.tobytes(), "version": b"3\n"}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in {**content, **(records or {})}.items():
            if data is not None:
                archive.writestr(f"archive/{name}", data)


def refusal(path, program, records=None, **options):
    """The message with which a file is refused."""
    write_zip(path, program, records, **options)
    with pytest.raises(CheckpointError) as error:
        read_torch_zip(path)
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pytorch_model.bin"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("mutations") / "pytorch_model.bin"


# Honest files, by PyTorch.


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "bool"])
def test_tensors_and_their_views_read_as_torch_saved_them(path, dtype, protocol):
    torch = pytest.importorskip("torch")
    whole = (torch.arange(24).reshape(2, 3, 4) % 7).to(getattr(torch, dtype))
    saved = {
        "whole": whole,
        "transposed": whole.transpose(0, 2),
        "sliced": whole[1:, ::2, 1:3],
        "column": whole[:, :1, 2],
        "scalar": whole[1, 2, 3],
        "empty": whole[:, :0],
        "own": whole.clone(),
    }
    torch.save(saved, path, pickle_protocol=protocol)
    entries = read_torch_zip(str(path))
    assert list(entries) == list(saved)
    for name, expected in saved.items():
        read = entries[name].read()
        assert read.dtype == (ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype))
        assert read.shape == tuple(expected.shape)
        np.testing.assert_array_equal(read.astype(np.float64), expected.double().numpy())
    assert {name for name, entry in entries.items() if entry.strides is None} == {"whole", "scalar", "empty", "own"}


def test_a_modules_state_dict_with_its_metadata_and_tied_weights_reads_equal(path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 5), torch.nn.LayerNorm(5))
    module[1].weight = module[0].weight
    torch.save(module.state_dict(), path)
    entries = read_torch_zip(path)
    for name, expected in module.state_dict().items():
        np.testing.assert_array_equal(entries[name].read(), expected.numpy())
    assert entries["0.weight"] == entries["1.weight"]


def test_parameters_read_like_tensors(path):
    torch = pytest.importorskip("torch")
    torch.save(dict(torch.nn.Linear(3, 2).named_parameters()), path)
    assert {name: entry.shape for name, entry in read_torch_zip(path).items()} == {"weight": (2, 3), "bias": (2,)}


def test_a_legacy_file_is_refused_with_the_way_to_save_it_again(path):
    torch = pytest.importorskip("torch")
    torch.save({"weight": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(
        CheckpointError, match=r"legacy container \(PyTorch before 1\.6\); re-save it .*weights_only=True"
    ):
        read_torch_zip(path)


def test_a_checkpoint_of_more_than_weights_is_refused_by_the_entry(path):
    torch = pytest.importorskip("torch")
    torch.save({"weight": torch.ones(2), "epoch": 3}, path)
    with pytest.raises(CheckpointError, match=r"entry 'epoch' must be a tensor.* it is 3; .*model\.state_dict\(\)"):
        read_torch_zip(path)


# Honest files, by hand.


def test_a_hand_made_file_reads_its_values(path):
    write_zip(path, state_dict(weight=tensor(), row=tensor(offset=3, shape=(3,), strides=(1,))))
    entries = read_torch_zip(path)
    np.testing.assert_array_equal(entries["weight"].read(), VALUES.reshape(2, 3))
    np.testing.assert_array_equal(entries["row"].read(), VALUES[3:])


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(PROTO + EMPTY_DICT + items(a=tensor()) + b".", id="plain dict"),
        pytest.param(PROTO + EMPTY_DICT + text("a") + tensor() + b"s.", id="one item at a time"),
        pytest.param(state_dict(a=tensor(extra=(FALSE, ORDERED_DICT, NONE))), id="metadata None"),
        pytest.param(
            state_dict(a=call("torch._utils._rebuild_parameter", tensor(), FALSE, ORDERED_DICT)), id="parameter"
        ),
        pytest.param(
            PROTO
            + call("collections.OrderedDict", EMPTY_LIST + b"(" + EMPTY_LIST + b"(" + text("a") + tensor() + b"ee")
            + b".",
            id="OrderedDict from a list of pairs",
        ),
        pytest.param(
            PROTO + ORDERED_DICT + items(a=tensor()) + EMPTY_DICT + items(_metadata=ORDERED_DICT) + b"b.",
            id="attributes of an OrderedDict are dropped",
        ),
        pytest.param(
            PROTO + ORDERED_DICT + b"(" + text("a") + b"q\x00" + tensor() + b"r\x01\0\0\0" + b"u.",
            id="memo",
        ),
    ],
)
def test_every_form_of_a_state_dict_reads(path, program):
    write_zip(path, program, {"byteorder": None})
    (entry,) = read_torch_zip(path).values()
    np.testing.assert_array_equal(entry.read(), VALUES.reshape(2, 3))


# Code in pickles.


class Payload:
    def __init__(self, function, argument):
        self._call = function, (argument,)

    def __reduce__(self):
        return self._call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(("function", "name"), [(os.system, f"{os.system.__module__}.system"), (eval, "eval")])
def test_code_in_a_pickle_is_refused_by_name_and_does_not_run(tmp_path, path, function, name, protocol):
    canary = tmp_path / "canary"
    argument = f"echo > {canary}" if function is os.system else f"open({str(canary)!r}, 'w').close()"
    program = pickle.dumps({"weight": Payload(function, argument)}, protocol)
    assert f"{name}', which a state dict has no use for; nothing was executed" in refusal(path, program)
    assert not canary.exists()
    pickle.loads(program)
    assert canary.exists()  # Python's own reader does run it


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "builtins.getattr",
        "torch.load",
        "torch.storage._load_from_bytes",
        "torch._utils._rebuild_tensor",
        "torch.ComplexFloatStorage",
        "numpy.core.multiarray._reconstruct",
    ],
)
def test_a_symbol_off_the_list_is_refused_even_if_it_is_not_called(path, name):
    module, _, attribute = name.rpartition(".")
    for mention in (symbol(name), text(module) + text(attribute) + b"\x93"):
        assert f"refers to '{name}'" in refusal(path, PROTO + EMPTY_DICT + items(a=mention) + b".")


FIVE = number(5)
REBUILD, PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (call("torch.FloatStorage", FIVE), "calls 'torch.FloatStorage'"),
        (text("os.system") + group(text("ls")) + b"R", "calls 'os.system'"),
        (symbol("collections.OrderedDict") + EMPTY_LIST + b"R", "calls 'collections.OrderedDict' with a value of type"),
        (call("collections.OrderedDict", EMPTY_DICT), "takes nothing or one new list"),
        (call("collections.OrderedDict", EMPTY_LIST, EMPTY_LIST), "takes nothing or one new list"),
        (call("collections.OrderedDict", EMPTY_LIST + FIVE + b"a"), "takes pairs of key and value, not 5"),
        (call("collections.OrderedDict", EMPTY_LIST + group(FIVE, FIVE) + b"a"), "key must be a string"),
        (EMPTY_DICT + EMPTY_DICT + b"b", "only an OrderedDict can be given attributes"),
        (tensor() + EMPTY_DICT + b"b", "only an OrderedDict can be given attributes"),
        (call(REBUILD), "from 6 or 7 values, not 0"),
        (call(REBUILD, *[FIVE] * 8), "from 6 or 7 values, not 8"),
        (tensor(source=FIVE), "must be a view of a storage, not of 5"),
        (tensor(extra=(FIVE, ORDERED_DICT)), "no hooks"),
        (tensor(extra=(FALSE, NONE)), "no hooks"),
        (tensor(extra=(FALSE, ORDERED_DICT + items(hook=FIVE))), "no hooks"),
        (tensor(extra=(FALSE, ORDERED_DICT, EMPTY_DICT + items(neg=b"\x88"))), "no metadata"),
        (tensor(shape=(2, 3), strides=(1,)), "one stride per dimension"),
        (tensor(shape=(-2, -3)), "one size and one stride"),
        (tensor(shape=(2**62, 2**62)), "one size and one stride"),
        (tensor(shape=(2**2000, 0)), "one size and one stride"),
        (tensor(shape=(1,) * 65, strides=(1,) * 65), "one size and one stride"),
        (call(REBUILD, storage(), FIVE, FIVE, FIVE, FALSE, ORDERED_DICT), "one size and one stride"),
        (call(REBUILD, storage(), b"K\x00", group(b"\x88"), group(b"\x88"), FALSE, ORDERED_DICT), "one size"),
        (tensor(offset=-1), "offset and strides must be whole numbers"),
        (tensor(offset=2**100), "offset and strides must be whole numbers"),
        (tensor(strides=(3, -1)), "offset and strides must be whole numbers"),
        (tensor(strides=(2**64, 1)), "offset and strides must be whole numbers"),
        (tensor(offset=1), "reach element 7, storage '0' has 6"),
        (tensor(shape=(7,), strides=(1,)), "reach element 7"),
        (tensor(strides=(4, 1)), "reach element 7"),
        (tensor(offset=7, shape=(0,), strides=(1,)), "reach element 7"),
        (tensor(shape=(2**40,), strides=(0,)), "more elements than its storage '0', 6"),
        (call(PARAMETER, FIVE, FALSE, ORDERED_DICT), "a parameter is a tensor"),
        (call(PARAMETER, tensor(), FALSE), "a parameter is a tensor"),
        (FIVE + b"Q", "a storage is named by five values, not by 5"),
        (group(text("module"), FIVE, FIVE, FIVE, FIVE) + b"Q", "a storage is named by five values"),
        (storage(kind="collections.OrderedDict"), "a storage has one of the types"),
        (storage(key="1"), "record 'data/1' is missing"),
        (storage(key="../data/0"), "must be a plain name, it is '../data/0'"),
        (storage(key=".."), "must be a plain name"),
        (storage(key="a..b"), "must be a plain name"),
        (storage(key="/etc/passwd"), "must be a plain name"),
        (storage(key="0\n"), "must be a plain name"),
        (storage(key="x" * 10_000), "must be a plain name"),
        (storage(count=5), "must hold 5 elements of 4 bytes, its record has 24"),
        (storage(count=-6), "must hold -6 elements"),
        (storage(count=2**1000), "its record has 24 bytes"),
        (storage(kind="torch.DoubleStorage"), "must hold 6 elements of 8 bytes"),
        (storage(), "entry 'a' must be a tensor"),
        (symbol("torch.FloatStorage"), "entry 'a' must be a tensor"),
        (
            EMPTY_DICT + items(weight=tensor()),
            "entry 'a' must be a tensor, as every value of a state dict, it is a value of type dict",
        ),
        (text("x"), "entry 'a' must be a tensor, as every value of a state dict, it is 'x'"),
        (NONE, "entry 'a' must be a tensor, as every value of a state dict, it is None"),
        (b"G" + struct.pack(">d", 0.5), "entry 'a' must be a tensor, as every value of a state dict, it is 0.5"),
    ],
)
def test_a_hostile_value_is_refused_by_its_rule(path, value, rule):
    message = refusal(path, PROTO + EMPTY_DICT + items(a=value) + b".")
    assert rule in message
    assert len(message) < len(str(path)) + 600


# The archive.


HONEST = state_dict(weight=tensor())


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


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x80\x04}."])
def test_a_file_that_is_no_archive_is_refused_showing_how_it_begins(path, content):
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="must be a zip archive, begins with b") as error:
        read_torch_zip(path)
    assert repr(content)[2:10] in str(error.value)


def test_a_missing_file_is_an_os_error(path):
    with pytest.raises(FileNotFoundError):
        read_torch_zip(path)


# Mutations.

EDITS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4)
MUTATED = (
    PROTO + ORDERED_DICT + items(a=tensor(), b=tensor(offset=1, shape=(5,), strides=(1,)), c=tensor(strides=(1, 2)))
)


def mutated(content, edits):
    changed = bytearray(content)
    for position, value in edits:
        changed[int(position * len(changed))] = value
    return bytes(changed)


def check_refused_or_consistent(path):
    try:
        entries = read_torch_zip(path)
    except CheckpointError:
        return
    for entry in entries.values():
        read = entry.read()
        assert (read.shape, read.dtype, read.nbytes) == (entry.shape, entry.dtype, entry.nbytes)


@settings(max_examples=400, deadline=None)
@given(edits=EDITS)
def test_a_mutated_pickle_is_either_refused_or_reads_as_it_says(scratch, edits):
    write_zip(scratch, mutated(MUTATED + b".", edits))
    check_refused_or_consistent(scratch)


@settings(max_examples=300, deadline=None)
@given(edits=EDITS, kept=st.just(1.0) | st.floats(0, 1))
def test_a_mutated_archive_is_either_refused_or_reads_as_it_says(scratch, edits, kept):
    write_zip(scratch, MUTATED + b".")
    content = mutated(scratch.read_bytes(), edits)
    scratch.write_bytes(content[: int(kept * len(content))])
    check_refused_or_consistent(scratch)
