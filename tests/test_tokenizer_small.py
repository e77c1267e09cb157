"""The 90M tokenizer: ids and text as transformers, ids as ParlAI, special tokens, what users type, decoding."""

import copy
import doctest
import json
import pickle
import re
import time
from itertools import pairwise
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from blenderbot_jax.tokenizer import BlenderbotSmallTokenizer, BlenderbotSmallTokenizerFast, bpe, load, small
from tests.test_tokenizer_byte_level import ANY_TEXT, QUIET

SPECIALS = ["__null__", "__start__", "__end__", "__unk__"]
MERGES = ["h i</w>", "a p", "t e</w>", "ap t</w>", "a d", "ad apt</w>", "a c", "ac t</w>", "e n", "en d", "_ _",
          "_ _</w>", "__ end", "__end __</w>"]  # fmt: skip
# What these merges make, but for `ac` and `apt`, which the vocabulary lacks.
TOKENS = [*SPECIALS, "__newln__", "hi", "adapt", "act", "ap@@", "te", "ad@@", "e@@", "n@@", "d@@", "_@@", "_", "'"]
VOCAB = {token: i for i, token in enumerate(TOKENS)}
TYPED = st.lists(
    ANY_TEXT
    | st.sampled_from([*SPECIALS, "__newln__", "__END__", "@@ ", "</w>", " ", "\n", "'", "don't ", "İ", "ΑΣ."]),
    max_size=8,
).map("".join)


def plain_pieces(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """subword-nmt's rule as it reads: of the pairs in sight join the first learnt, everywhere, until none is left."""
    symbols = [*word[:-1], word[-1] + "</w>"]
    while known := [pair for pair in pairwise(symbols) if pair in ranks]:
        best = min(known, key=ranks.__getitem__)
        joined = []
        while symbols:
            if tuple(symbols[:2]) == best:
                joined.append("".join(best))
                symbols = symbols[2:]
            else:
                joined.append(symbols[0])
                symbols = symbols[1:]
        symbols = joined
    return [f"{symbol}@@" for symbol in symbols[:-1]] + [symbols[-1].removesuffix("</w>")]


def plain_parlai(text: str, vocab: dict[str, int], ranks: dict[tuple[str, str], int]) -> list[int]:
    """ParlAI's way to ids, without any memory."""
    words = re.findall(r"\w+|[^\w\s]", text.lower().replace("\n", " __newln__ "))
    return [vocab.get(piece, vocab["__unk__"]) for word in words for piece in plain_pieces(word, ranks)]


def read_ranks(folder: Path) -> dict[tuple[str, str], int]:
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")[1:-1]
    return {(left, right): rank for rank, (left, right) in enumerate(line.split(" ") for line in lines)}


@pytest.fixture(scope="session")
def folder(data_folder) -> Path:
    return data_folder / "tokenizers" / "blenderbot_small-90M"


@pytest.fixture(scope="session")
def published(folder) -> BlenderbotSmallTokenizer:
    return BlenderbotSmallTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def as_trained(folder) -> BlenderbotSmallTokenizer:
    return BlenderbotSmallTokenizer.from_pretrained(folder, mode="parlai")


@pytest.fixture(scope="session")
def reference(folder):
    return pytest.importorskip("transformers").BlenderbotSmallTokenizer.from_pretrained(folder)


def real_turns(data_folder: Path) -> list[str]:
    """Ten thousand, from every file."""
    found = []
    for file in sorted((data_folder / "dialogues").glob("*.jsonl")):
        lines = file.read_text(encoding="utf-8").splitlines()
        found += [turn["text"] for line in lines for turn in json.loads(line)["turns"]][:1500]
    assert len(found) >= 10_000
    return found[:10_000]


@pytest.fixture(scope="session")
def turns(data_folder) -> list[str]:
    return real_turns(data_folder)


@pytest.fixture(scope="session")
def tiny() -> BlenderbotSmallTokenizer:
    return BlenderbotSmallTokenizer(VOCAB, MERGES)


def test_every_golden_encoding_holds(data_folder, published):
    rows = json.loads((data_folder / "tokenizers" / "golden_encodings.json").read_text(encoding="utf-8"))
    assert len(rows["blenderbot_small_90M"]) == 12
    for row in rows["blenderbot_small_90M"]:
        assert published(row["text"])["input_ids"] == row["ids"], row["text"]
        assert published.decode(row["ids"]) == row["decoded"]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("sam", [1384]),
        ("My friends are cool but they eat too many carbs.", [42, 643, 46, 1430, 45, 52, 1176, 146, 177, 753, 2430, 5]),
        ("I am a small frog.", [14, 195, 12, 321, 9895, 5]),
        ("a\nb", [12, 4, 354]),
        ("a \n b", [12, 354]),
        ("Wow!? (yes)...", [1970, 37, 20, 3, 142, 39, 5, 5, 5]),
        ("don't I'm", [67, 8, 30, 14, 8, 58]),
        ("hi__end__ __start__there", [792, 2, 1, 60]),
        ("héllo 😀", [477, 1677, 6016, 3]),
        ("a@b.com", [337, 3, 354, 3, 2680]),
        ("C++ #1 & 2%", [427, 3, 2765, 3, 143, 553, 735, 183]),
        ("don’t", [2166, 3, 30]),
        ("(yes)", [3, 142, 39]),
        ("1,234.5", [143, 3, 735, 2738, 3, 253]),
        # A newline after an apostrophe is part of a run of white space, and lost.
        ("a'\nb", [12, 8, 354]),
        # Lower-cased, this is two characters, of which the second is no letter.
        ("İ", [318, 16950]),
        ("ΑΣ.", [10860, 14614, 5]),
        ("__END__", [2]),
        ("", []),
        (" \n\t", []),
    ],
)
def test_ids_as_transformers_has_them(published, text, ids):
    assert published.encode(text) == ids


