"""The byte-level tokenizer: ids and text as transformers 5, `</s>` on every text, decoding, special tokens."""

import copy
import doctest
import json
import pickle
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from blenderbot_jax.tokenizer import BlenderbotTokenizer, BlenderbotTokenizerFast, base, batch, byte_level, encoding

SPECIALS = ["<pad>", "<s>", "</s>", "<unk>"]
MERGES = ["Ġ h", "h i", "Ġh i", "o o", "Ġ y", "Ġy oo"]
TOKENS = [*SPECIALS, *sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]
VOCAB = {token: i for i, token in enumerate(TOKENS)}
MODELS = ["blenderbot-400M-distill", "blenderbot-1B-distill", "blenderbot-3B"]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
TYPED = st.lists(ANY_TEXT | st.sampled_from([*SPECIALS, "<mask>", " ", "  ", "\n", "'s", " don't "]), max_size=8)
QUIET = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


def theirs(folder: Path, **options):
    transformers = pytest.importorskip("transformers")
    # The mask is null: its id, 8008, lies outside the embedding, and ours is plain text by design.
    options = {"mask_token": None, **options}
    return transformers.BlenderbotTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), **options
    )


@pytest.fixture(scope="session")
def folder(data_folder) -> Path:
    return data_folder / "tokenizers" / "blenderbot-400M-distill"


@pytest.fixture(scope="session")
def published(folder) -> BlenderbotTokenizer:
    return BlenderbotTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def tiny() -> BlenderbotTokenizer:
    return BlenderbotTokenizer(VOCAB, MERGES)


@pytest.fixture(scope="session")
def reference(folder):
    return theirs(folder)


@pytest.mark.parametrize("name", MODELS)
def test_every_golden_encoding_holds_for_all_three_models(data_folder, name):
    root = data_folder / "tokenizers"
    tokenizer = BlenderbotTokenizer.from_pretrained(root / name)
    rows = json.loads((root / "golden_encodings.json").read_text(encoding="utf-8"))["blenderbot_8008"]
    assert len(rows) == 19
    for row in rows:
        assert tokenizer(row["text"])["input_ids"] == row["ids"], row["text"]
        assert tokenizer.decode(row["ids"], skip_special_tokens=True) == row["decoded"]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Sam", [5502, 2]),
        (" Sam", [5502, 2]),
        ("sam", [268, 343, 2]),
        ("Hello world", [6950, 1085, 2]),
        ("My friends are cool but they eat too many carbs.",
         [863, 1329, 366, 1449, 373, 382, 1861, 618, 847, 911, 1372, 21, 2]),
        ("a  b", [265, 228, 275, 2]),
        ("a\nb", [265, 206, 73, 2]),
        ("  lead", [228, 1676, 2]),
        ("I'm\tyou're 1234 don't", [281, 476, 205, 3059, 547, 2094, 26, 27, 446, 342, 2]),
        ("héllo 😀", [326, 3952, 289, 86, 3417, 230, 2]),
        ("\n", [228, 206, 2]),
        ("  ", [228, 228, 2]),
        ("\t1", [228, 205, 24, 2]),
        ("", [2]),
        ("a</s>b", [265, 2, 275, 2]),
        ("<s> Hello</s> <s>Hi</s>", [1, 6950, 2, 228, 1, 4424, 2, 2]),
        ("a<mask>b", [265, 35, 84, 3280, 37, 73, 2]),
    ],
)  # fmt: skip
def test_documented_ids_hold(published, text, ids):
    assert published.encode(text) == ids


def test_ids_of_ten_thousand_real_turns_equal_transformers_with_eos(data_folder, published, reference):
    turns = []
    for file in sorted((data_folder / "dialogues").glob("*.jsonl")):
        lines = file.read_text(encoding="utf-8").splitlines()
        turns += [turn["text"] for line in lines for turn in json.loads(line)["turns"]][:1500]
    turns = turns[:10_000]
    assert len(turns) == 10_000
    ids = published(turns, padding=False)["input_ids"]
    assert ids == [[*row, 2] for row in reference(turns)["input_ids"]]
    assert published.batch_decode(ids) == reference.batch_decode(ids)


@QUIET
@given(parts=TYPED, split=st.booleans())
def test_ids_of_any_text_equal_transformers_with_eos(published, reference, parts, split):
    text = "".join(parts)
    ids = published(text, split_special_tokens=split)["input_ids"]
    assert ids == [*reference(text, split_special_tokens=split)["input_ids"], 2]
    assert published.decode(ids) == reference.decode(ids)
    assert published.tokenize(text, split_special_tokens=split) == reference.tokenize(text, split_special_tokens=split)


@QUIET
@given(ids=st.lists(st.integers(0, 8007), max_size=30), skip=st.booleans())
def test_text_of_any_ids_equals_transformers(published, reference, ids, skip):
    assert published.decode(ids, skip_special_tokens=skip) == reference.decode(ids, skip_special_tokens=skip)
    tokens = published.convert_ids_to_tokens(ids, skip_special_tokens=skip)
    assert tokens == reference.convert_ids_to_tokens(ids, skip_special_tokens=skip)
    assert published.convert_tokens_to_string(tokens) == reference.convert_tokens_to_string(tokens)


