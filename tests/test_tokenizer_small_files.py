"""The 90M tokenizer's constructor and folders, and the choice between the two tokenizers."""

import json
from pathlib import Path

import pytest

from blenderbot_jax.tokenizer import BlenderbotSmallTokenizer, BlenderbotTokenizer, load_tokenizer
from tests import test_tokenizer_byte_level as big
from tests.test_tokenizer_small import MERGES, SPECIALS, VOCAB

TEXTS = ["I'm (yes) a small frog.", "hi__end__ __START__", "a\nb", "", "naïve 😀 __newln__", "@@ </w>", "x\x1cy\u3000z"]


@pytest.fixture(scope="module")
def folder(data_folder) -> Path:
    return data_folder / "tokenizers" / "blenderbot_small-90M"


@pytest.fixture(scope="module")
def tiny() -> BlenderbotSmallTokenizer:
    return BlenderbotSmallTokenizer(VOCAB, MERGES)


@pytest.fixture
def tiny_folder(tmp_path) -> Path:
    (tmp_path / "vocab.json").write_text(json.dumps(VOCAB), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n", encoding="utf-8")
    return tmp_path


def write(folder: Path, **files: object) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_every_way_of_naming_the_vocabulary_gives_the_same_tokenizer(tiny, tiny_folder):
    vocab, merges = tiny_folder / "vocab.json", tiny_folder / "merges.txt"
    for tokenizer in (
        BlenderbotSmallTokenizer(str(vocab), str(merges)),
        BlenderbotSmallTokenizer(vocab=vocab, merges=[tuple(merge.split(" ")) for merge in MERGES]),
        BlenderbotSmallTokenizer(VOCAB, MERGES, mode="hf", add_eos_token=False, use_fast=True),
        BlenderbotSmallTokenizer(VOCAB, MERGES, eos_token={"content": "__end__"}, clean_up_tokenization_spaces="false"),
        BlenderbotSmallTokenizer.from_pretrained(tiny_folder),
        load_tokenizer(str(tiny_folder)),
    ):
        assert tokenizer == tiny


@pytest.mark.parametrize(
    ("options", "error", "rule"),
    [
        ({"merges": MERGES}, TypeError, "vocab"),
        ({"mode": "ParlAI"}, ValueError, "mode must be one of 'hf', 'parlai'; got 'ParlAI'"),
        ({"dropout": 0.1}, TypeError, "no argument 'dropout'"),
        ({"add_eos_token": True}, TypeError, "add_eos_token=False only"),
        ({"clean_up_tokenization_spaces": "yes"}, ValueError, "clean_up_tokenization_spaces must be"),
        ({"unk_token": None}, ValueError, "unk_token must be a token of the vocabulary"),
        ({"pad_token": "<pad>"}, ValueError, "pad_token must be a token of the vocabulary; '<pad>'"),
        ({"vocab": {**VOCAB, "xy": 5}}, ValueError, "each used once"),
        ({"vocab": big.VOCAB}, ValueError, "the vocabulary of the byte-level models .*: use BlenderbotTokenizer"),
        ({"merges": ["a b c"]}, ValueError, "merge 0 .*got 'a b c'"),
        ({"merges": [*MERGES, "silhou"]}, ValueError, f"merge {len(MERGES)} .*got 'silhou'"),
        ({"merges": [3]}, ValueError, "merge 0 .*got 3"),
        ({"merges": [("a", "")]}, ValueError, "merge 0"),
        ({"merges": ["a p", "apt e</w>"]}, ValueError, "merge 1 must be two parts that are characters or earlier"),
        ({"merges": ["a p</w>", "ap</w> t"]}, ValueError, "merge 1 .*</w> at the end of the second at most"),
        ({"merges": ["a p", "a p"]}, ValueError, "merge 1 must be a join that no earlier one makes"),
        ({"merges": big.MERGES}, ValueError, "another vocabulary|mark the ends of words"),
        ({"merges": ["a p", "a d"]}, ValueError, "mark the ends of words"),
        ({"merges": [f"{x} {y}</w>" for x in "qwzuk" for y in "xvj"]}, ValueError, "it holds 0 of 15"),
    ],
)  # fmt: skip
def test_wrong_constructor_arguments_are_refused_with_the_rule(options, error, rule):
    given = {"vocab": VOCAB, "merges": MERGES, **options}
    if set(options) == {"merges"} and error is TypeError:
        del given["vocab"]
    with pytest.raises(error, match=rule):
        BlenderbotSmallTokenizer(**given)


@pytest.mark.parametrize(
    ("file", "content", "rule"),
    [
        ("vocab.json", b'{"a": 0, ', "must be JSON"),
        ("vocab.json", b'{"__null__": 0, "__start__": 1}', r"merges\.txt: .* it holds 0 of 14"),
        ("merges.txt", b"#version: 0.2\nh i</w>\na", r"merges\.txt: merge 1 .*got 'a'"),
        ("merges.txt", b"\xff", "must be UTF-8"),
        ("tokenizer_config.json", b'{"mode": "both"}', "mode must be one of"),
        ("special_tokens_map.json", b'{"eos_token": "[END]"}', r"'\[END\]' is not in"),
        ("added_tokens.json", b'{"[Question]": 900}', r"added token '\[Question\]' .* must be one of the special"),
    ],
)
def test_a_damaged_or_foreign_file_is_a_value_error_that_names_it(tiny_folder, file, content, rule):
    (tiny_folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=rule) as caught:
        BlenderbotSmallTokenizer.from_pretrained(tiny_folder)
    assert str(tiny_folder) in str(caught.value) + "".join(getattr(caught.value, "__notes__", ()))


def test_a_folder_without_its_files_names_what_is_missing(tiny_folder):
    (tiny_folder / "merges.txt").unlink()
    write(tiny_folder, tokenizer={"model": {"type": "BPE", "vocab": VOCAB, "merges": MERGES}})
    for read in (BlenderbotSmallTokenizer.from_pretrained, load_tokenizer):
        with pytest.raises(FileNotFoundError, match=r"no merges\.txt: .* transformers 4 splits words wrongly"):
            read(tiny_folder)
    (tiny_folder / "vocab.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no vocab\.json and no merges\.txt"):
        load_tokenizer(tiny_folder)


def test_windows_line_ends_and_a_missing_last_newline_change_nothing(tiny, tiny_folder):
    (tiny_folder / "merges.txt").write_bytes("\r\n".join(["#version: 0.2", *MERGES]).encode())
    assert BlenderbotSmallTokenizer.from_pretrained(tiny_folder) == tiny


def test_saving_and_reading_back_gives_an_equal_tokenizer_in_its_mode(tmp_path):
    for mode in ("hf", "parlai"):
        tokenizer = BlenderbotSmallTokenizer(
            VOCAB, MERGES, mode=mode, clean_up_tokenization_spaces=True, model_max_length=99, truncation_side="left"
        )
        written = tokenizer.save_pretrained(tmp_path / mode)
        names = {"vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"}
        assert {Path(path).name for path in written} == {file.name for file in (tmp_path / mode).iterdir()} == names
        assert BlenderbotSmallTokenizer.from_pretrained(tmp_path / mode) == tokenizer
        assert load_tokenizer(tmp_path / mode).mode == mode
    assert BlenderbotSmallTokenizer.from_pretrained(tmp_path / "parlai", mode="hf").mode == "hf"


@pytest.mark.parametrize("mode", ["hf", "parlai"])
def test_transformers_reads_a_saved_folder_with_the_same_ids(folder, tmp_path, mode):
    transformers = pytest.importorskip("transformers")
    published = BlenderbotSmallTokenizer.from_pretrained(folder)
    BlenderbotSmallTokenizer.from_pretrained(folder, mode=mode, model_max_length=512).save_pretrained(tmp_path)
    other = transformers.BlenderbotSmallTokenizer.from_pretrained(tmp_path)
    assert (len(other), other.model_max_length, other.padding_side) == (54944, 512, "right")
    assert [other.pad_token_id, other.bos_token_id, other.eos_token_id, other.unk_token_id] == [0, 1, 2, 3]
    for text in TEXTS:
        ids = published.encode(text)
        assert other(text)["input_ids"] == ids
        assert other.decode(ids, skip_special_tokens=True) == published.decode(ids, skip_special_tokens=True)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)("sam")["input_ids"] == [1384]