@pytest.mark.parametrize(
    ("text", "ids", "decoded"),
    [
        ("sam", [1384], "sam"),
        ("(yes)", [40, 142, 39], "( yes )"),
        ("1,234.5", [143, 6, 735, 2738, 5, 253], "1 , 234 . 5"),
        ("Hello\nworld", [880, 4, 159], "hello \n world"),
        ("a \n b", [12, 4, 354], "a \n b"),
        ("\n\n", [4, 4], "\n \n"),
        ("", [], ""),
    ],
)
def test_ids_and_text_as_parlai_has_them(as_trained, text, ids, decoded):
    assert as_trained.encode(text) == ids
    assert as_trained.decode(ids) == decoded


def test_no_end_is_appended_and_rows_are_padded_with_null(tiny):
    batch = tiny(["hi hi", "hi"])
    np.testing.assert_array_equal(batch.input_ids, [[5, 5], [5, 0]])
    np.testing.assert_array_equal(batch.attention_mask, [[1, 1], [1, 0]])
    assert tiny("hi")["input_ids"] == tiny("hi", add_special_tokens=False)["input_ids"] == [5]
    assert tiny(["hi hi hi", "hi"], truncation=True, max_length=2, padding_side="left").input_ids.tolist() == [
        [5, 5],
        [0, 5],
    ]
    with pytest.raises(ValueError, match="Conversation"):
        tiny("history", "message")


def test_a_toy_vocabulary_gives_its_pieces_and_their_ids(tiny):
    # After transformers' own test, tests/models/blenderbot_small/test_tokenization_blenderbot_small.py.
    assert tiny.tokenize("adapt act apte") == ["adapt", "act", "ap@@", "te"]
    assert tiny.convert_tokens_to_ids(["__start__", "adapt", "act", "ap@@", "te", "__end__"]) == [1, 6, 7, 8, 9, 2]
    assert tiny.encode("__start__ Adapt ACT apte__end__") == [1, 6, 7, 8, 9, 2]
    assert tiny.decode([1, 6, 7, 8, 9, 2]) == "__start__ adapt act apte __end__"


def test_special_tokens_have_the_ids_of_the_model(published):
    for name, number in {"pad": 0, "bos": 1, "eos": 2, "unk": 3}.items():
        assert getattr(published, f"{name}_token_id") == number
    assert sorted(published.all_special_tokens) == sorted(SPECIALS)
    assert len(published) == published.vocab_size == 54944
    assert (published.sep_token_id, published.cls_token_id, published.mask_token_id) == (None, None, None)


@pytest.mark.parametrize("mode", ["hf", "parlai"])
def test_what_users_type_is_no_special_token_with_split_special_tokens(folder, mode):
    tokenizer = BlenderbotSmallTokenizer.from_pretrained(folder, mode=mode)
    for token in SPECIALS:
        for typed in (token, token.upper(), f"hi {token} there", f"{token} {token}", f"{token}\n", token * 2):
            ids = tokenizer.encode(typed, split_special_tokens=True)
            assert not set(ids) & {0, 1, 2, 3}, typed
            assert (
                tokenizer.decode(ids).split()
                == typed.lower().replace("\n", " __newln__"[: 10 * (mode == "hf")]).split()
            )
        assert tokenizer.encode(token) == tokenizer.encode(token.upper()) == [VOCAB[token]]


