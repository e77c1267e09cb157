"""Conversion: whatever can be read becomes a folder that loads at once, here and in transformers."""

import doctest
import json
import re
import runpy
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner
from flax.serialization import msgpack_serialize
from safetensors.numpy import load_file, save_file

from blenderbot_jax import Checkpoint, conversion
from blenderbot_jax.checkpoint import CheckpointError, save_pretrained
from blenderbot_jax.checkpoint.names import unflatten
from blenderbot_jax.checkpoint.tensor_file import SAFETENSORS_DTYPES
from blenderbot_jax.checkpoint.tensor_writer import Pending, write_safetensors
from blenderbot_jax.conversion import convert_checkpoint
from blenderbot_jax.hub import locate
from tests.checkpoint_files import (
    assert_same,
    content,
    expected_leaves,
    load,
    random_tensors,
    tree_of,
    write,
    write_index,
)

SCRIPTS = Path(__file__).parent.parent / "convert"


@pytest.fixture(params=["tiny_config", "tiny_small_config"])
def config(request):
    return request.getfixturevalue(request.param)


def run(script, *arguments):
    command = runpy.run_path(str(SCRIPTS / f"{script}.py"))["main"]
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.fixture(params=["from_huggingface", "to_huggingface"])
def convert(request):
    return lambda *arguments: run(request.param, *arguments)


# The scripts.


