"""Calls of a tokenizer: shapes, padding, truncation, refusals, and the batch they give."""

import copy
import pickle
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blenderbot_jax.tokenizer import BatchEncoding, BlenderbotTokenizer
from tests.test_tokenizer_byte_level import ANY_TEXT, MERGES, QUIET, VOCAB, theirs


@pytest.fixture(scope="module")
def tiny() -> BlenderbotTokenizer:
    return BlenderbotTokenizer(VOCAB, MERGES)


def test_one_text_gives_flat_lists_and_a_list_gives_right_padded_int32_arrays(tiny):
    one = tiny("hi")
    assert dict(one) == {"input_ids": [VOCAB["Ġhi"], 2], "attention_mask": [1, 1]}
    many = tiny(["hi hi", "hi", ""])
    hi = VOCAB["Ġhi"]
    np.testing.assert_array_equal(many.input_ids, [[hi, hi, 2], [hi, 2, 0], [2, 0, 0]])
    np.testing.assert_array_equal(many.attention_mask, [[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    assert isinstance(many.input_ids, np.ndarray)
    assert many.input_ids.dtype == many.attention_mask.dtype == np.int32
    assert set(many) == {"input_ids", "attention_mask"}
    assert tiny(("hi",)).input_ids.shape == (1, 2)
    assert tiny([]).input_ids.shape == (0, 0)
    assert tiny([], padding="max_length", max_length=7).input_ids.shape == (0, 7)


def test_lists_without_padding_stay_lists(tiny):
    rows = tiny(["hi hi", "hi"], padding=False)
    assert rows.input_ids == [tiny.encode("hi hi"), tiny.encode("hi")]
    assert rows.attention_mask == [[1, 1, 1], [1, 1]]
    assert tiny(["hi", "hi"], padding="do_not_pad").input_ids == [tiny.encode("hi")] * 2
    assert tiny(["hi", "hi"], padding=False, return_tensors="np").input_ids.shape == (2, 2)
    with pytest.raises(ValueError, match="padding=True"):
        tiny(["hi hi", "hi"], padding=False, return_tensors="np")


def test_return_tensors_gives_numpy_or_jax_arrays_also_for_one_text(tiny):
    assert tiny("hi", return_tensors="np").input_ids.shape == (1, 2)
    arrays = tiny(["hi", "hi hi"], return_tensors="jax")
    assert isinstance(arrays.input_ids, jax.Array)
    assert arrays.input_ids.dtype == jnp.int32
    assert tiny.encode("hi", return_tensors="np").shape == (1, 2)
    for kind in ("pt", "tf", "mlx"):
        with pytest.raises(ValueError, match=f"return_tensors must be 'np', 'jax' or None; got '{kind}'"):
            tiny("hi", return_tensors=kind)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"padding": True}, [[9, 9, 9, 2], [9, 2, 0, 0]]),
        ({"padding": "longest"}, [[9, 9, 9, 2], [9, 2, 0, 0]]),
        ({"padding": True, "padding_side": "left"}, [[9, 9, 9, 2], [0, 0, 9, 2]]),
        ({"pad_to_multiple_of": 3}, [[9, 9, 9, 2, 0, 0], [9, 2, 0, 0, 0, 0]]),
        ({"padding": "max_length", "max_length": 5}, [[9, 9, 9, 2, 0], [9, 2, 0, 0, 0]]),
        ({"padding": "max_length", "max_length": 5, "padding_side": "left"}, [[0, 9, 9, 9, 2], [0, 0, 0, 9, 2]]),
        ({"padding": "max_length", "max_length": 5, "pad_to_multiple_of": 3}, [[9, 9, 9, 2, 0, 0], [9, 2, 0, 0, 0, 0]]),
        ({"padding": "max_length", "max_length": 3, "truncation": True}, [[9, 9, 2], [9, 2, 0]]),
        ({"truncation": True, "max_length": 3}, [[9, 9, 2], [9, 2, 0]]),
        ({"max_length": 3}, [[9, 9, 2], [9, 2, 0]]),
        ({"max_length": 3, "truncation": False}, [[9, 9, 9, 2], [9, 2, 0, 0]]),
        ({"padding": False, "truncation": True, "max_length": 3}, [[9, 9, 2], [9, 2]]),
        ({"padding": False, "truncation": False}, [[9, 9, 9, 2], [9, 2]]),
    ],
)
def test_padding_table(tiny, options, expected):
    result = tiny(["hi hi hi", "hi"], **options)
    hi = VOCAB["Ġhi"]
    rows = [[9 if i == hi else i for i in row] for row in map(list, result.input_ids)]
    assert rows == expected
    assert [list(mask) for mask in result.attention_mask] == [[int(i != 0) for i in row] for row in expected]


