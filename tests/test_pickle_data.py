"""Pickles read as data: plain values come out as pickle would give them, and nothing else is understood."""

import pickle
import struct
from collections import OrderedDict

import pytest

from blenderbot_jax.checkpoint.pickle_data import Symbol, interpret
from blenderbot_jax.checkpoint.tensor_file import CheckpointError

PROTO = b"\x80\x02"
ORDERED_DICT = b"ccollections\nOrderedDict\n"


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def read(program, symbols=None, persistent=lambda reference: ("outside", reference)):
    return interpret(program, "weights: data.pkl", symbols or {}, persistent)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [
        {},
        {"a": None, "b": True, "c": False, "naïve ☃": "𝄞"},
        [0, 1, 255, 256, 65535, 65536, -1, 2**31 - 1, -(2**31), 2**31, -(2**63), 2**200],
        [0.0, -1.5, 1e300, float("inf")],
        ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        [[[]], {"x": {"y": [1, (2, [3])]}}],
        OrderedDict(a=1, b=OrderedDict(c=2)),
        {str(i): i for i in range(3000)},
        ["again"] * 3,
    ],
)
def test_plain_values_read_as_pickle_reads_them(value, protocol):
    result = read(pickle.dumps(value, protocol))
    assert result == value
    assert type(result) is type(value)


def test_what_is_shared_stays_shared():
    shared = ["x"]
    first, second = read(pickle.dumps([shared, shared], 2))
    assert first is second


def test_a_listed_symbol_is_inert_and_its_call_goes_to_the_given_function():
    call = b"cpackage.module\nfunction\n(K\x01K\x02t"
    seen = []
    assert read(PROTO + call + b"R.", {"package.module.function": lambda arguments: seen.append(arguments) or "made"})
    assert seen == [(1, 2)]
    assert read(PROTO + call + b"\x86.", {"package.module.function": None}) == (
        Symbol("package.module.function"),
        (1, 2),
    )


def test_a_persistent_id_goes_to_the_given_function():
    assert read(PROTO + b"K\x07Q.") == ("outside", 7)


def test_the_attributes_of_an_ordered_dict_are_dropped():
    result = read(PROTO + ORDERED_DICT + b")R}" + text("_metadata") + b"K\x01sb.")
    assert result == OrderedDict()
    assert not hasattr(result, "_metadata")


@pytest.mark.parametrize(
    ("program", "rule"),
    [
        (b"", "byte 0: is cut off: 1 more bytes must follow"),
        (PROTO + b"}", "byte 3: is cut off"),
        (PROTO + b"cos", "a name must end with a newline"),
        (b"\x80\x01}.", "protocol must be 2 to 5, it is 1"),
        (b"\x80\xff}.", "protocol must be 2 to 5, it is 255"),
        (PROTO + b"\xfe.", "instruction b'\\xfe' has no place in a state dict"),
        (PROTO + b"I5\n.", "instruction b'I' has no place in a state dict"),
        (PROTO + b"(ios\nsystem\n.", "instruction b'i' has no place in a state dict"),
        (PROTO + b"\x82\x01.", "instruction b'\\x82' has no place in a state dict"),
        (PROTO + b".", "exactly one value"),
        (PROTO + b"}}.", "exactly one value"),
        (PROTO + b"(}.", "exactly one value"),
        (PROTO + b"}.}", "nothing after it"),
        (PROTO + b"}" * 2_000_001, "fewer than 2000000 instructions"),
        (PROTO + b"\x85.", "empty stack"),
        (PROTO + b"}(\x85.", "empty stack"),
        (PROTO + b"q\x00.", "empty stack"),
        (PROTO + b"t.", "a mark that was never set"),
        (PROTO + b"h\x05.", "memo slot 5 is read before"),
        (PROTO + b"}q\x05}q\x05.", "memo slot 5 is written twice"),
        (PROTO + b"X\xff\xff\xff\xff.", "cut off: 4294967295 more bytes"),
        (PROTO + b"\x8c\x01\xff.", "must be UTF-8"),
        (PROTO + b"NN\x93.", "named by two strings, not None and None"),
        (PROTO + b"}K\x01Ns.", "a key must be a string, this one is 1"),
        (PROTO + b"})Ns.", "a key must be a string, this one is a value of type tuple"),
        (PROTO + b"}(" + text("a") + b"NNu.", "takes pairs of key and value, here are 3"),
        (PROTO + b"}(" + (text("a") + b"N") * 2 + b"u.", "key 'a' is there twice"),
        (PROTO + b"N" + text("a") + b"Ns.", "only a dict still being built"),
        (PROTO + b"}Na.", "only a list still being built"),
        (PROTO + b"NNb.", "only an OrderedDict can be given attributes, not None"),
        (PROTO + b"cos\nsystem\n.", "refers to 'os.system', which a state dict has no use for; nothing was executed"),
        (PROTO + b"N)R.", "calls None with a value of type tuple"),
    ],
)
def test_a_malformed_pickle_is_refused_by_its_rule(program, rule):
    with pytest.raises(CheckpointError) as error:
        read(program)
    assert str(error.value).startswith("weights: data.pkl, byte ")
    assert rule in str(error.value)


def recursive_values():
    holds_itself, in_tuple, in_dict = [], [], {}
    holds_itself.append(holds_itself)
    in_tuple.append((in_tuple,))
    in_dict["a"] = [in_dict]
    return [holds_itself, in_tuple, in_dict]


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("value", recursive_values(), ids=["list", "tuple", "dict"])
def test_a_value_that_contains_itself_is_refused(value, protocol):
    with pytest.raises(CheckpointError, match=r"still being built|no place in a state dict"):
        read(pickle.dumps(value, protocol))


def test_one_list_cannot_be_multiplied_into_many_dicts():
    items = PROTO + ORDERED_DICT + b"](" + text("a") + b"N\x86e\x85q\x00R"
    assert read(items + b".") == {"a": None}
    with pytest.raises(CheckpointError, match="one new list of pairs"):
        read(items + ORDERED_DICT + b"h\x00R\x86.")


def test_deep_nesting_is_only_a_value():
    value = read(PROTO + b")" + b"\x85" * 500_000 + b".")
    assert isinstance(value, tuple)
