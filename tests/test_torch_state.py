"""State dicts of PyTorch in either container: honest ones read as PyTorch reads them, hostile ones run nothing.

The hostile files are put together instruction by instruction, so these tests need no PyTorch.
"""

import os
import pickle
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blenderbot_jax.checkpoint.tensor_file import CheckpointError
from blenderbot_jax.checkpoint.torch_file import read_torch
from tests.fuzzing import refused_or_consistent
from tests.torch_pickles import (
    EMPTY_DICT,
    EMPTY_LIST,
    FALSE,
    NONE,
    ORDERED_DICT,
    PROTO,
    VALUES,
    call,
    group,
    items,
    number,
    state_dict,
    storage,
    symbol,
    tensor,
    text,
    write_legacy,
    write_zip,
)

WRITERS = {"zip": write_zip, "legacy": write_legacy}


@pytest.fixture(params=list(WRITERS))
def container(request):
    return request.param


@pytest.fixture
def write(container):
    return WRITERS[container]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pytorch_model.bin"


@pytest.fixture
def refusal(write, path):
    """The message with which a program is refused."""

    def refused(program):
        write(path, program)
        with pytest.raises(CheckpointError) as error:
            read_torch(path)
        assert str(error.value).startswith(f"{path}: ")
        return str(error.value)

    return refused


@pytest.fixture
def save(container, path):
    """torch.save into the container."""
    torch = pytest.importorskip("torch")
    return lambda value, **options: torch.save(
        value, path, _use_new_zipfile_serialization=container == "zip", **options
    )


# Honest files, by PyTorch.


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "bool"])
def test_tensors_and_their_views_read_as_torch_saved_them(save, path, dtype, protocol):
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
    save(saved, pickle_protocol=protocol)
    entries = read_torch(str(path))
    assert list(entries) == list(saved)
    for name, expected in saved.items():
        read = entries[name].read()
        assert read.dtype == (ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype))
        assert read.shape == tuple(expected.shape)
        np.testing.assert_array_equal(read.astype(np.float64), expected.double().numpy())
    assert {name for name, entry in entries.items() if entry.strides is None} == {"whole", "scalar", "empty", "own"}


def test_a_modules_state_dict_with_its_metadata_and_tied_weights_reads_equal(save, path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 5), torch.nn.LayerNorm(5))
    module[1].weight = module[0].weight
    save(module.state_dict())
    entries = read_torch(path)
    for name, expected in module.state_dict().items():
        np.testing.assert_array_equal(entries[name].read(), expected.numpy())
    assert entries["0.weight"] == entries["1.weight"]


def test_parameters_read_like_tensors(save, path):
    torch = pytest.importorskip("torch")
    save(dict(torch.nn.Linear(3, 2).named_parameters()))
    assert {name: entry.shape for name, entry in read_torch(path).items()} == {"weight": (2, 3), "bias": (2,)}


def test_a_checkpoint_of_more_than_weights_is_refused_by_the_entry(save, path):
    torch = pytest.importorskip("torch")
    save({"weight": torch.ones(2), "epoch": 3})
    with pytest.raises(CheckpointError, match=r"entry 'epoch' must be a tensor.* it is 3; .*model\.state_dict\(\)"):
        read_torch(path)


# Honest files, by hand.


def test_a_hand_made_file_reads_its_values(write, path):
    write(path, state_dict(weight=tensor(), row=tensor(offset=3, shape=(3,), strides=(1,))))
    entries = read_torch(path)
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
def test_every_form_of_a_state_dict_reads(write, path, program):
    write(path, program)
    (entry,) = read_torch(path).values()
    np.testing.assert_array_equal(entry.read(), VALUES.reshape(2, 3))


# Code in pickles.


class Payload:
    def __init__(self, function, argument):
        self._call = function, (argument,)

    def __reduce__(self):
        return self._call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(("function", "name"), [(os.system, f"{os.system.__module__}.system"), (eval, "eval")])
def test_code_in_a_pickle_is_refused_by_name_and_does_not_run(tmp_path, refusal, function, name, protocol):
    canary = tmp_path / "canary"
    argument = f"echo > {canary}" if function is os.system else f"open({str(canary)!r}, 'w').close()"
    program = pickle.dumps({"weight": Payload(function, argument)}, protocol)
    assert f"{name}', which a state dict has no use for; nothing was executed" in refusal(program)
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
def test_a_symbol_off_the_list_is_refused_even_if_it_is_not_called(refusal, name):
    module, _, attribute = name.rpartition(".")
    for mention in (symbol(name), text(module) + text(attribute) + b"\x93"):
        assert f"refers to '{name}'" in refusal(PROTO + EMPTY_DICT + items(a=mention) + b".")


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
        (storage(kind="collections.OrderedDict"), "a storage has one of the types"),
        (storage(key="../data/0"), "must be a plain name, it is '../data/0'"),
        (storage(key=".."), "must be a plain name"),
        (storage(key="a..b"), "must be a plain name"),
        (storage(key="/etc/passwd"), "must be a plain name"),
        (storage(key="0\n"), "must be a plain name"),
        (storage(key="x" * 10_000), "must be a plain name"),
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
def test_a_hostile_value_is_refused_by_its_rule(refusal, path, value, rule):
    message = refusal(PROTO + EMPTY_DICT + items(a=value) + b".")
    assert rule in message
    assert len(message) < len(str(path)) + 600


# Mutations.


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("mutations") / "pytorch_model.bin"


EDITS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4)
MUTATED = (
    PROTO + ORDERED_DICT + items(a=tensor(), b=tensor(offset=1, shape=(5,), strides=(1,)), c=tensor(strides=(1, 2)))
)


def mutated(content, edits):
    changed = bytearray(content)
    for position, value in edits:
        changed[int(position * len(changed))] = value
    return bytes(changed)


@settings(max_examples=400, deadline=None)
@given(edits=EDITS, container=st.sampled_from(list(WRITERS)))
def test_a_mutated_pickle_is_either_refused_or_reads_as_it_says(scratch, edits, container):
    WRITERS[container](scratch, mutated(MUTATED + b".", edits))
    refused_or_consistent(read_torch, scratch)


@settings(max_examples=300, deadline=None)
@given(edits=EDITS, kept=st.just(1.0) | st.floats(0, 1), container=st.sampled_from(list(WRITERS)))
def test_a_mutated_file_is_either_refused_or_reads_as_it_says(scratch, edits, kept, container):
    WRITERS[container](scratch, MUTATED + b".")
    content = mutated(scratch.read_bytes(), edits)
    scratch.write_bytes(content[: int(kept * len(content))])
    refused_or_consistent(read_torch, scratch)
