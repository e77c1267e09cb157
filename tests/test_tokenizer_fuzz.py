"""Both tokenizers against transformers and ParlAI's rule, over texts that nobody types and somebody will."""

import random
from collections.abc import Callable, Iterator

import pytest

from blenderbot_jax.tokenizer import BlenderbotSmallTokenizer, BlenderbotTokenizer
from tests.test_tokenizer_byte_level import theirs
from tests.test_tokenizer_small import plain_parlai, read_ranks

# White space by any definition, then marks that join, turn round or vanish, then letters whose case is not one to one.
ODD_SPACES = "\t\n\r\x0b\x0c\x1c\x1d\x1e\x1f \x85\xa0\u1680\u180e\u2000\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
ODD_MARKS = "\x00\x01\x07\x7f\x9f\u0300\u0301\u0307\u20e3\u200b\u200d\u202e\u2066\ufe0f\ufffd\uffff\U000e0041\U0010ffff"
ODD_CASES = "İıßẞΣσςǅŉΐﬁẖÅKΩÉȺ"
PIECES = [
    "__start__", "__end__", "__unk__", "__null__", "__newln__", "__END__", "__", "_", "__en", "d__", "__null",
    "_start__", "__fp16_pad_0__", "__silence__", "<s>", "</s>", "<pad>", "<unk>", "<mask>", "</", "s>", "<", "@@",
    "@@ ", "</w>", "w>", "'s", "n't", "'", "''", "...", "?!", "(", ")", ", ", "😀", "👩‍👩‍👧", "🇩🇪", "e\u0301", "naïve",
    "東京", "привет", "שלום", "नमस्ते", "1,234.5", "#1", "a@b.com", "http://x.y/z?q=1",
    "i'm ", "Hello", "HELLO ", "the ", "carbs", "\r\n", "\n\n", "  ",
]  # fmt: skip


def fuzzed(count: int, seed: int) -> Iterator[str]:
    """`count` texts, the same for a seed everywhere."""
    draw = random.Random(seed)
    alphabets: list[Callable[[], str]] = [
        lambda: draw.choice(ODD_SPACES),
        lambda: draw.choice(ODD_MARKS),
        lambda: draw.choice(ODD_CASES),
        lambda: chr(draw.randrange(0x20, 0x7F)),
        lambda: chr(draw.randrange(0x250)),
        lambda: _any_character(draw),
        lambda: draw.choice(PIECES),
        lambda: draw.choice("abcdefghijklmnopqrstuvwxyz"),
    ]
    for _ in range(count):
        # A few of them a text, so that texts differ in kind.
        chosen = draw.sample(alphabets, draw.randint(1, 3))
        text = "".join(draw.choice(chosen)() for _ in range(draw.randint(0, 24)))
        yield text * draw.randint(20, 60) if draw.random() < 0.002 else text


def _any_character(draw: random.Random) -> str:
    number = draw.randrange(0x110000 - 0x800)
    # Half a surrogate pair is no text: refused.
    return chr(number if number < 0xD800 else number + 0x800)


@pytest.fixture(scope="module")
def byte_level(data_folder):
    folder = data_folder / "tokenizers" / "blenderbot-400M-distill"
    return BlenderbotTokenizer.from_pretrained(folder), theirs(folder)


@pytest.fixture(scope="module")
def small(data_folder):
    folder = data_folder / "tokenizers" / "blenderbot_small-90M"
    transformers = pytest.importorskip("transformers")
    return BlenderbotSmallTokenizer.from_pretrained(folder), transformers.BlenderbotSmallTokenizer.from_pretrained(
        folder
    )


QUICK_AND_LONG = [3_000, pytest.param(100_000, marks=pytest.mark.slow)]


def batches(count: int) -> Iterator[list[str]]:
    texts = [*fuzzed(count, seed=count)]
    yield from (texts[start : start + 1000] for start in range(0, count, 1000))


@pytest.mark.parametrize("count", QUICK_AND_LONG)
def test_byte_level_ids_and_text_equal_transformers_with_eos(byte_level, count):
    ours, other = byte_level
    for texts in batches(count):
        for split in (False, True):
            ids = ours(texts, padding=False, split_special_tokens=split)["input_ids"]
            expected = other(texts, split_special_tokens=split)["input_ids"]
            for text, row, their_row in zip(texts, ids, expected, strict=True):
                assert row == [*their_row, 2], repr(text)
            assert ours.batch_decode(ids, skip_special_tokens=split) == other.batch_decode(
                ids, skip_special_tokens=split
            )


@pytest.mark.parametrize("count", QUICK_AND_LONG)
def test_small_ids_and_text_equal_transformers(small, count):
    ours, other = small
    for texts in batches(count):
        ids = ours(texts, padding=False)["input_ids"]
        for text, row, their_row in zip(texts, ids, other(texts)["input_ids"], strict=True):
            assert row == their_row, repr(text)
        for options in ({}, {"skip_special_tokens": True}, {"clean_up_tokenization_spaces": True}):
            assert ours.batch_decode(ids, **options) == other.batch_decode(ids, **options)


@pytest.mark.parametrize("count", QUICK_AND_LONG)
def test_small_plain_text_equals_transformers_where_that_finds_no_special_token(small, count):
    ours, other = small
    special = set(ours.all_special_tokens)
    compared = 0
    for texts in batches(count):
        for text, row in zip(texts, ours(texts, padding=False, split_special_tokens=True)["input_ids"], strict=True):
            pieces = other.tokenize(text, split_special_tokens=True)
            assert not {0, 1, 2} & set(row), repr(text)
            if special.isdisjoint(pieces):
                assert row == other.convert_tokens_to_ids(pieces), repr(text)
                compared += 1
    assert compared > 0.9 * count


@pytest.mark.parametrize("count", QUICK_AND_LONG)
def test_small_parlai_ids_equal_the_plain_rule(data_folder, count):
    folder = data_folder / "tokenizers" / "blenderbot_small-90M"
    ours = BlenderbotSmallTokenizer.from_pretrained(folder, mode="parlai")
    vocab, ranks = ours.get_vocab(), read_ranks(folder)
    for texts in batches(count):
        for text, row in zip(texts, ours(texts, padding=False)["input_ids"], strict=True):
            assert row == plain_parlai(text, vocab, ranks), repr(text)
