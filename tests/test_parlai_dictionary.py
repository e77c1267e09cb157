"""ParlAI's dictionaries become published vocabularies, the real ones among them, and come back."""

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from blenderbot_jax import parlai
from blenderbot_jax.tokenizer import BlenderbotTokenizer
from tests.parlai_files import BYTE_MERGES, SUBWORD_MERGES, TINY, dictionary, raw_tokens, write_small_files

KINDS = {"prelayernorm": "bytelevelbpe", "xlm": "bpe"}


def read(folder, variant, **changes):
    return parlai.read_vocabulary(folder / "model", TINY[variant] | changes)


def write(folder, files):
    folder.mkdir(exist_ok=True)
    for suffix, text in files.items():
        (folder / f"model{suffix}").write_text(text, encoding="utf-8")
    return folder


def change(folder, suffix, old, new):
    path = folder / f"model{suffix}"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_a_byte_level_dictionary_is_shifted_by_four_and_renamed(tmp_path):
    found = read(write_small_files(tmp_path, "prelayernorm"), "prelayernorm")
    expected = ("<pad>", "<s>", "</s>", "<unk>", "<s_AGAIN>", "<pad_AGAIN>", "</s_AGAIN>", "<unk_AGAIN>", "!", '"')
    assert found.tokens[:10] == expected
    assert found.tokens[8 : len(raw_tokens()) + 4] == tuple(raw_tokens()[4:])
    assert found.tokens[-3:] == ("__FP16_PAD_0__", "__FP16_PAD_1__", "__FP16_PAD_2__")
    assert found.merges == BYTE_MERGES
    assert dict(found.settings)["model_max_length"] == 24


def test_the_90m_dictionary_is_taken_as_it_is(tmp_path):
    found = read(write_small_files(tmp_path, "xlm"), "xlm")
    assert found.tokens == tuple(dictionary("xlm"))
    assert found.merges == SUBWORD_MERGES
    assert dict(found.settings) == {
        "tokenizer_class": "BlenderbotSmallTokenizer", "mode": "parlai", "model_max_length": 24,
    }  # fmt: skip


@pytest.mark.parametrize("variant", KINDS)
def test_tokens_for_half_precision_are_added_where_the_model_has_them(tmp_path, variant):
    write_small_files(tmp_path, variant)
    without = read(tmp_path, variant, fp16=False).tokens
    assert not any("FP16_PAD" in token.upper() for token in without)
    for options in ({"fp16": True}, {"fp16": False, "force_fp16_tokens": True}):
        padded = read(tmp_path, variant, **options).tokens
        assert padded[: len(without)] == without
        assert len(padded) % 8 == 0
        assert len(padded) - len(without) < 8
    # A dictionary that has them already gets no more.
    tokens = [*without, *padded[len(without) :]]
    (tmp_path / "model.dict").write_text("".join(f"{t}\t1\n" for t in dictionary(variant)), encoding="utf-8")
    assert read(tmp_path, variant).tokens == tuple(tokens)


def test_the_order_of_ids_begins_with_the_special_tokens_whatever_the_file_says(tmp_path):
    write_small_files(tmp_path, "xlm")
    tokens = dictionary("xlm")
    (tmp_path / "model.dict").write_text("".join(f"{t}\n" for t in [*tokens[4:], *reversed(tokens[:4])]))
    assert read(tmp_path, "xlm").tokens == tuple(tokens)
    # The oldest dictionaries have capitals.
    (tmp_path / "model.dict").write_text("".join(f"{t}\n" for t in ["__NULL__", "__UNK__", *tokens[4:]]))
    assert read(tmp_path, "xlm").tokens == tuple(tokens)


def test_a_space_before_the_first_word_is_put_unless_the_options_say_no(tmp_path):
    write_small_files(tmp_path, "prelayernorm")
    said = {value: dict(read(tmp_path, "prelayernorm", bpe_add_prefix_space=value).settings) for value in (None, False)}
    assert (said[None]["add_prefix_space"], said[False]["add_prefix_space"]) == (True, False)


