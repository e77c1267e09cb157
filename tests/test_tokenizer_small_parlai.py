"""The 90M tokenizer as trained: ids as the package subword-nmt has them, and lines kept both ways."""

import re
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from blenderbot_jax.tokenizer import BlenderbotSmallTokenizer
from tests.test_tokenizer_byte_level import ANY_TEXT, QUIET
from tests.test_tokenizer_small import real_turns

NEWLINE = 4
UNKNOWN = 3
LINES = st.lists(st.text("abehilnost ÉΣσ.,!?()'-\t\r3", max_size=12), min_size=1, max_size=6)
TYPED = st.lists(
    ANY_TEXT | st.sampled_from(["__newln__", "__END__", "@@", "</w>", "\n", "\r\n", "\x1c", "don't", "İ", "ΑΣ."]),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module")
def folder(data_folder) -> Path:
    return data_folder / "tokenizers" / "blenderbot_small-90M"


@pytest.fixture(scope="module")
def as_trained(folder) -> BlenderbotSmallTokenizer:
    return BlenderbotSmallTokenizer.from_pretrained(folder, mode="parlai")


@pytest.fixture(scope="module")
def turns(data_folder) -> list[str]:
    return real_turns(data_folder)


@pytest.fixture(scope="module")
def read_by_parlai(folder, as_trained):
    """Text -> ids with the package that ParlAI uses, split as `parlai/utils/bpe.py` splits."""
    package = pytest.importorskip("subword_nmt.apply_bpe", reason="subword-nmt, the reference, is not installed")
    with (folder / "merges.txt").open(encoding="utf-8") as merges:
        bpe = package.BPE(merges)
    vocab = as_trained.get_vocab()

    def ids(text: str) -> list[int]:
        words = re.findall(r"\w+|[^\w\s]", text.lower().replace("\n", " __newln__ "))
        return [vocab.get(piece, UNKNOWN) for piece in bpe.segment_tokens(words)]

    return ids


def test_ids_of_ten_thousand_real_turns_equal_subword_nmt(as_trained, read_by_parlai, turns):
    assert as_trained(turns, padding=False)["input_ids"] == [read_by_parlai(text) for text in turns]


def test_ids_of_real_turns_put_on_lines_equal_subword_nmt(as_trained, read_by_parlai, turns):
    histories = ["\n".join(turns[start : start + 4]) for start in range(0, 2000, 4)]
    read = as_trained(histories, padding=False)["input_ids"]
    assert read == [read_by_parlai(text) for text in histories]
    assert all(ids.count(NEWLINE) == text.count("\n") for ids, text in zip(read, histories, strict=True))


@QUIET
@given(text=TYPED)
def test_ids_of_any_text_equal_subword_nmt(as_trained, read_by_parlai, text):
    assert as_trained.encode(text) == read_by_parlai(text)


@pytest.mark.parametrize(
    ("text", "ids", "decoded"),
    [
        ("Hello\nworld", [880, 4, 159], "hello \n world"),
        ("hello\n\nworld", [880, 4, 4, 159], "hello \n \n world"),
        ("\nhello", [4, 880], "\n hello"),
        ("hello\n", [880, 4], "hello \n"),
        ("\n", [4], "\n"),
        ("hello \t\n  world", [880, 4, 159], "hello \n world"),
        # The carriage return of Windows is white space; one by itself is no newline.
        ("hello\r\nworld\r\n", [880, 4, 159, 4], "hello \n world \n"),
        ("hello\rworld", [880, 159], "hello world"),
        # Other ends of lines are white space too.
        ("hello\u2028world\x0b\x85", [880, 159], "hello world"),
        # What stands for a newline, typed, is one.
        ("hello __newln__ world", [880, 4, 159], "hello \n world"),
        ("hello.\n(world", [880, 5, 4, 40, 159], "hello . \n ( world"),
    ],
)
def test_newlines_are_a_token_and_come_back(as_trained, text, ids, decoded):
    assert as_trained.encode(text) == as_trained.encode(text, split_special_tokens=True) == ids
    assert as_trained.decode(ids) == as_trained.decode(ids, skip_special_tokens=True) == decoded
    assert as_trained.encode(decoded) == ids


def test_clean_up_takes_the_spaces_about_a_newline(as_trained):
    for text, cleaned in {
        "Hello.\n\nWorld": "hello.\n\nworld",
        "\nhello\n": "\nhello\n",
        "don't\n'no'": "don't\n'no '",  # as transformers cleans: a last quote stays apart
        "\n.\n": "\n.\n",
    }.items():
        assert as_trained.decode(as_trained.encode(text), clean_up_tokenization_spaces=True) == cleaned


def test_only_as_trained_is_every_newline_kept(folder, as_trained):
    as_transformers = BlenderbotSmallTokenizer.from_pretrained(folder, mode="hf")
    for text, kept in {"a\nb": 1, "a \n b": 0, "\na": 0, "a\n\nb": 1, "a\r\nb": 0}.items():
        assert as_transformers.encode(text).count(NEWLINE) == kept, text
        assert as_trained.encode(text).count(NEWLINE) == text.count("\n"), text
    assert as_transformers.decode([880, 4, 159]) == "hello __newln__ world"


@QUIET
@given(lines=LINES, end=st.sampled_from(["\n", "\r\n", " \n\t"]))
def test_lines_are_read_one_by_one_and_decoded_as_lines(as_trained, lines, end):
    read = [as_trained.encode(line) for line in lines]
    ids = as_trained.encode(end.join(lines))
    assert ids == [i for line in read for i in (NEWLINE, *line)][1:]
    assert [line.strip(" ") for line in as_trained.decode(ids).split("\n")] == [
        as_trained.decode(line) for line in read
    ]
    cleaned = as_trained.decode(ids, clean_up_tokenization_spaces=True)
    assert [line.replace(" ", "") for line in cleaned.split("\n")] == [
        as_trained.decode(line).replace(" ", "") for line in read
    ]


@QUIET
@given(lines=LINES)
def test_text_on_lines_is_read_back_as_the_same_ids(as_trained, lines):
    ids = as_trained.encode("\n".join(lines))
    assume(UNKNOWN not in ids)  # an unknown piece is gone
    assert as_trained.encode(as_trained.decode(ids)) == ids


@QUIET
@given(ids=st.lists(st.sampled_from([NEWLINE, 5, 12, 880, 159, 40]), max_size=12))
def test_every_newline_of_a_reply_is_decoded_as_one(as_trained, ids):
    for clean in (False, True):
        text = as_trained.decode(ids, clean_up_tokenization_spaces=clean)
        assert text.count("\n") == ids.count(NEWLINE)
        assert "__newln__" not in text
    assert as_trained.encode(as_trained.decode(ids)) == ids
