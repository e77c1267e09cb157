"""Conversion from ParlAI and back: what was written is read again, here and in PyTorch, and comes back as it was."""

import doctest
import json
import re
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from blenderbot_jax import BlenderbotForCausalLM, Checkpoint, parlai_conversion
from blenderbot_jax.checkpoint import CheckpointError, save_pretrained
from blenderbot_jax.checkpoint.names import flatten
from blenderbot_jax.checkpoint.tensor_writer import Pending
from blenderbot_jax.checkpoint.torch_file import read_torch
from blenderbot_jax.checkpoint.torch_writer import write_torch
from blenderbot_jax.cli.main import main
from blenderbot_jax.conversion import convert_checkpoint
from blenderbot_jax.parlai import SUFFIXES
from blenderbot_jax.parlai_conversion import convert_to_parlai
from blenderbot_jax.tokenizer import load_tokenizer
from tests.checkpoint_files import assert_same, content, load, random_params
from tests.parlai_files import (
    SUBWORD_MERGES,
    TINY,
    dictionary,
    published_tensors,
    state_of,
    tiny_config,
    write_archive,
    write_checkpoint,
    write_small_files,
)

ROOT = Path(__file__).parent.parent
VARIANTS = ("prelayernorm", "xlm")
GIB = 2**30


def run(script, *arguments):
    command = runpy.run_path(str(ROOT / "convert" / f"{script}.py"))["main"]
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def state_in(path):
    return {key: entry.read() for key, entry in read_torch(path, "model").items()}


@pytest.fixture(scope="module", params=VARIANTS)
def trained(request, tmp_path_factory):
    """A checkpoint as training leaves it, and its variant."""
    folder = tmp_path_factory.mktemp("trained") / "blender"
    write_checkpoint(folder, request.param, container="legacy", training=True)
    return folder, request.param


# From ParlAI.


def test_a_converted_folder_holds_the_same_weights_settings_and_tokenizer(trained, tmp_path):
    folder, variant = trained
    seen = []
    done = convert_checkpoint(folder, tmp_path / "out", on_progress=lambda *numbers: seen.append(numbers))
    made = load_file(tmp_path / "out" / "model.safetensors")
    bias = np.zeros((1, tiny_config(variant).vocab_size), np.float16)
    assert_same(made, published_tensors(variant) | {"final_logits_bias": bias})
    ours, theirs = Checkpoint.from_pretrained(folder), Checkpoint.from_pretrained(tmp_path / "out")
    assert (ours.model, ours.tokenizer, ours.generation_config) == (
        theirs.model, theirs.tokenizer, theirs.generation_config,
    )  # fmt: skip
    assert_same(flatten(ours.params), {path: np.asarray(leaf) for path, leaf in flatten(theirs.params).items()})
    assert (done.tokenizer, done.int8, done.nbytes) == (True, False, seen[-1][0])


