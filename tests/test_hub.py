"""From a name to a folder: paths, the bundled model, the hub's cache, and what is fetched."""

import fnmatch
from pathlib import Path

import huggingface_hub
import pytest

import blenderbot_jax
from blenderbot_jax.checkpoint import fetch
from blenderbot_jax.hub import SMALL_FILES, CheckpointNotFoundError, locate

NAME = "facebook/blenderbot-400M-distill"
DEMO = Path(blenderbot_jax.__file__).parent / "demo"


def not_found(name, **options):
    """The message with which a name is refused; it must say what else can be given."""
    with pytest.raises(CheckpointNotFoundError) as error:
        locate(name, SMALL_FILES, **options)
    assert '"demo"' in str(error.value)
    assert "folder" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_is_itself(tmp_path, kind):
    assert locate(kind(tmp_path), SMALL_FILES) == tmp_path
    assert fetch(kind(tmp_path)) == tmp_path


def test_demo_is_the_bundled_model_unless_it_is_written_as_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "'./demo'" in not_found("./demo")
    not_found(Path("demo"))
    Path("demo").mkdir()
    assert fetch("demo") == DEMO
    assert fetch(Path("demo")).resolve() == tmp_path / "demo"
    assert fetch("./demo").resolve() == tmp_path / "demo"


@pytest.mark.parametrize("name", ["./none", "/none/there", "~/none", "a/b/c", "a b", "", "owner/"])
def test_what_can_be_no_hub_name_is_a_missing_folder(name):
    assert f"there is no folder {name!r}" in not_found(name)


def test_a_file_is_no_folder(tmp_path):
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(CheckpointNotFoundError, match=r"model\.safetensors is a file: give the folder that holds it"):
        locate(file, SMALL_FILES)


def test_a_hub_name_that_is_not_in_the_cache_is_not_found_offline(tmp_path):
    assert f"{NAME!r} could not be had" in not_found(NAME, cache_dir=tmp_path)
    assert "local cache" in not_found(NAME, cache_dir=tmp_path, local_files_only=True)
    with pytest.raises(FileNotFoundError, match="could not be had"):
        blenderbot_jax.Chatbot.from_pretrained(NAME, cache_dir=tmp_path)


def test_the_cache_is_used_offline_at_the_revision_asked_for(tmp_path):
    repository = tmp_path / f"models--{NAME.replace('/', '--')}"
    snapshots = {}
    for revision, digit in (("main", "a"), ("refs/pr/3", "b")):
        reference = repository / "refs" / revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(40 * digit)
        snapshots[revision] = repository / "snapshots" / (40 * digit)
        snapshots[revision].mkdir(parents=True)
        (snapshots[revision] / "model.safetensors").touch()
    for cache in (tmp_path, str(tmp_path)):
        assert fetch(NAME, cache_dir=cache) == snapshots["main"]
        assert fetch(NAME, cache_dir=cache, revision="refs/pr/3") == snapshots["refs/pr/3"]
        assert fetch(NAME, cache_dir=cache, revision=40 * "b") == snapshots["refs/pr/3"]
    assert "could not be had" in not_found(NAME, cache_dir=tmp_path, revision="v9")


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["pytorch_model.bin"], ["pytorch_model.bin"]),
        (["adapter.safetensors", "pytorch_model.bin"], ["adapter.safetensors", "pytorch_model.bin"]),
        (
            ["model.safetensors.index.json", "model-1.safetensors", "pytorch_model-1.bin", "training_args.bin"],
            ["model-1.safetensors", "model.safetensors.index.json"],
        ),
        (
            ["pytorch_model.bin.index.json", "pytorch_model-1.bin", "training_args.bin", "flax_model.msgpack"],
            ["pytorch_model-1.bin", "pytorch_model.bin.index.json"],
        ),
        (["pytorch_model.bin", "flax_model.msgpack"], ["pytorch_model.bin"]),
        (["flax_model.msgpack", "tf_model.h5"], ["flax_model.msgpack"]),
        (
            ["flax_model.msgpack.index.json", "flax_model-1.msgpack", "tf_model.h5"],
            ["flax_model-1.msgpack", "flax_model.msgpack.index.json"],
        ),
        (["tf_model.h5"], []),
    ],
)
def test_safetensors_are_fetched_or_else_bin_or_else_flax(tmp_path, monkeypatch, weights, wanted):
    small = ["config.json", "merges.txt", "vocab.json"]

    def download(name, *, allow_patterns, **_):
        assert name == NAME
        for file in small + weights:
            if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns):
                (tmp_path / file).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert fetch(NAME) == tmp_path
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(small + wanted)


def test_what_the_hub_answers_is_passed_on(monkeypatch):
    def download(*_, **__):
        raise OSError("No space left on device\nand a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert "the hub answered: No space left on device. Give a folder" in not_found(NAME)