def test_a_converted_folder_holds_the_same_weights_settings_and_tokenizer(convert, tmp_path):
    result = convert("demo", tmp_path / "out", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.output
    assert "3,488,064 parameters in bfloat16" in result.output
    source, made = Checkpoint.from_pretrained("demo"), Checkpoint.from_pretrained(tmp_path / "out", dtype=jnp.bfloat16)
    assert made.model.config == source.model.config
    assert made.generation_config == source.generation_config
    assert made.tokenizer("Hello there!")["input_ids"] == source.tokenizer("Hello there!")["input_ids"]
    kept = source.params["model"]["shared"]["embedding"].astype(jnp.bfloat16)
    np.testing.assert_array_equal(made.params["model"]["shared"]["embedding"], kept)


def test_the_source_is_never_written_over(convert):
    before = {path.name: path.stat().st_mtime_ns for path in locate("demo", ()).iterdir()}
    result = convert("demo", locate("demo", ()))
    assert result.exit_code == 2
    assert "is the source itself" in result.output
    assert {path.name: path.stat().st_mtime_ns for path in locate("demo", ()).iterdir()} == before


def test_a_missing_source_is_one_clear_error(convert, tmp_path):
    result = convert(tmp_path / "none", tmp_path / "out")
    assert result.exit_code == 2
    assert "there is no folder" in result.output
    assert len(result.output.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("script", ["from_huggingface", "to_huggingface", "verify"])
def test_each_script_shows_how_it_is_called(script):
    result = run(script, "-h")
    assert result.exit_code == 0
    assert re.search(rf"^ +python convert/{script}\.py ", result.output, re.MULTILINE)


# The form of the source.


def save_zip(tensors, path):
    torch = pytest.importorskip("torch")
    torch.save({key: torch.from_numpy(array) for key, array in tensors.items()}, path)


def save_legacy(tensors, path):
    torch = pytest.importorskip("torch")
    tensors = {key: torch.from_numpy(array) for key, array in tensors.items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


def save_flax(tensors, path, config):
    path.write_bytes(msgpack_serialize(unflatten(expected_leaves(config, tensors, np.float16))))


@pytest.mark.parametrize("form", ["safetensors", "shards", "zip", "legacy", "flax"])
def test_every_form_becomes_the_same_file(tmp_path, config, form):
    tensors, source = random_tensors(config), tmp_path / "source"
    write(source, config, tensors)
    if form != "safetensors":
        (source / "model.safetensors").unlink()
    if form == "shards":
        halves = (dict(list(tensors.items())[i::2]) for i in range(2))
        parts = {f"part-{i}": half for i, half in enumerate(halves)}
        for name, part in parts.items():
            save_file(part, source / name)
        write_index(source, {key: name for name, part in parts.items() for key in part})
    elif form == "flax":
        save_flax(tensors, source / "flax_model.msgpack", config)
    elif form in ("zip", "legacy"):
        {"zip": save_zip, "legacy": save_legacy}[form](tensors, source / "pytorch_model.bin")
    seen = []
    done = convert_checkpoint(source, tmp_path / "out", on_progress=lambda *numbers: seen.append(numbers))
    assert_same(load_file(tmp_path / "out" / "model.safetensors"), tensors)
    assert (done.folder, done.tokenizer) == (tmp_path / "out", False)
    assert done.parameters == sum(array.size for key, array in tensors.items() if key != "final_logits_bias")
    assert done.nbytes == 2 * sum(array.size for array in tensors.values())
    assert len(seen) == len(tensors)
    assert seen[-1] == (done.nbytes, done.nbytes)
    assert [written for written, _ in seen] == sorted({written for written, _ in seen})


def test_the_dtype_is_kept_tensor_by_tensor_unless_one_is_asked_for(tmp_path, config):
    tensors = random_tensors(config, "float32")
    norm = "model.decoder.layers.0.final_layer_norm.weight"
    mixed = {key: array if key == norm else array.astype(np.float16) for key, array in tensors.items()}
    write(tmp_path / "source", config, mixed)
    convert_checkpoint(tmp_path / "source", tmp_path / "kept")
    assert_same(load_file(tmp_path / "kept" / "model.safetensors"), mixed)
    convert_checkpoint(tmp_path / "source", tmp_path / "half", dtype="bfloat16")
    expected = {key: array.astype(jnp.bfloat16) for key, array in mixed.items()}
    assert_same(load_file(tmp_path / "half" / "model.safetensors"), expected)


@pytest.mark.parametrize("kind", ["ForConditionalGeneration", "Model", "ForCausalLM"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_each_kind_of_model_stays_what_it_is(tmp_path, config, kind, tied):
    config = config.replace(tie_word_embeddings=tied)
    save_pretrained(tmp_path / "source", config, tree_of(config, kind))
    done = convert_checkpoint(tmp_path / "source", tmp_path / "out")
    assert done.model == f"{'Blenderbot' if config.normalize_before else 'BlenderbotSmall'}{kind}"
    one, other = (content(tmp_path / name) for name in ("source", "out"))
    assert one.pop("config.json") == other.pop("config.json")
    assert one["model.safetensors"] == other["model.safetensors"]


def test_a_file_without_final_logits_bias_is_given_zeros(tmp_path, tiny_config):
    tensors = random_tensors(tiny_config)
    bias = tensors.pop("final_logits_bias")
    write(tmp_path / "source", tiny_config, tensors)
    convert_checkpoint(tmp_path / "source", tmp_path / "out")
    made = load_file(tmp_path / "out" / "model.safetensors")
    assert_same(made, tensors | {"final_logits_bias": np.zeros_like(bias)})


def test_files_of_tokenizer_and_generation_go_along_as_they_are(tmp_path, tiny_config):
    source = write(tmp_path / "source", tiny_config, random_tensors(tiny_config))
    (source / "generation_config.json").write_text('{"num_beams": 3,   "unheard_of": 1}')
    (source / "vocab.json").write_text("not even JSON")
    (source / "README.md").write_text("not taken")
    assert convert_checkpoint(source, tmp_path / "out").tokenizer
    names = ["config.json", "generation_config.json", "model.safetensors", "vocab.json"]
    assert sorted(content(tmp_path / "out")) == names
    for name in ("generation_config.json", "vocab.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


def test_decoding_settings_of_an_old_config_json_get_their_own_file(tmp_path, tiny_config):
    source = write(tmp_path / "source", tiny_config, random_tensors(tiny_config))
    stored = json.loads((source / "config.json").read_text()) | {"num_beams": 7, "min_length": 4}
    (source / "config.json").write_text(json.dumps(stored))
    convert_checkpoint(source, tmp_path / "out")
    made = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (made["num_beams"], made["min_length"]) == (7, 4)


def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path, tiny_config):
    tensors = random_tensors(tiny_config)
    del tensors["model.encoder.layers.0.fc1.weight"]
    write(tmp_path / "source", tiny_config, tensors)
    with pytest.raises(CheckpointError, match=r"missing: model\.encoder\.layers\.0\.fc1\.weight"):
        convert_checkpoint(tmp_path / "source", tmp_path / "out")
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16"):
        convert_checkpoint(tmp_path / "source", tmp_path / "out", dtype="int8")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_failure_half_way_leaves_the_target_as_it_was(tmp_path, tiny_config):
    source = write(tmp_path / "source", tiny_config, random_tensors(tiny_config))
    target = write(tmp_path / "target", tiny_config, {"stray": np.ones(1, np.float32)})
    before = content(target)

    def fail(done, total):
        if done > total // 2:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        convert_checkpoint(source, target, on_progress=fail)
    assert content(target) == before
    convert_checkpoint(source, target)
    assert_same(load(target), expected_leaves(tiny_config, random_tensors(tiny_config), np.float32))


# The writer.


def test_the_writer_writes_what_the_safetensors_library_writes(tmp_path):
    tensors = {}
    for code, dtype in SAFETENSORS_DTYPES.items():
        tensors |= {f"{name}.{code}": np.arange(6).reshape(shape).astype(dtype) for name, shape in _SHAPES.items()}
    tensors["scalar"], tensors["empty"] = np.array(1.5, np.float32), np.zeros((0, 3), np.float16)
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    pending = {name: Pending(array.shape, array.dtype, lambda array=array: array) for name, array in tensors.items()}
    written = []
    write_safetensors(tmp_path / "ours", pending, written.append)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert sum(written) == sum(array.nbytes for array in tensors.values())


_SHAPES = {"row": (6,), "b": (2, 3), "é\n": (3, 1, 2)}


def test_the_writer_refuses_values_of_another_shape(tmp_path):
    wrong = Pending((3, 2), np.dtype("f4"), lambda: np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"w was announced as \[3, 2\], its values are \[2, 3\]"):
        write_safetensors(tmp_path / "file", {"w": wrong})


def test_a_transposed_tensor_is_written_as_it_lies(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_safetensors(tmp_path / "file", {"w": Pending((2, 3), array.dtype, lambda: array).transposed})
    assert_same(load_file(tmp_path / "file"), {"w": array.T})


# To transformers.


@pytest.mark.parametrize("form", ["legacy", "flax"])
def test_transformers_loads_what_was_converted(tmp_path, config, form):
    transformers = pytest.importorskip("transformers")
    tensors, source = random_tensors(config), tmp_path / "source"
    source.mkdir()
    config.save_json(source / "config.json")
    if form == "legacy":
        save_legacy(tensors, source / "pytorch_model.bin")
    else:
        save_flax(tensors, source / "flax_model.msgpack", config)
    convert_checkpoint(source, tmp_path / "out", dtype="float32")
    family = "Blenderbot" if config.normalize_before else "BlenderbotSmall"
    cls = getattr(transformers, f"{family}ForConditionalGeneration")
    model, report = cls.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    state = {key: tensor.numpy() for key, tensor in model.state_dict().items() if key in tensors}
    assert_same(state, {key: array.astype(np.float32) for key, array in tensors.items()})


def test_the_example_prints_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(conversion)
    assert (result.attempted, result.failed) == (2, 0)