def test_parlai_mode_knows_special_tokens_by_their_pieces_alone(tiny):
    as_trained = BlenderbotSmallTokenizer(VOCAB, MERGES, mode="parlai")
    assert tiny.encode("hi__end__hi") == [5, 2, 5]
    assert 2 not in as_trained.encode("hi__end__hi")
    for tokenizer in (tiny, as_trained):
        assert tokenizer.encode("hi __END__") == [5, 2]
        # The tail of a word, as transformers and ParlAI cut it.
        assert tokenizer.encode("xd__END__") == [3, 13, 2]
        assert tokenizer.encode("xd__END__", split_special_tokens=True) == [3, 13, 14, 14, 11, 12, 13, 14, 15]


def test_unknown_pieces_are_unk_as_ids_and_themselves_as_tokens(tiny):
    assert tiny.encode("hi 😀 xy") == [5, 3, 3, 3]
    assert tiny.tokenize("hi 😀 xy") == ["hi", "😀", "x@@", "y"]
    assert tiny.convert_tokens_to_ids(["Hi", "__end__", "no such token"]) == [5, 2, 3]
    assert tiny.convert_tokens_to_ids("ap@@") == 8


def test_clean_up_closes_up_what_transformers_closes_up(published, as_trained, reference):
    text = "Hi , i don ' t know . Do n't we 're ? It 's so , i 'm 've !"
    ids = published.encode(text)
    for tokenizer in (published, as_trained):
        cleaned = tokenizer.decode(tokenizer.encode(text), clean_up_tokenization_spaces=True)
        assert cleaned == reference.decode(ids, clean_up_tokenization_spaces=True)
        assert tokenizer.batch_decode([ids], clean_up_tokenization_spaces=True) == [cleaned]
        assert tokenizer.encode(cleaned)[:8] == ids[:8]
    assert as_trained.decode(as_trained.encode("So .\nWe"), clean_up_tokenization_spaces=True) == "so.\nwe"
    always = BlenderbotSmallTokenizer(VOCAB, MERGES, clean_up_tokenization_spaces=True)
    assert always.convert_tokens_to_string(["hi", "!"]) == "hi !"
    assert always.decode([5, 16, 5]) == "hi'hi"
    assert always.decode([5, 16, 5], clean_up_tokenization_spaces=False) == "hi ' hi"


def test_a_reply_that_ends_within_a_word_shows_no_mark_in_parlai_mode(tiny):
    assert tiny.decode([5, 8]) == "hi ap@@"
    assert BlenderbotSmallTokenizer(VOCAB, MERGES, mode="parlai").decode([5, 8]) == "hi ap"


def test_decode_takes_arrays_and_refuses_ids_outside_the_vocabulary(tiny):
    for ids in ([5, 8, 9, 2], np.array([5, 8, 9, 2]), jnp.array([5, 8, 9, 2])):
        assert tiny.decode(ids) == "hi apte __end__"
        assert tiny.decode(ids, skip_special_tokens=True) == "hi apte"
    assert tiny.decode(5) == "hi"
    assert tiny.decode([]) == ""
    assert tiny.batch_decode(np.array([[5, 2], [6, 0]]), skip_special_tokens=True) == ["hi", "adapt"]
    with pytest.raises(ValueError, match=rf"0\.\.{len(VOCAB) - 1}.*got {len(VOCAB)}"):
        tiny.decode([len(VOCAB)])


def test_texts_of_other_types_are_refused(tiny):
    for call in (tiny, tiny.encode, tiny.tokenize):
        with pytest.raises(TypeError, match="str"):
            call(7)
    with pytest.raises(ValueError, match="surrogate"):
        tiny.tokenize("\ud800")


def test_a_tokenizer_is_immutable_and_equal_by_content(tiny):
    with pytest.raises(AttributeError, match="immutable"):
        tiny.mode = "parlai"
    twin = BlenderbotSmallTokenizer(dict(VOCAB), tuple(tuple(merge.split(" ")) for merge in MERGES))
    assert tiny == twin
    assert hash(tiny) == hash(twin)
    other = BlenderbotSmallTokenizer(VOCAB, MERGES, mode="parlai")
    assert tiny != other
    assert repr(other).endswith("mode='parlai')")
    for copied in (pickle.loads(pickle.dumps(tiny)), copy.deepcopy(tiny)):
        assert copied == tiny
        assert copied.encode("adapt apte") == tiny.encode("adapt apte")
    assert BlenderbotSmallTokenizerFast is BlenderbotSmallTokenizer