@QUIET
@given(text=ANY_TEXT)
def test_decoding_gives_any_plain_text_back_after_its_leading_space(tiny, text):
    ids = tiny.encode(text, split_special_tokens=True)
    assert ids[-1] == 2
    assert 2 not in ids[:-1]
    # Only U+0020 counts as a leading space; a tab or a no-break space gets one before it.
    expected = text if not text or text.startswith(" ") else f" {text}"
    assert tiny.decode(ids[:-1]) == expected
    assert tiny.decode(ids, skip_special_tokens=True) == expected


def test_without_prefix_space_ids_equal_transformers(folder, published):
    plain = BlenderbotTokenizer.from_pretrained(folder, add_prefix_space="false")
    assert plain.encode("Hello world") == [47, 921, 86, 1085, 2]
    assert plain.encode("a</s>b c") == [*theirs(folder, add_prefix_space=False)("a</s>b c")["input_ids"], 2]
    assert plain != published


def test_what_users_type_cannot_end_the_prompt_with_split_special_tokens(published):
    for typed in ("a</s>b", "</s>", "<s>x<pad>", "hi <unk>"):
        ids = published.encode(typed, split_special_tokens=True)
        assert not set(ids[:-1]) & {0, 1, 2, 3}
        assert ids[-1] == 2
        assert published.decode(ids, skip_special_tokens=True).strip() == typed


def test_eos_comes_exactly_once_and_not_at_all_without_special_tokens(published):
    assert published("Sam")["input_ids"] == [5502, 2]
    assert published("Sam", add_special_tokens=False)["input_ids"] == [5502]
    assert published("", add_special_tokens=False)["input_ids"] == []


def test_three_spaces_between_turns_give_the_two_delimiter_ids(published):
    assert published.encode("  ", add_special_tokens=False) == [228, 228]
    joined = published.encode("You are a helpful chatbot.   Hello!")
    assert joined == [553, 366, 265, 4792, 3879, 73, 311, 21, 228, 228, 6950, 8, 2]


def test_mask_is_plain_text_and_never_an_id_outside_the_embedding(published):
    assert len(published) == published.vocab_size == 8008
    assert (published.mask_token, published.mask_token_id) == ("<mask>", None)
    assert max(published.encode("<mask>")) < 8008
    assert published.convert_tokens_to_ids("<mask>") == 3
    with pytest.raises(ValueError, match=r"0\.\.8007.*got 8008"):
        published.decode([8008])


def test_mask_is_a_special_token_where_the_vocabulary_holds_it():
    tokenizer = BlenderbotTokenizer({**VOCAB, "<mask>": len(VOCAB)}, MERGES)
    assert tokenizer.mask_token_id == len(VOCAB)
    assert tokenizer.encode("hi <mask>") == [VOCAB["Ġhi"], len(VOCAB), 2]


def test_pairs_are_refused_because_the_second_text_would_be_lost(tiny):
    for call in (lambda: tiny("history", "message"), lambda: tiny.encode("history", text_pair="message")):
        with pytest.raises(ValueError, match="Conversation"):
            call()


def test_symbols_outside_a_small_vocabulary_become_unk_and_are_not_dropped():
    tokenizer = BlenderbotTokenizer({token: i for i, token in enumerate([*SPECIALS, "Ġ", "a"])}, [])
    assert tokenizer.encode("abba") == [4, 5, 3, 3, 5, 2]


def test_a_leading_space_stays_and_bytes_that_are_no_text_follow_errors(folder, published):
    assert published.decode(published.encode("That's unfortunate.")[:-1]) == " That's unfortunate."
    assert published.decode([170, 259, 275]) == "\ufffd b"
    assert BlenderbotTokenizer.from_pretrained(folder, errors="ignore").decode([170, 259, 275]) == " b"
    with pytest.raises(UnicodeDecodeError):
        BlenderbotTokenizer.from_pretrained(folder, errors="strict").decode([170, 259, 275])


def test_byte_symbols_are_those_of_the_tokenizers_library():
    table = byte_level.byte_symbols()
    assert set(table) == set(ByteLevel.alphabet())
    assert sorted(table.values()) == list(range(256))


@pytest.mark.parametrize("module", [base, batch, byte_level, encoding])
def test_docstring_examples_run(published, folder, module):
    known = {"tokenizer": published, "folder": folder, "BlenderbotTokenizer": BlenderbotTokenizer}
    result = doctest.testmod(module, extraglobs=known)
    assert result.attempted
    assert not result.failed


# Decoding and look-ups


def test_decode_takes_ints_lists_numpy_and_jax_arrays(tiny):
    hi = VOCAB["Ġhi"]
    for ids in (hi, np.int64(hi), np.array(hi), jnp.array(hi), [hi], (hi,), np.array([hi], np.uint16), jnp.array([hi])):
        assert tiny.decode(ids) == " hi"
        assert tiny.convert_ids_to_tokens(ids) in ("Ġhi", ["Ġhi"])
    assert tiny.decode([]) == tiny.decode(np.array([], np.int32)) == ""
    assert tiny.decode([1, hi, 2, 0], skip_special_tokens=True, clean_up_tokenization_spaces=True) == " hi"