@pytest.mark.parametrize("truncation", [True, "longest_first", "only_first"])
@pytest.mark.parametrize(
    ("side", "length", "kept"),
    [("right", 5, "abcd"), ("left", 5, "bcde"), ("right", 2, "a"), ("left", 2, "e"), ("right", 1, ""),
     ("left", 1, ""), ("left", 6, "abcde"), ("right", 60, "abcde")],
)  # fmt: skip
def test_truncation_keeps_eos_from_either_side(truncation, side, length, kept):
    tokenizer = BlenderbotTokenizer(VOCAB, MERGES, add_prefix_space=False)
    ids = tokenizer("abcde", truncation=truncation, max_length=length, truncation_side=side)["input_ids"]
    assert ids == [*(VOCAB[char] for char in kept), 2]
    fixed = BlenderbotTokenizer(VOCAB, MERGES, add_prefix_space=False, truncation_side=side)
    assert fixed.encode("abcde", truncation=truncation, max_length=length) == ids
    bare = tokenizer("abcde", truncation=True, max_length=2, truncation_side=side, add_special_tokens=False)
    assert tokenizer.decode(bare["input_ids"]) == ("ab" if side == "right" else "de")


@pytest.fixture(scope="module")
def limited(data_folder):
    """Ours and theirs with a limit of 8 ids, by truncation side."""
    folder = data_folder / "tokenizers" / "blenderbot-400M-distill"
    pairs = {}
    for side in ("left", "right"):
        options = {"model_max_length": 8, "truncation_side": side}
        pairs[side] = (BlenderbotTokenizer.from_pretrained(folder, **options),
                       theirs(folder, add_eos_token=True, **options))  # fmt: skip
    return pairs


@QUIET
@given(
    texts=st.lists(ANY_TEXT, min_size=1, max_size=3),
    modes=st.tuples(
        st.sampled_from([False, True, "max_length"]),
        st.sampled_from([None, False, True, "longest_first", "do_not_truncate"]),
    ),
    lengths=st.tuples(st.none() | st.integers(1, 12), st.none() | st.integers(1, 5)),
    sides=st.tuples(*[st.sampled_from(["left", "right"])] * 2),
)
# transformers warns of a max_length without effect; ours takes it in silence.
@pytest.mark.filterwarnings("ignore:.*max_length")
def test_padding_and_truncation_equal_transformers(limited, texts, modes, lengths, sides):
    padding, truncation = modes
    options = {"padding": padding, "truncation": truncation, "max_length": lengths[0], "pad_to_multiple_of": lengths[1]}
    ours, other = limited[sides[1]]
    for text in (texts, texts[0]):
        try:
            expected = other(text, padding_side=sides[0], **options)
        except ValueError:
            with pytest.raises(ValueError, match="multiple"):
                ours(text, padding_side=sides[0], **options)
            continue
        if padding is not False and len({len(row) for row in expected["input_ids"]} if text is texts else {0}) > 1:
            with pytest.raises(ValueError, match="truncation=True"):
                ours(text, padding_side=sides[0], **options)
            continue
        result = ours(text, padding_side=sides[0], **options)
        for name in ("input_ids", "attention_mask"):
            plain = result[name].tolist() if isinstance(result[name], np.ndarray) else result[name]
            assert plain == expected[name], (text, options)


def test_nothing_truncates_unless_asked(tiny):
    long = "hi " * 300
    limited = BlenderbotTokenizer(VOCAB, MERGES, model_max_length=128)
    for tokenizer in (tiny, limited):
        assert len(tokenizer(long)["input_ids"]) == 302
        assert tokenizer([long]).input_ids.shape == (1, 302)
        assert len(tokenizer(long, max_length=5, truncation=False)["input_ids"]) == 302
        assert len(tokenizer(long, padding="max_length", max_length=5)["input_ids"]) == 302