def test_a_folder_saved_by_transformers_is_read(folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    transformers.BlenderbotSmallTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path) == BlenderbotSmallTokenizer.from_pretrained(folder)


# The choice


def test_every_published_folder_and_the_demo_get_their_class(data_folder):
    for file in sorted((data_folder / "tokenizers").glob("*/vocab.json")):
        expected = BlenderbotSmallTokenizer if "small" in file.parent.name else BlenderbotTokenizer
        assert type(load_tokenizer(file.parent)) is expected
    assert load_tokenizer("demo") == BlenderbotTokenizer.from_pretrained("demo")


def test_options_go_to_the_constructor(tiny_folder):
    assert load_tokenizer(tiny_folder, mode="parlai", model_max_length=7).mode == "parlai"
    with pytest.raises(TypeError, match="BlenderbotTokenizer takes no argument 'mode'"):
        load_tokenizer("demo", mode="parlai")


def test_the_vocabulary_weighs_more_than_what_files_call_it(tmp_path, tiny):
    tiny.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    write(
        tmp_path,
        tokenizer_config=config | {"tokenizer_class": "BlenderbotTokenizer"},
        config={"model_type": "blenderbot"},
    )
    assert load_tokenizer(tmp_path) == tiny
    whole = tmp_path / "whole"
    BlenderbotTokenizer(big.VOCAB, big.MERGES).save_pretrained(whole)
    for name in ("vocab.json", "merges.txt"):
        (whole / name).unlink()
    write(whole, config={"model_type": "blenderbot-small"})
    assert type(load_tokenizer(whole)) is BlenderbotTokenizer


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"tokenizer_class": "BlenderbotSmallTokenizer"}},
        {
            "tokenizer_config": {"tokenizer_class": "BlenderbotSmallTokenizerFast"},
            "config": {"model_type": "blenderbot"},
        },
        {
            "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast"},
            "config": {"model_type": "blenderbot-small"},
        },
    ],
)
def test_a_vocabulary_with_other_special_tokens_is_told_by_the_files_beside_it(tmp_path, files):
    renamed = {token: f"[{i}]" for i, token in enumerate(SPECIALS)}
    vocab = {renamed.get(token, token): i for token, i in VOCAB.items()}
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), renamed.values(), strict=True))
    write(tmp_path, vocab=vocab, special_tokens_map=names, **files)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES[:8]) + "\n", encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert type(tokenizer) is BlenderbotSmallTokenizer
    assert tokenizer.encode("hi[2]") == [5, 2]


def test_a_folder_that_tells_nothing_is_refused_with_what_was_looked_for(tmp_path):
    write(tmp_path, vocab={"a": 0, "b": 1}, config={"model_type": "bart"}, tokenizer_config={"tokenizer_class": None})
    with pytest.raises(ValueError, match=r"__end__, __null__, __start__ for the 90M model.*2 tokens.*'' and 'bart'"):
        load_tokenizer(tmp_path)
    write(tmp_path, tokenizer={"model": []})
    (tmp_path / "vocab.json").unlink()
    with pytest.raises(ValueError, match="0 tokens"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no vocab\.json and no tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no folder '\./no-such'"):
        load_tokenizer("./no-such")


def test_a_hub_name_is_found_in_the_cache(tiny, tmp_path):
    repository = tmp_path / "models--someone--tiny"
    tiny.save_pretrained(repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    assert load_tokenizer("someone/tiny", cache_dir=tmp_path, local_files_only=True) == tiny
