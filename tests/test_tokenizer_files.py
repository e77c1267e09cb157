"""Making a tokenizer of vocabulary and merges, reading checkpoint folders, and writing them."""

import json
from pathlib import Path

import pytest

from blenderbot_jax.tokenizer import BlenderbotTokenizer
from tests.test_tokenizer_byte_level import MERGES, VOCAB, theirs


@pytest.fixture(scope="module")
def folder(data_folder) -> Path:
    return data_folder / "tokenizers" / "blenderbot-400M-distill"


@pytest.fixture(scope="module")
def published(folder) -> BlenderbotTokenizer:
    return BlenderbotTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def tiny() -> BlenderbotTokenizer:
    return BlenderbotTokenizer(VOCAB, MERGES)


@pytest.fixture
def tiny_folder(tmp_path) -> Path:
    (tmp_path / "vocab.json").write_text(json.dumps(VOCAB), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n", encoding="utf-8")
    return tmp_path


def test_every_way_of_naming_the_vocabulary_gives_the_same_tokenizer(tiny, tiny_folder):
    vocab, merges = tiny_folder / "vocab.json", tiny_folder / "merges.txt"
    for tokenizer in (
        BlenderbotTokenizer(str(vocab), str(merges)),
        BlenderbotTokenizer(vocab=vocab, merges=[tuple(merge.split(" ")) for merge in MERGES]),
        BlenderbotTokenizer(VOCAB, MERGES, add_prefix_space="true", add_eos_token=True, add_bos_token=False),
        BlenderbotTokenizer(VOCAB, MERGES, eos_token={"content": "</s>", "lstrip": False}, mask_token=None),
    ):
        assert tokenizer == tiny


@pytest.mark.parametrize(
    ("options", "error", "rule"),
    [
        ({}, TypeError, "vocab"),
        ({"vocab": VOCAB}, TypeError, "merges"),
        ({"vocab": VOCAB, "merges": MERGES, "dropout": 0.1}, TypeError, "no argument 'dropout'"),
        ({"vocab": VOCAB, "merges": MERGES, "add_bos_token": True}, TypeError, "add_bos_token=False only"),
        ({"vocab": VOCAB, "merges": MERGES, "add_eos_token": False}, TypeError, "add_eos_token=True only"),
        ({"vocab": VOCAB, "merges": MERGES, "errors": "loud"}, ValueError, "errors must be one of"),
        ({"vocab": VOCAB, "merges": MERGES, "add_prefix_space": "yes"}, ValueError, "add_prefix_space must be"),
        ({"vocab": VOCAB, "merges": MERGES, "padding_side": "up"}, ValueError, "padding_side must be"),
        ({"vocab": VOCAB, "merges": MERGES, "delimiter": ""}, ValueError, "delimiter must not be empty"),
        ({"vocab": VOCAB, "merges": MERGES, "delimiter": 2}, TypeError, "delimiter must be a str; got int '2'"),
        ({"vocab": VOCAB, "merges": MERGES, "delimiter": "\ud800"}, ValueError, "delimiter must be valid Unicode"),
        ({"vocab": VOCAB, "merges": MERGES, "model_max_length": 0}, ValueError, "model_max_length must be"),
        ({"vocab": VOCAB, "merges": MERGES, "eos_token": "[END]"}, ValueError, r"eos_token .*'\[END\]' is not in"),
        ({"vocab": VOCAB, "merges": MERGES, "pad_token": None}, ValueError, "pad_token must be a token"),
        ({"vocab": VOCAB, "merges": MERGES, "unk_token": 3}, TypeError, "unk_token must be"),
        ({"vocab": {}, "merges": []}, ValueError, "not empty"),
        ({"vocab": {**VOCAB, "x y": 1000}, "merges": []}, ValueError, "no token has id 266"),
        ({"vocab": {**VOCAB, "xy": 5}, "merges": []}, ValueError, "each used once"),
        ({"vocab": {**VOCAB, "xy": "5"}, "merges": []}, ValueError, "whole number"),
        ({"vocab": {**VOCAB, "\ud800": len(VOCAB)}, "merges": []}, ValueError, "surrogate"),
        ({"vocab": VOCAB, "merges": ["a b"]}, ValueError, "merges: merge 0 .*got 'a b'"),
        ({"vocab": VOCAB, "merges": [*MERGES, "a"]}, ValueError, "merges: merge 6"),
        ({"vocab": VOCAB, "merges": [("a", "b", "c")]}, ValueError, "merges: merge 0"),
        ({"vocab": VOCAB, "merges": [3]}, ValueError, "merges: merge 0"),
        ({"vocab": {"a": 0, "b": 1}, "merges": [("a", "z")]}, ValueError, "merge 0"),
    ],
)
def test_wrong_constructor_arguments_are_refused_with_the_rule(options, error, rule):
    with pytest.raises(error, match=rule):
        BlenderbotTokenizer(**options)


def test_hub_files_with_strings_dicts_and_a_mask_beyond_the_vocabulary_are_read(tiny, tiny_folder):
    mask = {"content": "<mask>", "lstrip": True, "__type": "AddedToken"}
    number = len(VOCAB)
    config = {
        "add_prefix_space": "true", "model_max_length": 128, "errors": "replace", "mask_token": mask,
        "eos_token": {"__type": "AddedToken", "content": "</s>", "normalized": True}, "unk_token": None,
        "added_tokens_decoder": {"2": {"content": "</s>"}, str(number): mask}, "chat_template": "{{ x }}",
        "add_eos_token": False, "clean_up_tokenization_spaces": True, "tokenizer_class": "BlenderbotTokenizer",
        "special_tokens_map_file": "elsewhere", "additional_special_tokens": [],
    }  # fmt: skip
    (tiny_folder / "tokenizer_config.json").write_text(json.dumps(config))
    (tiny_folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": "<s>"}}))
    (tiny_folder / "added_tokens.json").write_text(json.dumps({"<mask>": number}))
    tokenizer = BlenderbotTokenizer.from_pretrained(str(tiny_folder))
    assert tokenizer.model_max_length == 128
    assert len(tokenizer) == number
    assert max(tokenizer.encode("<mask>")) < number
    assert BlenderbotTokenizer.from_pretrained(tiny_folder, model_max_length=None) == tiny


def test_no_limit_is_none(tiny_folder):
    for value in (1000000000000000019884624838656, 1e30):
        (tiny_folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": value}))
        assert BlenderbotTokenizer.from_pretrained(tiny_folder).model_max_length is None


def test_windows_line_ends_and_a_missing_version_line_change_nothing(tiny, tiny_folder):
    (tiny_folder / "merges.txt").write_bytes("\r\n".join(MERGES).encode())
    assert BlenderbotTokenizer.from_pretrained(tiny_folder) == tiny


@pytest.fixture
def hub_cache(tmp_path) -> Path:
    """A hub cache that holds the repository `someone/tiny` at its branch `main`."""
    repository = tmp_path / "models--someone--tiny"
    BlenderbotTokenizer(VOCAB, MERGES).save_pretrained(repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    return tmp_path


def test_a_hub_name_is_found_in_the_cache(tiny, hub_cache):
    options = {"cache_dir": hub_cache, "local_files_only": True}
    assert BlenderbotTokenizer.from_pretrained("someone/tiny", **options) == tiny
    assert BlenderbotTokenizer.from_pretrained("someone/tiny", revision="main", padding_side="left", **options) != tiny
    for wrong in ({"revision": "v2"}, {"cache_dir": hub_cache / "empty"}):
        with pytest.raises(FileNotFoundError, match="'someone/tiny' could not be had"):
            BlenderbotTokenizer.from_pretrained("someone/tiny", **options | wrong)


def test_a_folder_without_the_files_names_what_is_missing(tmp_path, tiny_folder):
    with pytest.raises(FileNotFoundError, match=r"no folder '\./no-such'"):
        BlenderbotTokenizer.from_pretrained("./no-such")
    (tiny_folder / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no merges\.txt, nor a tokenizer\.json"):
        BlenderbotTokenizer.from_pretrained(tiny_folder)
    (tiny_folder / "vocab.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no vocab\.json and no merges\.txt"):
        BlenderbotTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "rule"),
    [
        ("vocab.json", b'{"a": 0, ', "must be JSON"),
        ("vocab.json", b"[1]", "must hold a JSON object"),
        ("vocab.json", b"\xff\xfe", "must be UTF-8"),
        ("vocab.json", b'{"a": 1}', "no token has id 0"),
        ("vocab.json", b'{"a": 0}', r"merges\.txt: merge 0"),
        ("merges.txt", b"#version: 0.2\na b c\n", "merge 0 must be two tokens"),
        ("merges.txt", b"#version: 0.2\nh i\nx q", "merge 1 .*'x q'"),
        ("merges.txt", b"\xff", "must be UTF-8"),
        ("tokenizer_config.json", b"{", "must be JSON"),
        ("special_tokens_map.json", b'{"eos_token": "[END]"}', r"'\[END\]' is not in"),
        ("added_tokens.json", b'{"[Question]": 900}', r"added token '\[Question\]' .* must be one of the special"),
        ("added_tokens.json", b'{"hi": 261}', "added token 'hi' with id 261"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"900": {"content": "[Q]"}}}', r"added token '\[Q\]'"),
    ],
)
def test_a_damaged_or_foreign_file_is_a_value_error_that_names_it(tiny_folder, file, content, rule):
    (tiny_folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=rule) as caught:
        BlenderbotTokenizer.from_pretrained(tiny_folder)
    assert str(tiny_folder) in str(caught.value)


def test_a_wrong_setting_in_a_folder_is_reported_with_the_folder(tiny_folder):
    for wrong, error in (({"padding_side": "up"}, ValueError), ({"extra_special_tokens": ["[Q]"]}, TypeError)):
        (tiny_folder / "tokenizer_config.json").write_text(json.dumps(wrong))
        with pytest.raises(error) as caught:
            BlenderbotTokenizer.from_pretrained(tiny_folder)
        assert str(tiny_folder) in caught.value.__notes__[0]


def test_the_folder_of_the_90m_model_is_refused_with_the_class_to_use(data_folder):
    with pytest.raises(ValueError, match="BlenderbotSmallTokenizer"):
        BlenderbotTokenizer.from_pretrained(data_folder / "tokenizers" / "blenderbot_small-90M")


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda c: c["model"].update(type="WordPiece"), "type must be 'BPE'"),
        (lambda c: c.update(normalizer={"type": "Lowercase"}), "normalizer must be None"),
        (lambda c: c["model"].pop("vocab"), "must hold a vocabulary"),
        (lambda c: c["added_tokens"].append({"id": 900, "content": "[Q]"}), r"added token '\[Q\]'"),
    ],
)
def test_a_tokenizer_json_of_another_kind_is_refused(tiny, tmp_path, change, rule):
    tiny.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    change(content)
    for file in tmp_path.iterdir():
        file.unlink()
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rule):
        BlenderbotTokenizer.from_pretrained(tmp_path)