@pytest.mark.parametrize(("said", "expected"), [("  ", "  "), ("\n", "\n"), (" EOU ", " EOU "), (None, "\n")])
def test_the_delimiter_is_that_of_the_options_or_else_parlais_own(tmp_path, said, expected):
    write_small_files(tmp_path, "prelayernorm")
    assert dict(read(tmp_path, "prelayernorm", delimiter=said).settings)["delimiter"] == expected


@pytest.mark.parametrize(
    ("variant", "suffix", "old", "new", "message"),
    [
        (
            "prelayernorm",
            ".dict",
            "<s>\t",
            "<t>\t",
            r"contradict each other: id 4 is '<t>' in the one and '<s>', 0 \+ 4",
        ),
        ("prelayernorm", ".dict-vocab.json", '"!": 4', '"!": 400', "from 0 on, each used once"),
        ("prelayernorm", ".dict-vocab.json", '"!": 4', '"!": "4"', "from 0 on, each used once"),
        ("prelayernorm", ".dict-vocab.json", "{", "", "the file must be JSON"),
        ("prelayernorm", ".dict-merges.txt", "#version: 0.2", "#version: 0.1", "must begin with '#version: 0.2'"),
        ("prelayernorm", ".dict-merges.txt", "Ġ h", "Ġh", "line 2: must be two parts"),
        ("xlm", ".dict.codecs", "#version: 0.2\n", "", "begins with '_ _': other formats are not read"),
        ("xlm", ".dict.codecs", "_ _\n", "_ _ _\n", "line 2: must be two parts"),
        ("xlm", ".dict", "the\t", "hi\t", "line 7: the token 'hi' is there twice"),
        ("xlm", ".dict", "the\t", "\t", "line 7: must be a token, a tab and its count"),
        ("xlm", ".dict", "hi\t", "hi\tx", "line 6: must be a token, a tab and its count"),
        ("xlm", ".dict", "hi\t", "hi\t1\t", "line 6: must be a token, a tab and its count"),
        ("xlm", ".dict", "hi\t", "\n", "line 6: must be a token"),
    ],
)
def test_damage_and_contradictions_are_refused(tmp_path, variant, suffix, old, new, message):
    write_small_files(tmp_path, variant)
    change(tmp_path, suffix, old, new)
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, variant)
    assert str(tmp_path / "model.dict") in str(error.value)


@pytest.mark.parametrize(
    ("variant", "suffix"),
    [("prelayernorm", ".dict"), ("prelayernorm", ".dict-vocab.json"), ("prelayernorm", ".dict-merges.txt"),
     ("xlm", ".dict"), ("xlm", ".dict.codecs")],
)  # fmt: skip
def test_a_missing_file_is_named(tmp_path, variant, suffix):
    write_small_files(tmp_path, variant)
    (tmp_path / f"model{suffix}").unlink()
    with pytest.raises(FileNotFoundError, match=f"model{suffix} is missing"):
        read(tmp_path, variant)


def test_text_that_is_no_utf8_is_refused(tmp_path):
    write_small_files(tmp_path, "xlm")
    (tmp_path / "model.dict").write_bytes(b"hi\t1\n\xff\t1\n")
    with pytest.raises(ValueError, match="must be UTF-8 text; byte 5 is not"):
        read(tmp_path, "xlm")


def test_a_name_that_publication_would_give_twice_is_refused(tmp_path):
    write_small_files(tmp_path, "prelayernorm")
    change(tmp_path, ".dict", "Ġhello\t", "<s_AGAIN>\t")
    vocab = json.loads((tmp_path / "model.dict-vocab.json").read_text())
    vocab["<s_AGAIN>"] = vocab.pop("Ġhello")
    (tmp_path / "model.dict-vocab.json").write_text(json.dumps(vocab))
    with pytest.raises(ValueError, match="'<s_AGAIN>' would be there twice"):
        read(tmp_path, "prelayernorm")


# The way back.


@pytest.mark.parametrize("variant", KINDS)
def test_a_vocabulary_comes_back(tmp_path, variant):
    first = read(write_small_files(tmp_path / "one", variant), variant)
    vocab = {token: i for i, token in enumerate(first.tokens)}
    files = parlai.dictionary_files(vocab, first.merges, KINDS[variant])
    assert read(write(tmp_path / "two", files), variant) == first
    again = parlai.dictionary_files(vocab, first.merges, KINDS[variant])
    assert again == files


