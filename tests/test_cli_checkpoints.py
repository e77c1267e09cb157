"""The commands about checkpoints: convert, verify and info."""

import json
import re
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from blenderbot_jax.checkpoint import CheckpointError, save_pretrained
from blenderbot_jax.cli import main
from blenderbot_jax.cli import verify as verify_module
from blenderbot_jax.cli.info import cache_numbers
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.verification import UTTERANCES, Comparison
from tests.checkpoint_files import random_tensors, tree_of, write, write_index
from tests.commands import Typed

TYPED = Typed(main)
run, output, refusal = TYPED.run, TYPED.output, TYPED.refusal


# convert


def test_convert_writes_a_folder_and_says_what(tmp_path):
    said = output("convert", "demo", tmp_path / "out", "--dtype", "bfloat16")
    parameters = "3,488,064 parameters in bfloat16, 7.0 MB"
    assert said == f"{tmp_path / 'out'}: BlenderbotForConditionalGeneration, {parameters}\n"
    dtypes = {str(array.dtype) for array in load_file(tmp_path / "out" / "model.safetensors").values()}
    assert dtypes == {"bfloat16"}


def test_convert_keeps_the_stored_dtype_and_misses_a_tokenizer_aloud(tmp_path, tiny_config):
    write(tmp_path / "source", tiny_config, random_tensors(tiny_config))
    result = run("convert", tmp_path / "source", tmp_path / "out")
    assert result.exit_code == 0
    assert "parameters as it was stored" in result.stdout
    assert result.stderr == "The source has no tokenizer files; the new folder has none either.\n"
    assert load_file(tmp_path / "out" / "model.safetensors")["model.shared.weight"].dtype == np.float16


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("demo",), "Missing argument 'TARGET'"),
        (("/no/such/folder", "out"), "there is no folder"),
        (("demo", "out", "--dtype", "int8"), "'int8' is not one of 'stored', 'float32'"),
    ],
)
def test_convert_refuses_in_one_line(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert says in refusal("convert", *arguments)
    assert not list(tmp_path.iterdir())


# info


def test_info_shows_what_the_bundled_model_is():
    said = output("info")
    for words in (
        "blenderbot (pre-norm)", "BlenderbotForConditionalGeneration", "4,000 tokens", "3,488,064", "one for all",
        "2 layers, 6 heads, feed-forward 768", "14.0 MB in float32, 7.0 MB in bfloat16",
        "model.safetensors: 7.0 MB, 118 tensors, float16", "num_beams 3, prompts of 128 tokens, float32", "cpu",
    ):  # fmt: skip
        assert words in said


def test_info_needs_no_weights(tmp_path):
    BlenderbotConfig.blenderbot_3b().save_json(tmp_path / "config.json")
    (tmp_path / "generation_config.json").write_text('{"num_beams": 10}')
    said = output("info", tmp_path, "--dtype", "bfloat16")
    assert "2,696,268,800" in said
    assert re.search(r"weights on disk +│ none here", said)
    # 2 * 24 layers * 2560 * (10 beams * 64 tokens + 128 prompt tokens) * 2 bytes
    row = next(line for line in said.splitlines() if line.startswith("│ 1 "))
    assert "188.7 MB" in row


def test_info_tells_each_kind_of_model(tmp_path, tiny_small_config):
    config = tiny_small_config.replace(tie_word_embeddings=False)
    save_pretrained(tmp_path, config, tree_of(config, "ForCausalLM"))
    said = output("info", tmp_path)
    for words in (
        "blenderbot-small (post-norm)",
        "BlenderbotSmallForCausalLM",
        "a head of its own",
        "num_beams 1, float32",
    ):
        assert words in said
    assert "encoder" not in said
    # The positions are fewer than the smallest capacity.
    assert "24 tokens" in said


def test_info_counts_shards_and_dtypes(tmp_path, tiny_config):
    tensors = random_tensors(tiny_config)
    bias = tensors.pop("final_logits_bias")
    write(tmp_path, tiny_config, tensors)
    (tmp_path / "model.safetensors").rename(tmp_path / "one.safetensors")
    write(tmp_path, tiny_config, {"final_logits_bias": bias.astype(np.float32)})
    (tmp_path / "model.safetensors").rename(tmp_path / "two.safetensors")
    write_index(tmp_path, {**dict.fromkeys(tensors, "one.safetensors"), "final_logits_bias": "two.safetensors"})
    said = " ".join(output("info", tmp_path).split())
    assert "model.safetensors (2 shards): 5" in said
    assert f"{len(tensors) + 1} tensors, {len(tensors)} of float16, 1 of float32" in said


def test_info_tells_what_is_wrong_with_the_weights(tmp_path, tiny_config):
    tiny_config.save_json(tmp_path / "config.json")
    (tmp_path / "model.safetensors").write_bytes(b"[bold]")
    said = " ".join(output("info", tmp_path).replace("│", "").split())
    assert "model.safetensors cannot be read" in said
    assert "parameters" in said


def test_info_refuses_what_is_no_checkpoint(tmp_path):
    assert "holds no config.json" in refusal("info", tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "config.json" in refusal("info", tmp_path)


def test_the_numbers_of_a_cache_are_those_of_its_arrays(tiny_config):
    import jax

    from blenderbot_jax.model import BlenderbotForConditionalGeneration

    model, width = BlenderbotForConditionalGeneration(tiny_config), tiny_config.max_position_embeddings
    params = jax.eval_shape(model.init_params, jax.random.key(0))

    def prefill(params):
        encoded = jax.numpy.zeros((3, width, tiny_config.d_model))
        return model.apply({"params": params}, encoded, None, capacity=7, beams=4, method="prefill")

    cache = jax.eval_shape(prefill, params)
    kept = (cache.self_keys, cache.self_values, cache.cross_keys, cache.cross_values)
    assert cache_numbers(tiny_config, 3, 4, 7) == sum(leaf.size for leaf in jax.tree.leaves(kept))


# verify


@pytest.fixture
def compared(monkeypatch):
    """What the comparison finds, and what it was asked."""
    found = [Comparison("Hi [b]", 1e-5, 12.0, "Hello", "Hello", True, False)]
    asked = []

    def verify_checkpoint(name, utterances, *, on_progress, **options):
        asked.append((name, tuple(utterances), options))
        on_progress(1, 1)
        return found

    monkeypatch.setattr(verify_module, "verify_checkpoint", verify_checkpoint)
    return found, asked


def test_verify_shows_a_table_and_a_verdict(compared):
    said = output("verify")
    assert re.search(r"│ Hi \[b\] +│ 1.0e-05 +│ 12.0 +│ equal +│ Hello +│", said)
    assert said.endswith("demo: all 1 agree; max |difference| of logits 1.0e-05; ties: 0\n")
    assert compared[1] == [("demo", UTTERANCES, {"revision": None, "local_files_only": False})]


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (Comparison("Hi", 1e-5, 12.0, "Hello", "Good day", False, False), ("DIFFER", "Good day (transformers)")),
        (Comparison("Hi", 1e-2, 12.0, "Hello", "Hello", True, False), ("1.0e-02", "equal")),
        (Comparison("Hi", float("nan"), 12.0, "Hello", "Hello", True, False), ("nan",)),
    ],
)
def test_verify_ends_with_1_where_something_differs(compared, one, words):
    compared[0].append(one)
    said = output("verify", "demo", code=1)
    assert "1 of 2 differ" in said
    for word in words:
        assert word in said