def test_saving_and_reading_back_gives_an_equal_tokenizer(tmp_path):
    tokenizer = BlenderbotTokenizer(
        VOCAB, MERGES, errors="ignore", add_prefix_space=False, model_max_length=99, truncation_side="left",
        padding_side="left",
    )  # fmt: skip
    written = tokenizer.save_pretrained(tmp_path / "new" / "folder")
    names = {"vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert {Path(path).name for path in written} == names
    assert {file.name for file in (tmp_path / "new" / "folder").iterdir()} == names
    assert BlenderbotTokenizer.from_pretrained(tmp_path / "new" / "folder") == tokenizer
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "new" / "folder" / name).unlink()
    assert BlenderbotTokenizer.from_pretrained(tmp_path / "new" / "folder") == tokenizer


def test_a_failed_save_leaves_the_old_file_and_no_temporary_one(tiny, tmp_path, monkeypatch):
    tiny.save_pretrained(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        BlenderbotTokenizer(VOCAB, MERGES[:2]).save_pretrained(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kept", ["all", "tokenizer.json", "vocab.json"])
def test_transformers_reads_a_saved_folder_with_the_same_ids_and_eos(published, tmp_path, kept):
    transformers = pytest.importorskip("transformers")
    published.save_pretrained(tmp_path)
    dropped = {"all": (), "tokenizer.json": ("vocab.json", "merges.txt"), "vocab.json": ("tokenizer.json",)}[kept]
    for name in dropped:
        (tmp_path / name).unlink()
    other = transformers.BlenderbotTokenizer.from_pretrained(tmp_path)
    assert len(other) == 8008
    for text in ("Hello world", "", "a</s>b", "x <mask> y", "naïve café 😀\n", "  two"):
        assert other(text)["input_ids"] == published(text)["input_ids"]
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert auto("Hello world")["input_ids"] == [6950, 1085, 2]


def test_a_folder_keeps_its_delimiter_and_transformers_does_not_mind(published, folder, tmp_path):
    ours = BlenderbotTokenizer.from_pretrained(folder, delimiter="\n")
    assert ours != published
    assert repr(ours) == repr(published).replace(")", r", delimiter='\n')")
    ours.save_pretrained(tmp_path)
    assert BlenderbotTokenizer.from_pretrained(tmp_path) == ours
    assert BlenderbotTokenizer.from_pretrained(tmp_path, delimiter="  ") == published
    transformers = pytest.importorskip("transformers")
    other = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert other("Hello world")["input_ids"] == [6950, 1085, 2]
    other.save_pretrained(tmp_path / "theirs")
    assert BlenderbotTokenizer.from_pretrained(tmp_path / "theirs").delimiter == "\n"


def test_a_folder_saved_by_transformers_is_read(published, folder, tmp_path):
    theirs(folder, mask_token="<mask>").save_pretrained(tmp_path)
    ours = BlenderbotTokenizer.from_pretrained(tmp_path)
    assert ours == published
    assert ours.encode("x <mask> y") == published.encode("x <mask> y")