def test_the_codecs_come_back_byte_for_byte(tmp_path):
    found = read(write_small_files(tmp_path, "xlm"), "xlm")
    files = parlai.dictionary_files({t: i for i, t in enumerate(found.tokens)}, found.merges, "bpe")
    assert files[".dict.codecs"] == (tmp_path / "model.dict.codecs").read_text()


def test_a_dictionary_that_parlai_sorts_stays_as_it_is(tmp_path):
    tokens = dictionary("xlm")
    files = parlai.dictionary_files({t: i for i, t in enumerate(tokens)}, SUBWORD_MERGES, "bpe")
    rows = [line.split("\t") for line in files[".dict"].splitlines()]
    assert [token for token, _ in rows] == tokens
    # `DictionaryAgent.sort`: by falling count, then by name.
    assert sorted(rows, key=lambda row: (-int(row[1]), row[0])) == rows
    assert rows[0] == ["__null__", "1000000003"]


@pytest.mark.parametrize(
    ("name", "kind"), [("blenderbot-400M-distill", "bytelevelbpe"), ("blenderbot_small-90M", "bpe")]
)
def test_the_published_vocabularies_go_to_parlai_and_come_back(tmp_path, data_folder, name, kind):
    folder = data_folder / "tokenizers" / name
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    merges = tuple((folder / "merges.txt").read_text(encoding="utf-8").split("\n")[1:-1])
    files = parlai.dictionary_files(vocab, merges, kind)
    write(tmp_path, files)
    options = {"dict_tokenizer": kind, "dict_lower": kind == "bpe", "fp16": True}
    found = parlai.read_vocabulary(tmp_path / "model", options)
    assert {token: i for i, token in enumerate(found.tokens)} == vocab
    assert found.merges == merges
    if kind == "bytelevelbpe":
        raw = json.loads(files[".dict-vocab.json"])
        assert len(raw) == 8000
        assert (raw["<s>"], raw["<pad>"], raw["</s>"], raw["<unk>"], raw["!"]) == (0, 1, 2, 3, 4)
        assert all(vocab[token] == i + 4 for token, i in raw.items() if i > 3)
        lines = files[".dict"].splitlines()
        assert lines[:5] == ["__null__\t1000000003", "__start__\t1000000002", "__end__\t1000000001",
                             "__unk__\t1000000000", "<s>\t1"]  # fmt: skip
        assert lines[-1] == "__FP16_PAD_3__\t1"
        ours = BlenderbotTokenizer({t: i for i, t in enumerate(found.tokens)}, found.merges)
        assert ours.encode("Hello world") == [6950, 1085, 2]


_CHARACTERS = st.characters(exclude_categories=("Cs",))
_TOKENS = st.lists(st.text(_CHARACTERS, min_size=1, max_size=6), unique=True, max_size=20)


@settings(max_examples=60, deadline=None)
@given(tokens=_TOKENS)
def test_any_token_that_is_written_is_read_back(tmp_path_factory, tokens):
    specials = ["__null__", "__start__", "__end__", "__unk__"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*specials, *tokens]))}
    try:
        files = parlai.dictionary_files(vocab, (), "bpe")
    except ValueError:
        assume(False)
    folder = write(tmp_path_factory.mktemp("dict"), files)
    options = {"dict_tokenizer": "bpe", "dict_lower": True}
    assert parlai.read_vocabulary(folder / "model", options).tokens == tuple(vocab)


@pytest.mark.parametrize("token", ["a\\nb", " x", "x\t ", "\u2028", ""])
def test_a_token_that_would_be_read_as_another_is_not_written(token):
    vocab = {t: i for i, t in enumerate(["__null__", "__start__", "__end__", "__unk__", token])}
    with pytest.raises(ValueError, match="cannot hold the token"):
        parlai.dictionary_files(vocab, (), "bpe")


def test_other_special_tokens_are_not_written():
    with pytest.raises(
        ValueError, match="must begin with <pad>, <s>, </s>, <unk> to become ParlAI's, begins with '<s>'"
    ):
        parlai.dictionary_files({"<s>": 0, "<pad>": 1}, (), "bytelevelbpe")
