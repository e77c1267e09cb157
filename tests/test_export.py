"""Exported programs: the replies of generate, without this package, on the platforms they were lowered for."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner

from blenderbot_jax.chatbot import Chatbot
from blenderbot_jax.cli import main
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.dialogue import Conversation
from blenderbot_jax.generation import GenerationConfig, generate
from blenderbot_jax.model import BlenderbotForCausalLM, BlenderbotForConditionalGeneration
from blenderbot_jax.preparation import prepare
from blenderbot_jax.tokenizer import BlenderbotTokenizer
from tests.golden.fill import golden_model, golden_params
from tests.natively import needs_native

pytest.importorskip("flatbuffers", reason="jax.export writes programs with it")

from blenderbot_jax.export import export_decode
from blenderbot_jax.run_exported import Exported

SAMPLING = GenerationConfig(do_sample=True, temperature=0.8, max_length=9, num_return_sequences=2)
BEAMS = GenerationConfig(num_beams=2, max_length=9, no_repeat_ngram_size=2, encoder_no_repeat_ngram_size=2)
PROMPTS = [[5, 6, 7, 8, 2], [9, 10, 2]]


@pytest.fixture(scope="module")
def tokenizer() -> BlenderbotTokenizer:
    return BlenderbotTokenizer.from_pretrained("demo")


@pytest.fixture(scope="module")
def model():
    return golden_model("blenderbot")


@pytest.fixture(scope="module")
def params(model):
    return golden_params(model, eos_bias=0.0)


@pytest.fixture(scope="module")
def sampled(model, params, tokenizer, tmp_path_factory) -> Exported:
    """A program that draws, for up to two prompts of up to 16 tokens, on three kinds of device."""
    folder = tmp_path_factory.mktemp("exported") / "new" / "sampled"
    done = export_decode(
        folder, model, params, tokenizer, SAMPLING, batch=2, source_width=10, platforms=("cpu", "tpu", "cuda")
    )
    assert (done.folder, done.batch, done.source_width, done.platforms) == (folder, 2, 16, ("cpu", "tpu", "cuda"))
    assert done.program_bytes == (folder / "decode.bin").stat().st_size
    assert done.weight_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    return Exported(folder)


def padded(prompts: list[list[int]]) -> np.ndarray:
    ids = np.zeros((len(prompts), max(map(len, prompts))), np.int32)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    return ids


def assert_same_replies(found, wanted) -> None:
    length = wanted.sequences.shape[-1]
    np.testing.assert_array_equal(found["tokens"][..., :length], wanted.sequences)
    np.testing.assert_array_equal(found["lengths"], wanted.lengths)
    np.testing.assert_allclose(found["scores"], wanted.scores, rtol=1e-6)
    np.testing.assert_allclose(found["log_probs"][..., :length], wanted.token_log_probs, rtol=1e-6)


def test_an_exported_program_draws_what_generate_draws(model, params, sampled):
    ids = padded(PROMPTS)
    wanted = generate(model, params, ids, ids != 0, config=SAMPLING, key=jax.random.key(7))
    assert_same_replies(sampled.generate(PROMPTS, seed=7), wanted)
    # A prompt's own stream does not depend on what stands beside it, nor do rows that only fill the batch.
    assert_same_replies(sampled.generate(PROMPTS[:1], seed=7), jax.tree.map(lambda array: array[:1], wanted))


def test_settings_are_data_of_the_program(model, params, sampled):
    ids = padded(PROMPTS)
    config = SAMPLING.replace(max_length=6, temperature=1.7)
    wanted = generate(model, params, ids, ids != 0, config=config, key=jax.random.key(1))
    found = sampled.generate(PROMPTS, seed=1, max_length=[6], temperature=[1.7])
    assert_same_replies(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_an_exported_beam_search_finds_what_generate_finds(model, params, tokenizer, tmp_path, dtype):
    model, params = model.clone(dtype=dtype), jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    export_decode(tmp_path, model, params, tokenizer, BEAMS, batch=2, source_width=16)
    ids = padded(PROMPTS)
    found = Exported(tmp_path).generate(PROMPTS)
    assert_same_replies(found, generate(model, params, ids, ids != 0, config=BEAMS))


def test_the_command_exports_what_replies_without_this_package(tmp_path):
    arguments = ("--source-width", "16", "--max-length", "12", "--beams", "1")
    folder = tmp_path / "talk"
    result = CliRunner().invoke(main, ["export", "demo", str(folder), *arguments])
    assert result.exit_code == 0, result.stderr
    assert f"{folder}: up to 1 prompt of 16 tokens on {jax.default_backend()}; program" in result.stdout
    poisoned = (
        "import runpy, sys\n"
        "for name in ('blenderbot_jax', 'flax', 'optax', 'click'): sys.modules[name] = None\n"
        f"sys.argv = ['run.py', 'Hello, how are you?']\n"
        f"runpy.run_path({str(folder / 'run.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", poisoned], cwd=tmp_path, capture_output=True, text=True, check=False)
    bot = Chatbot.from_pretrained("demo").configured(num_beams=1, max_length=12)
    assert done.stdout == bot.reply("Hello, how are you?") + "\n", done.stderr


def test_the_command_refuses_a_wrong_platform_and_a_missing_package_before_it_loads_a_model(tmp_path, monkeypatch):
    def refusal(*arguments: str) -> str:
        result = CliRunner().invoke(main, ["export", "no-such-model", str(tmp_path / "new"), *arguments])
        assert result.exit_code == 2
        return result.stderr

    assert "platforms are some of cpu, cuda, rocm, tpu" in refusal("--platform", "gpu")
    assert "'no-such-model' could not be had" in refusal("--platform", "tpu")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'blenderbot-jax[export]'" in refusal()


@pytest.mark.slow
def test_a_conversation_and_typed_tokens_are_read_as_a_chatbot_reads_them(tmp_path):
    bot = Chatbot.from_pretrained("demo").configured(num_beams=1, max_length=12)
    checkpoint = bot.checkpoint
    export_decode(
        tmp_path, checkpoint.model, checkpoint.params, checkpoint.tokenizer, bot.generation_config, source_width=32
    )
    exported = Exported(tmp_path)
    assert exported.reply("  I like </s> tea. ") == bot.reply("I like </s> tea.")
    chat = Conversation().add("user", "Hi!").add("bot", "Hello there.").add("user", "How are you?")
    assert exported.reply("Hi!", "Hello there.", "How are you?") == bot.respond(chat).text


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda program: program.generate([], seed=0), "takes 1 to 2 prompts of 1 to 16 tokens, not 0"),
        (lambda program: program.generate([[5]] * 3, seed=0), "not 3 of up to 1: split the batch"),
        (lambda program: program.generate([[5], []], seed=0), "not 2 of up to 1"),
        (lambda program: program.generate([[5] * 17], seed=0), "not 1 of up to 17"),
        (lambda program: program.generate([[5, 9999]], seed=0), "ids are from 0 to"),
        (lambda program: program.generate([[-1]], seed=0), "ids are from 0 to"),
        (lambda program: program.generate([[5]]), "pass seed="),
        (lambda program: program.generate([[5]], seed=0, warmth=[1]), "warmth=.* is no setting of this program"),
        (lambda program: program.generate([[5]], seed=0, temperature=1.0), "is no setting of this program"),
        (lambda program: program.generate([[5]], seed=0, max_length=[17]), "max_length is from 1 to 16"),
    ],
)
def test_a_program_refuses_what_it_has_no_room_for(sampled, call, says):
    with pytest.raises(ValueError, match=says):
        call(sampled)


def test_a_program_for_other_devices_and_a_folder_without_one_are_refused(sampled, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "neuron")
    with pytest.raises(ValueError, match="for cpu, tpu, cuda and this is neuron: export it again with --platform"):
        Exported(sampled.folder)
    with pytest.raises(FileNotFoundError, match=r"holds no manifest\.json"):
        Exported(tmp_path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch": 0}, "batch is an integer from 1, not 0"),
        ({"source_width": 25}, "source_width is an integer from 1 up to the model's positions, 24, not 25"),
        ({"platforms": ["gpu"]}, "platforms are some of cpu, cuda, rocm, tpu"),
        ({"platforms": "cpu"}, "platforms are some of"),
        ({"platforms": []}, "platforms are some of"),
        ({"config": SAMPLING.replace(output_scores=True)}, r"config.replace\(output_scores=False\)"),
    ],
)
def test_what_cannot_be_exported_is_refused(tiny_config: BlenderbotConfig, tokenizer, tmp_path, options, says):
    options = {"config": SAMPLING, **options}
    model = BlenderbotForConditionalGeneration(tiny_config)
    with pytest.raises(ValueError, match=says):
        export_decode(tmp_path, model, {}, tokenizer, options.pop("config"), **options)
    assert list(tmp_path.iterdir()) == []


def test_causal_models_and_dtypes_without_a_name_are_refused(tiny_config: BlenderbotConfig, tokenizer, tmp_path):
    causal = BlenderbotForCausalLM(tiny_config.replace(is_encoder_decoder=False))
    with pytest.raises(ValueError, match="a model with an encoder can be exported"):
        export_decode(tmp_path, causal, {}, tokenizer, SAMPLING)
    model = BlenderbotForConditionalGeneration(tiny_config)
    with pytest.raises(ValueError, match=r"kernel is int4, which weights.safetensors cannot hold"):
        export_decode(tmp_path, model, {"kernel": jnp.zeros(2, jnp.int4)}, tokenizer, SAMPLING)


@needs_native
def test_parameters_for_native_kernels_are_refused_with_the_way_out(model, params, tokenizer, tmp_path):
    config = GenerationConfig(max_length=8)
    with pytest.raises(ValueError, match=r"prepared for kernels of this machine.*prepare\(\.\.\., natively=False\)"):
        export_decode(tmp_path / "out", model, prepare(model, params), tokenizer, config)
    assert not (tmp_path / "out").exists()
    export_decode(tmp_path / "out", model, prepare(model, params, natively=False), tokenizer, config)


def test_an_export_that_fails_leaves_the_folder_as_it_was(sampled, model, params, tmp_path, monkeypatch):
    class Broken:
        get_vocab = staticmethod(dict)
        eos_token_id = 2

        def encode(self, *args, **options):
            return [5]

        def save_pretrained(self, folder):
            raise OSError("the disk is full")

    (tmp_path / "manifest.json").write_text("before")
    program = jax.export.deserialize(bytearray((sampled.folder / "decode.bin").read_bytes()))
    monkeypatch.setattr(jax.export, "export", lambda function, **options: lambda *args: program)
    with pytest.raises(OSError, match="disk is full"):
        export_decode(tmp_path, model, params, Broken(), SAMPLING)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    assert (tmp_path / "manifest.json").read_text() == "before"


def test_the_manifest_says_what_the_program_takes(sampled):
    manifest = json.loads((Path(sampled.folder) / "manifest.json").read_text())
    assert {name: manifest[name] for name in ("batch", "source_width", "capacity", "returned", "samples")} == {
        "batch": 2,
        "source_width": 16,
        "capacity": 16,
        "returned": 2,
        "samples": True,
    }
    assert manifest["settings"]["max_length"] == {"dtype": "int32", "shape": [1], "values": [9]}