def test_a_tie_is_no_difference(compared):
    compared[0].append(Comparison("Hi", 1e-5, 12.0, "Hello", "Good day", False, True))
    said = output("verify", "demo")
    assert "a tie" in said
    assert "ties: 1" in said


def test_verify_takes_utterances_and_tolerance(compared, tmp_path):
    (tmp_path / "lines.txt").write_text("one\n\n two \n", encoding="utf-8-sig")
    output("verify", "demo", "--utterances", tmp_path / "lines.txt", "--tolerance", "1e-9", code=1)
    output("verify", "demo", "--utterances", "-", stdin="three\n")
    assert [utterances for _, utterances, _ in compared[1]] == [("one", "two"), ("three",)]


@pytest.mark.parametrize(("content", "says"), [(b"\n \n", "is empty"), (b"\xff\xfe\0", "not UTF-8 text")])
def test_verify_refuses_a_file_of_no_utterances(tmp_path, content, says):
    (tmp_path / "lines.txt").write_bytes(content)
    assert says in refusal("verify", "demo", "--utterances", tmp_path / "lines.txt")


def test_verify_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pip install torch 'transformers>=5.8'" in refusal("verify", "demo")


def test_what_cannot_be_loaded_is_one_line(monkeypatch):
    def fail(name, utterances, **options):
        raise CheckpointError("does not fit:\n  missing: a")

    monkeypatch.setattr(verify_module, "verify_checkpoint", fail)
    assert refusal("verify", "demo") == "Error: does not fit: missing: a"


@pytest.mark.parametrize("command", ["convert", "verify", "info"])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_shows_examples(command, flag):
    text = output(command, flag)
    assert re.search(r"Examples:\n\s+blenderbot-jax ", text)
    assert command in output("--help")


def test_the_stored_configuration_is_left_as_it_was(tmp_path, tiny_config):
    write(tmp_path / "source", tiny_config, random_tensors(tiny_config))
    run("convert", tmp_path / "source", tmp_path / "out")
    stored, made = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("source", "out"))
    assert made == stored | {"architectures": ["BlenderbotForConditionalGeneration"], "dtype": "float16"}