@pytest.mark.parametrize("form", ["folder", "file", "archive"])
def test_the_script_and_the_command_take_every_form(trained, tmp_path, form):
    folder, variant = trained
    archive = write_archive(tmp_path / "blender.tgz", folder)
    source = {"folder": folder, "file": folder / "model", "archive": archive}[form]
    result = run("from_parlai", source, tmp_path / "script", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    assert "parameters in float32" in result.output
    result = CliRunner().invoke(main, ["convert", str(source), str(tmp_path / "command"), "--dtype", "float32"])
    assert result.exit_code == 0, result.output
    assert content(tmp_path / "script") == content(tmp_path / "command")
    family = "Blenderbot" if variant == "prelayernorm" else "BlenderbotSmall"
    assert f"{family}ForConditionalGeneration" in result.output


@pytest.mark.slow
def test_int8_is_made_on_the_way_and_has_no_way_back(trained, tmp_path):
    folder, _ = trained
    done = convert_checkpoint(folder, tmp_path / "int8", quantize="int8")
    assert done.int8
    Checkpoint.from_pretrained(tmp_path / "int8")
    with pytest.raises(ValueError, match="holds kernels in 8 bits, which ParlAI has no form for"):
        convert_to_parlai(tmp_path / "int8", tmp_path / "out")


def test_the_source_is_never_written_over(trained):
    folder, _ = trained
    before = content(folder)
    for source in (folder, folder / "model"):
        for convert in (convert_checkpoint, convert_to_parlai):
            with pytest.raises(ValueError, match="is the source itself: choose another folder"):
                convert(source, folder)
    assert content(folder) == before


def test_a_refusal_leaves_nothing_behind(trained, tmp_path):
    folder, variant = trained
    write_small_files(tmp_path / "source", variant)
    (tmp_path / "source" / "model").write_bytes((folder / "model").read_bytes()[:5000])
    for convert in (convert_checkpoint, convert_to_parlai):
        with pytest.raises(CheckpointError):
            convert(tmp_path / "source", tmp_path / "out")
    result = run("from_parlai", tmp_path / "source", tmp_path / "out")
    assert result.exit_code == 2
    assert len(result.output.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


# And back.


def test_the_way_back_ends_where_it_began(trained, tmp_path):
    folder, variant = trained
    convert_checkpoint(folder, tmp_path / "published")
    result = run("to_parlai", tmp_path / "published", tmp_path / "back")
    assert result.exit_code == 0, result.output
    before, after = content(folder), content(tmp_path / "back")
    weights = before.pop("model"), after.pop("model")
    assert weights[0] != weights[1]
    assert after == before
    assert_same(state_in(tmp_path / "back" / "model"), state_of(published_tensors(variant)))
    assert_same(load(tmp_path / "back"), {path: np.asarray(leaf) for path, leaf in load(folder).items()})


def test_the_delimiter_stays_on_every_way(tmp_path):
    write_checkpoint(tmp_path / "blender", "prelayernorm")
    write_small_files(tmp_path / "blender", "prelayernorm", TINY["prelayernorm"] | {"delimiter": "\n"})
    convert_checkpoint(tmp_path / "blender", tmp_path / "published")
    assert load_tokenizer(tmp_path / "published").delimiter == "\n"
    convert_to_parlai(tmp_path / "published", tmp_path / "kept")
    assert content(tmp_path / "kept").keys() == content(tmp_path / "blender").keys()
    for name in ("model.opt", "model.dict"):
        (tmp_path / "published" / name).unlink()
    convert_to_parlai(tmp_path / "published", tmp_path / "anew")
    for folder in ("kept", "anew"):
        assert json.loads((tmp_path / folder / "model.opt").read_text())["delimiter"] == "\n"
        assert load_tokenizer(tmp_path / folder).delimiter == "\n"


def test_the_weights_are_written_the_same_every_time(trained, tmp_path):
    folder, _ = trained
    convert_to_parlai(folder, tmp_path / "one")
    convert_to_parlai(tmp_path / "one", tmp_path / "two")
    assert content(tmp_path / "one") == content(tmp_path / "two")
    convert_checkpoint(tmp_path / "one", tmp_path / "published")
    convert_to_parlai(tmp_path / "published", tmp_path / "three")
    assert content(tmp_path / "three") == content(tmp_path / "one")


@pytest.mark.parametrize("change", ["config", "decoding", "opt alone", "tokenizer", "delimiter"])
def test_parlais_own_files_are_written_anew_where_they_no_longer_say_the_same(trained, tmp_path, change):
    folder, variant = trained
    published, out = tmp_path / "published", tmp_path / "out"
    convert_checkpoint(folder, published)
    if change == "config":
        config = json.loads((published / "config.json").read_text())
        (published / "config.json").write_text(json.dumps(config | {"dropout": 0.5}))
    elif change == "decoding":
        (published / "generation_config.json").write_text('{"num_beams": 3, "max_length": 20}')
    elif change == "opt alone":
        (published / "model.dict").unlink()
    elif change == "delimiter":
        if variant == "xlm":
            pytest.skip("the tokenizer of the 90M model has none")
        load_tokenizer(published, delimiter=" EOU ").save_pretrained(published)
    else:
        name = "vocab.json"
        text = (published / name).read_text(encoding="utf-8")
        (published / name).write_text(text.replace("FP16_PAD_0", "row").replace("fp16_pad_0", "row"), encoding="utf-8")
        if (published / "tokenizer.json").exists():
            (published / "tokenizer.json").unlink()
    convert_to_parlai(published, out)
    assert (out / "model.opt").read_bytes() != (folder / "model.opt").read_bytes()
    ours, theirs = Checkpoint.from_pretrained(out), Checkpoint.from_pretrained(published)
    assert ours.model == theirs.model
    assert ours.tokenizer == theirs.tokenizer
    if change != "decoding":
        assert ours.generation_config.num_beams == theirs.generation_config.num_beams
    learned = json.loads((out / "model.opt").read_text())["learn_positional_embeddings"]
    assert learned is (variant == "xlm")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_that_never_was_parlais_becomes_so(tmp_path, variant):
    config = tiny_config(variant)
    made = write_small_files(tmp_path / "dictionary", variant)
    tokenizer = Checkpoint.from_pretrained(_whole(made, variant)).tokenizer
    tensors = published_tensors(variant, "float32")
    source = tmp_path / "source"
    params = random_params(config)
    params["final_logits_bias"] *= 0
    save_pretrained(source, config, params, tokenizer=tokenizer)
    convert_to_parlai(source, tmp_path / "out", dtype="float16")
    assert sorted(content(tmp_path / "out")) == sorted(
        [
            "model",
            *(f"model{s}" for s in SUFFIXES if (s == ".dict.codecs") == (variant == "xlm") or s in (".opt", ".dict")),
        ]
    )
    state = state_in(tmp_path / "out" / "model")
    assert next(iter(state)) == "START"
    assert state["START"].tolist() == [1]
    assert {key: array.shape for key, array in state.items()} == {
        key: array.shape for key, array in state_of(tensors).items()
    }
    assert state["embeddings.weight"].dtype == np.float16
    half = {path: np.asarray(leaf).astype(np.float16) for path, leaf in flatten(params).items()}
    assert_same(load(tmp_path / "out", jnp.float16), half)
    if variant == "xlm":
        lines = (tmp_path / "out" / "model.dict.codecs").read_text().splitlines()
        assert lines == ["#version: 0.2", *SUBWORD_MERGES]
        assert [
            line.split("\t")[0] for line in (tmp_path / "out" / "model.dict").read_text().splitlines()
        ] == dictionary(variant)


def _whole(folder, variant):
    write_checkpoint(folder, variant)
    return folder


def test_the_bundled_model_goes_to_parlai_and_back(tmp_path):
    result = CliRunner().invoke(main, ["convert", "demo", str(tmp_path / "parlai"), "--to", "parlai"])
    assert result.exit_code == 0, result.output
    assert "3,488,064 parameters as it was stored" in result.output
    ours, theirs = Checkpoint.from_pretrained(tmp_path / "parlai"), Checkpoint.from_pretrained("demo")
    assert ours.model.config == theirs.model.config
    assert ours.tokenizer.encode("Hello there, how are you?") == theirs.tokenizer.encode("Hello there, how are you?")
    assert_same(flatten(ours.params), {path: np.asarray(leaf) for path, leaf in flatten(theirs.params).items()})
    # The most tokens of a reply are the most of a label there, which training goes by.
    decoding = ours.generation_config.to_dict() | {"max_length": theirs.generation_config.max_length}
    assert decoding.items() >= theirs.generation_config.to_dict().items()


def test_what_parlais_form_cannot_say_is_refused_by_name(tmp_path, trained):
    folder, _ = trained
    convert_checkpoint(folder, tmp_path / "published")
    checkpoint = Checkpoint.from_pretrained(folder)
    config, params = checkpoint.model.config, checkpoint.params

    def refusal(source):
        with pytest.raises(ValueError, match=r"\S") as error:
            convert_to_parlai(source, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return str(error.value)

    biased = params | {"final_logits_bias": params["final_logits_bias"].at[0, 5].set(1.0)}
    save_pretrained(tmp_path / "biased", config, biased, tokenizer=checkpoint.tokenizer)
    assert "final_logits_bias is not zero" in refusal(tmp_path / "biased")
    causal = BlenderbotForCausalLM.from_pretrained(folder)[1]
    save_pretrained(tmp_path / "causal", config, causal, tokenizer=checkpoint.tokenizer)
    assert "ForCausalLM, ParlAI's form is of a model with head and encoder" in refusal(tmp_path / "causal")
    save_pretrained(tmp_path / "mute", config, params)
    with pytest.raises(FileNotFoundError, match=r"vocab\.json"):
        convert_to_parlai(tmp_path / "mute", tmp_path / "out")
    with pytest.raises(ValueError, match=r"holds a config\.json, which is read before ParlAI's files"):
        convert_to_parlai(folder, tmp_path / "published")
    with pytest.raises(ValueError, match="dtype must be one of"):
        convert_to_parlai(folder, tmp_path / "out", dtype="int8")


def test_a_failure_half_way_leaves_the_target_as_it_was(trained, tmp_path):
    folder, _ = trained
    convert_to_parlai(folder, tmp_path / "out")
    before = content(tmp_path / "out")

    def fail(done, total):
        if done > total // 2:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        convert_to_parlai(folder, tmp_path / "out", dtype="float32", on_progress=fail)
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize("script", ["from_parlai", "to_parlai"])
def test_each_script_shows_how_it_is_called(script):
    result = run(script, "-h")
    assert result.exit_code == 0
    assert re.search(rf"^ +python convert/{script}\.py ", result.output, re.MULTILINE)


def test_quantisation_and_parlais_form_do_not_go_together(tmp_path):
    arguments = ["convert", "demo", str(tmp_path / "out"), "--to", "parlai", "--quantize", "int8"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "--quantize has no effect with --to parlai" in result.output


def test_the_example_prints_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(parlai_conversion)
    assert (result.attempted, result.failed) == (2, 0)


# The writer.


def pending(arrays):
    return {name: Pending(a.shape, a.dtype, lambda a=a: a) for name, a in arrays.items()}


ARRAYS = {
    "START": np.array([1]),
    "a.weight": np.arange(6, dtype="f4").reshape(2, 3),
    "é": np.arange(24, dtype="f2").reshape(2, 3, 4),
    "scalar": np.array(1.5, "f8"),
    "empty": np.zeros((0, 3), "f4"),
    "bf16": np.arange(5).astype(jnp.bfloat16),
}


def test_pytorch_reads_what_is_written(tmp_path):
    torch = pytest.importorskip("torch")
    write_torch(tmp_path / "model", pending(ARRAYS), part="model", aliases={"also": "a.weight"})
    for mapped in (False, True):
        found = torch.load(tmp_path / "model", weights_only=True, mmap=mapped)
        assert found.keys() == {"model"}
        state = found["model"]
        assert list(state) == ["START", "a.weight", "also", "é", "scalar", "empty", "bf16"]
        for name, array in ARRAYS.items():
            assert state[name].shape == array.shape
            np.testing.assert_array_equal(state[name].float().numpy(), array.astype("f4"))
        assert state["also"].data_ptr() == state["a.weight"].data_ptr()
    assert state["START"].dtype == torch.int64
    assert state["bf16"].dtype == torch.bfloat16


def test_records_begin_at_multiples_of_64_bytes(tmp_path):
    write_torch(tmp_path / "model", pending(ARRAYS), part="model")
    for entry in read_torch(tmp_path / "model", "model").values():
        assert entry.offset % 64 == 0
    with zipfile.ZipFile(tmp_path / "model") as archive:
        assert archive.testzip() is None


def test_what_is_written_is_read_here(tmp_path):
    written = []
    write_torch(tmp_path / "model", pending(ARRAYS), part="model", on_progress=written.append)
    assert_same(state_in(tmp_path / "model"), ARRAYS)
    assert sum(written) == sum(array.nbytes for array in ARRAYS.values())


def test_values_of_another_shape_are_refused(tmp_path):
    wrong = {"w": Pending((3, 2), np.dtype("f4"), lambda: np.zeros((2, 3), np.float32))}
    with pytest.raises(ValueError, match=r"w was announced as \[3, 2\], its values are \[2, 3\]"):
        write_torch(tmp_path / "model", wrong, part="model")


# Memory.


@pytest.mark.slow
@pytest.mark.parametrize("what", ["load", "from", "to"])
def test_no_more_is_held_than_the_weights_and_a_tensor(tmp_path, what):
    """A tenth of the 9.4B model: 4096 wide, an encoder and two decoder layers, with an optimizer beside them."""
    program = [sys.executable, "-m", "tests.parlai_memory", what, str(tmp_path)]
    run = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