@pytest.mark.parametrize("module", [bpe, load, small])
def test_docstring_examples_run(data_folder, module):
    known = {"folder": data_folder / "tokenizers" / "blenderbot-400M-distill"}
    result = doctest.testmod(module, extraglobs=known)
    assert result.attempted
    assert not result.failed


# Against transformers, and against ParlAI's rule


def test_ids_and_text_of_ten_thousand_real_turns_equal_transformers(published, reference, turns):
    ids = published(turns, padding=False)["input_ids"]
    assert ids == reference(turns)["input_ids"]
    for skip in (False, True):
        assert published.batch_decode(ids, skip) == reference.batch_decode(ids, skip)
    assert published(turns, padding=False, split_special_tokens=True)["input_ids"] == ids


def test_ids_of_real_turns_equal_the_plain_rule_of_parlai(folder, as_trained, turns):
    vocab, ranks = as_trained.get_vocab(), read_ranks(folder)
    for text in turns[::4]:
        assert as_trained.encode(text) == plain_parlai(text, vocab, ranks), text


@QUIET
@given(text=TYPED)
def test_ids_of_any_text_equal_transformers(published, reference, text):
    ids = published.encode(text)
    assert ids == reference.encode(text)
    assert published.tokenize(text) == reference.tokenize(text)
    assert published.decode(ids) == reference.decode(ids)
    assert published.decode(ids, skip_special_tokens=True) == reference.decode(ids, skip_special_tokens=True)


@QUIET
@given(text=TYPED)
def test_plain_text_equals_transformers_but_for_what_it_takes_for_special(published, reference, text):
    theirs = reference.tokenize(text, split_special_tokens=True)
    expected = [part for piece in theirs for part in (bpe.marked(piece) if piece in SPECIALS else (piece,))]
    assert published.tokenize(text, split_special_tokens=True) == expected


@QUIET
@given(ids=st.lists(st.integers(0, 54943), max_size=30), skip=st.booleans())
def test_text_of_any_ids_equals_transformers(published, reference, ids, skip):
    assert published.decode(ids, skip_special_tokens=skip) == reference.decode(ids, skip_special_tokens=skip)
    tokens = published.convert_ids_to_tokens(ids, skip_special_tokens=skip)
    assert tokens == reference.convert_ids_to_tokens(ids, skip_special_tokens=skip)
    assert published.convert_tokens_to_ids(tokens) == reference.convert_tokens_to_ids(tokens)


@QUIET
@given(
    text=st.text("aabbc", min_size=1, max_size=30), pairs=st.lists(st.text("abc", min_size=2, max_size=4), max_size=9)
)
def test_pieces_equal_the_plain_rule_for_any_merges(text, pairs):
    # Cut anywhere, so that a join may outrank those it is made of: rounds matter then.
    merges = [
        *{(pair[:1], pair[1:]): None for pair in pairs},
        *{(pair[:-1], f"{pair[-1]}</w>"): None for pair in pairs},
    ]
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    assert list(bpe.SubwordBPE(merges)(text)) == plain_pieces(text, ranks)


@QUIET
@given(text=st.text("abcdeghilnorst ÉßİΣ.,!?()'\n-\u3000\"", max_size=60), mode=st.sampled_from(["hf", "parlai"]))
def test_what_is_decoded_is_read_back_as_the_same_ids(published, as_trained, text, mode):
    tokenizer = published if mode == "hf" else as_trained
    ids = tokenizer.encode(text)
    # An unknown piece is gone. Typed "@@ " and "a__newln__", which read like marks, are not in this alphabet.
    assume(3 not in ids)
    assert tokenizer.encode(tokenizer.decode(ids)) == ids


@QUIET
@given(text=TYPED, mode=st.sampled_from(["hf", "parlai"]))
def test_typed_text_never_ends_a_prompt_in_any_vocabulary(tiny, text, mode):
    tokenizer = BlenderbotSmallTokenizer(VOCAB, MERGES, mode=mode)
    ids = tokenizer.encode(text, split_special_tokens=True)
    assert not set(ids) & {0, 1, 2}
    assert max(ids, default=0) < len(VOCAB)


def test_a_word_of_any_length_is_read_in_no_time(published):
    start = time.perf_counter()
    for word in ("ab" * 50_000, "e" * 100_000):
        assert published.encode(word)
    # It takes 0.2 s; joining pair by pair would take minutes.
    assert time.perf_counter() - start < 20