def test_max_length_falls_back_to_the_models_and_is_demanded_otherwise(tiny):
    limited = BlenderbotTokenizer(VOCAB, MERGES, model_max_length=6)
    assert len(limited.encode("hi " * 30, truncation=True)) == 6
    assert limited(["hi"], padding="max_length").input_ids.shape == (1, 6)
    for options in ({"truncation": True}, {"padding": "max_length"}):
        with pytest.raises(ValueError, match="pass max_length"):
            tiny(["hi"], **options)


def test_a_row_too_long_for_the_padded_width_is_an_error_that_names_truncation(tiny):
    with pytest.raises(ValueError, match="truncation=True"):
        tiny(["hi hi hi", "hi"], padding="max_length", max_length=3)
    # Alone it stays whole, as in transformers: nothing truncates unless asked.
    assert tiny(["hi hi hi"], padding="max_length", max_length=3).input_ids.shape == (1, 4)


@pytest.mark.parametrize(
    ("options", "error", "rule"),
    [
        ({"padding": "widest"}, ValueError, "padding must be one of"),
        ({"truncation": "only_second"}, ValueError, "truncation must be one of"),
        ({"truncation": 1}, ValueError, "truncation must be one of"),
        ({"padding_side": "top"}, ValueError, "padding_side must be one of 'left', 'right'"),
        ({"truncation_side": "top"}, ValueError, "truncation_side must be one of 'left', 'right'"),
        ({"max_length": 0, "truncation": True}, ValueError, "max_length must be"),
        ({"max_length": -3}, ValueError, "max_length must be"),
        ({"max_length": 2.5}, ValueError, "max_length must be"),
        ({"max_length": True}, ValueError, "max_length must be"),
        ({"pad_to_multiple_of": 0}, ValueError, "pad_to_multiple_of must be"),
        ({"truncation": True, "padding": True, "max_length": 5, "pad_to_multiple_of": 4}, ValueError, "got 5 and 4"),
        ({"return_token_type_ids": True}, TypeError, "return_token_type_ids=False only"),
        ({"stride": 3}, TypeError, "supports stride=0 only"),
        ({"max_len": 3}, TypeError, "no argument 'max_len'"),
    ],
)
def test_wrong_options_are_refused_by_name(tiny, options, error, rule):
    with pytest.raises(error, match=rule):
        tiny("hi", **options)


def test_neutral_options_of_transformers_are_accepted(tiny):
    options = {"return_token_type_ids": False, "verbose": False, "return_attention_mask": None}
    assert tiny("hi", **options) == tiny("hi")


@pytest.mark.parametrize("text", [None, 3, b"hi", {"hi"}, {"text": "hi"}, ["hi", None], [["hi"]], [("hi", "you")]])
def test_text_of_the_wrong_type_is_a_type_error_that_states_the_rule(tiny, text):
    with pytest.raises(TypeError, match="a str or a list of str"):
        tiny(text)


def test_encode_takes_one_text(tiny):
    with pytest.raises(TypeError, match="encode takes one str"):
        tiny.encode(["hi"])


def test_a_lone_surrogate_is_a_value_error_that_says_where(tiny):
    with pytest.raises(ValueError, match=r"position 1 .*surrogate"):
        tiny("a\ud800b")
    assert tiny.encode("a\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def test_a_batch_is_a_read_only_mapping_with_attributes(tiny):
    result = tiny(["hi"])
    assert isinstance(result, Mapping)
    assert isinstance(result, BatchEncoding)
    assert result["input_ids"] is result.input_ids
    assert result == pickle.loads(pickle.dumps(result)) == copy.deepcopy(result)
    assert result != tiny(["yoo"])
    assert "input_ids" in repr(result)
    with pytest.raises(AttributeError, match="read-only"):
        result.input_ids = 3
    with pytest.raises(AttributeError, match="no attribute 'token_type_ids'"):
        _ = result.token_type_ids
    with pytest.raises(TypeError):
        result["input_ids"] = 3