def test_batch_decode_takes_lists_and_arrays_of_rows(tiny):
    rows = [[VOCAB["Ġhi"], 2], [VOCAB["Ġyoo"], 2]]
    for ids in (rows, np.array(rows), jnp.array(rows), [np.array(row) for row in rows]):
        assert tiny.batch_decode(ids, skip_special_tokens=True) == [" hi", " yoo"]
    assert tiny.batch_decode([[5], []]) == [tiny.decode(5), ""]
    assert tiny.batch_decode([]) == []
    with pytest.raises(ValueError, match=r"sequences\[:, 0\]"):
        tiny.batch_decode(np.zeros((2, 1, 3), np.int32))
    with pytest.raises(ValueError, match=r"array \[B, T\]"):
        tiny.batch_decode([5, 6])
    with pytest.raises(ValueError, match=r"array \[B, T\]"):
        tiny.batch_decode(5)


@pytest.mark.parametrize("ids", [len(VOCAB), [5, len(VOCAB)], -1, [-100], np.array([2**40]), jnp.array([300])])
def test_ids_outside_the_vocabulary_are_refused_with_its_size(tiny, ids):
    for method in (tiny.decode, tiny.convert_ids_to_tokens):
        with pytest.raises(ValueError, match=rf"0\.\.{len(VOCAB) - 1}.*got"):
            method(ids)


@pytest.mark.parametrize("ids", ["5", [5.0], True, [None], 10**30, np.array([1.5]), {"input_ids": [5]}, b"5"])
def test_ids_that_are_no_whole_numbers_are_a_type_error(tiny, ids):
    with pytest.raises(TypeError, match="whole numbers"):
        tiny.decode(ids)


def test_decode_refuses_more_than_one_sequence(tiny):
    for ids in ([[5], [6]], [[5], [6, 7]], np.zeros((2, 3), int)):
        with pytest.raises(ValueError, match="batch_decode"):
            tiny.decode(ids)


def test_tokens_and_ids_convert_both_ways(published):
    assert published.tokenize("Hello world") == ["ĠHello", "Ġworld"]
    assert published.tokenize("Hello world", add_special_tokens=True) == ["ĠHello", "Ġworld", "</s>"]
    assert published.convert_tokens_to_ids(["ĠHello", "</s>", "no such token"]) == [6950, 2, 3]
    assert published.convert_tokens_to_ids("ĠHello") == 6950
    assert published.convert_ids_to_tokens([6950, 2], skip_special_tokens=True) == ["ĠHello"]
    assert published.convert_tokens_to_string(["ĠHello", "</s>"]) == " Hello</s>"


def test_special_tokens_have_the_ids_of_the_models(published):
    names = ("pad", "bos", "eos", "unk", "sep", "cls")
    assert [getattr(published, f"{name}_token_id") for name in names] == [0, 1, 2, 3, 2, 1]
    assert [getattr(published, f"{name}_token") for name in names[:4]] == SPECIALS
    assert sorted(published.all_special_ids) == [0, 1, 2, 3]
    assert sorted(published.all_special_tokens) == sorted(SPECIALS)
    vocab = published.get_vocab()
    assert len(vocab) == 8008
    vocab.clear()
    published.all_special_ids.clear()
    assert len(published.get_vocab()) == 8008
    assert published.decode([6950, 2], skip_special_tokens=True) == " Hello"


def test_a_tokenizer_cannot_be_changed_and_no_call_changes_it(tiny):
    with pytest.raises(AttributeError, match="truncation_side='left' to a call"):
        tiny.truncation_side = "left"
    tiny(["hi hi hi", "hi"], truncation=True, max_length=2, padding="max_length", split_special_tokens=True)
    assert tiny("hi hi hi</s>")["input_ids"][-2:] == [2, 2]
    assert BlenderbotTokenizer(VOCAB, MERGES).encode("hi hi hi") == tiny.encode("hi hi hi")


def test_equality_and_hash_go_by_content(tiny):
    same = BlenderbotTokenizer(dict(VOCAB), tuple(MERGES))
    assert tiny == same
    assert hash(tiny) == hash(same)
    assert tiny == pickle.loads(pickle.dumps(tiny)) == copy.deepcopy(tiny)
    for other in (
        BlenderbotTokenizer(VOCAB, MERGES[:-1]),
        BlenderbotTokenizer(VOCAB, MERGES, truncation_side="left"),
        BlenderbotTokenizer(VOCAB, MERGES, model_max_length=128),
        "tokenizer",
    ):
        assert tiny != other
    assert repr(tiny) == (
        f"BlenderbotTokenizer(vocab_size={len(VOCAB)}, model_max_length=None, "
        "padding_side='right', truncation_side='right')"
    )
    assert BlenderbotTokenizerFast is BlenderbotTokenizer
