"""int8 weights: the arithmetic of a kernel, whole models, the saved form, the commands, and what they cost."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from benchmarks.quantized_quality import compare, held_out, perplexity
from blenderbot_jax.attribution import attribution
from blenderbot_jax.chatbot import Chatbot
from blenderbot_jax.checkpoint import CheckpointError, save_pretrained
from blenderbot_jax.checkpoint.names import flatten
from blenderbot_jax.cli import main
from blenderbot_jax.conversion import convert_checkpoint
from blenderbot_jax.ensemble import Ensemble
from blenderbot_jax.generation import GenerationConfig
from blenderbot_jax.generation.decode import decode
from blenderbot_jax.generation.request import request
from blenderbot_jax.kernels import BlockedKernel, Int8Kernel
from blenderbot_jax.memory import decoding_memory, weight_bytes
from blenderbot_jax.model import BlenderbotForCausalLM, BlenderbotForConditionalGeneration, BlenderbotModel
from blenderbot_jax.pretrained import Checkpoint
from blenderbot_jax.quantize import is_quantized, quantize
from blenderbot_jax.verification import verify_checkpoint
from tests.checkpoint_files import random_params, random_tensors, tree_of, write
from tests.compiling import compiled_programs

CLASSES = {
    "Model": BlenderbotModel,
    "ForConditionalGeneration": BlenderbotForConditionalGeneration,
    "ForCausalLM": BlenderbotForCausalLM,
}
ON_CPU = pytest.mark.skipif(jax.default_backend() != "cpu", reason="the arithmetic of a CPU")


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="blenderbot-jax")


def same(ours, theirs):
    """Every array of two trees, kernels in 8 bits by their parts, is the same bit for bit."""
    ours, theirs = (
        {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)} for tree in (ours, theirs)
    )
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        assert leaf.dtype == theirs[path].dtype, path
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(theirs[path]), err_msg=path)


@pytest.fixture(scope="module")
def demo():
    return Checkpoint.from_pretrained("demo")


@pytest.fixture(scope="module")
def small_demo(tmp_path_factory):
    """The bundled model, converted."""
    folder = tmp_path_factory.mktemp("int8") / "demo"
    convert_checkpoint("demo", folder, quantize="int8")
    return folder


# A kernel


def in_numpy(x, kernel):
    """The product as it is specified: weights and rows to 8 bits, each by its own scale, summed in integers."""
    scales = np.abs(kernel).max(axis=0) / 127
    values = np.round(kernel / scales).astype(np.int64)
    row_scales = np.abs(x).max(axis=1, keepdims=True) / 127
    rows = np.round(x / row_scales).astype(np.int64)
    return (rows @ values) * row_scales * scales


@ON_CPU
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 8, 80])
def test_a_product_is_that_of_the_rounded_numbers(rows, dtype):
    rng = np.random.default_rng(rows)
    kernel = rng.normal(size=(48, 40)).astype(np.float32)
    x = jnp.asarray(rng.normal(size=(rows, 48)), dtype)
    ours = jax.jit(lambda x, kernel: x @ kernel)(x, Int8Kernel.pack(jnp.asarray(kernel)))
    assert ours.dtype == dtype
    wanted = in_numpy(np.asarray(x, np.float32), kernel)
    # float32: a number that lies between two integers may be rounded either way. bfloat16: the result is rounded.
    relative = np.linalg.norm(np.asarray(ours, np.float64) - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    assert relative.max() < (1e-3 if dtype == jnp.float32 else 4e-3)


@pytest.mark.parametrize("rows", [1, 8])
def test_a_row_of_a_product_is_off_by_less_than_two_per_cent(rows):
    rng = np.random.default_rng(rows)
    kernel = rng.normal(size=(192, 300)).astype(np.float32) * rng.lognormal(size=300).astype(np.float32)
    x = rng.normal(size=(rows, 192)).astype(np.float32)
    ours = np.asarray(jnp.asarray(x) @ Int8Kernel.pack(jnp.asarray(kernel)))
    relative = np.linalg.norm(ours - x @ kernel, axis=1) / np.linalg.norm(x @ kernel, axis=1)
    assert 0 < relative.max() < 0.02


def test_a_weight_is_off_by_at_most_half_a_step_of_its_channel():
    kernel = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    kernel[:, 5] = 0
    packed = Int8Kernel.pack(jnp.asarray(kernel))
    scales = np.asarray(packed.scales)
    assert (scales > 0).all()
    assert np.isfinite(scales).all()
    error = np.abs(np.asarray(packed.values).T * scales - kernel)
    assert (error <= scales * 0.501).all()
    assert not np.asarray(packed.values)[5].any()
    assert np.abs(np.asarray(packed.values)).max() == 127


# A tree


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("post_norm", [False, True])
def test_every_kernel_is_packed_and_nothing_else_is(kind, tied, post_norm, tiny_config, tiny_small_config):
    config = (tiny_small_config if post_norm else tiny_config).replace(tie_word_embeddings=tied)
    params = jax.tree.map(jnp.asarray, tree_of(config, kind))
    before, after = flatten(params), flatten(quantize(params))
    added = {"lm_head/kernel"} if tied and kind != "Model" else set()
    assert after.keys() == before.keys() | added
    for path, leaf in after.items():
        if path.endswith("/kernel"):
            source = before["model/shared/embedding"].T if path in added else before[path]
            same(leaf, jax.jit(Int8Kernel.pack)(source))
        else:
            assert leaf is before[path], path
    assert is_quantized(after)
    assert not is_quantized(before)
    assert weight_bytes(params, int8=True) == sum(leaf.nbytes for leaf in jax.tree.leaves(after))
    assert weight_bytes(params) == sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def test_kernels_of_one_shape_are_packed_by_one_program(demo, tmp_path):
    kernels = [leaf for path, leaf in flatten(demo.params).items() if path.endswith("/kernel")]
    shapes = {leaf.shape for leaf in kernels} | {demo.params["model"]["shared"]["embedding"].shape[::-1]}
    assert len(shapes) < len(kernels) / 3
    jax.clear_caches()
    with compiled_programs("pack_rows") as seen:
        Checkpoint.from_pretrained("demo", quantize="int8")
    assert len(seen) == len(shapes)


def test_a_quantised_model_says_about_the_same_in_every_way_it_is_used(demo):
    small = quantize(demo.params)
    ids = jnp.asarray(demo.tokenizer(["I have two dogs."]).input_ids)
    logits = [demo.model.apply({"params": p}, ids, None, ids).logits for p in (demo.params, small)]
    distance = [np.asarray(jax.nn.log_softmax(each)) for each in logits]
    assert 0 < np.abs(distance[0] - distance[1]).max() < 0.5
    causal = BlenderbotForCausalLM(demo.model.config)
    alone = [causal.apply({"params": p}, ids).logits for p in (demo.params, small)]
    assert np.corrcoef(*(np.asarray(each).ravel() for each in alone))[0, 1] > 0.999


@pytest.mark.long
def test_the_members_of_an_ensemble_are_quantised_each(tiny_config):
    model = BlenderbotForConditionalGeneration(tiny_config)
    trees = tuple(model.init_params(jax.random.key(seed)) for seed in range(2))
    small = quantize(trees)
    assert isinstance(small, tuple)
    assert is_quantized(small)
    for one, tree in zip(small, trees, strict=True):
        same(one, quantize(tree))
    ids = jnp.array([[5, 6, 2]])
    logits = Ensemble((model, model)).apply({"params": small}, ids, None, ids).logits
    each = [jax.nn.log_softmax(model.apply({"params": one}, ids, None, ids).logits) for one in small]
    np.testing.assert_allclose(logits, np.logaddexp(*each) - np.log(2), atol=1e-5)


def test_quantize_may_be_jitted(tiny_config):
    params = random_params(tiny_config)
    same(jax.jit(quantize)(params), quantize(params))


@pytest.mark.parametrize(
    ("form", "says"),
    [
        (Int8Kernel.pack, "in 8 bits already: quantize takes the parameters as they were loaded"),
        (BlockedKernel.pack, "is a BlockedKernel: quantize first, and prepare what it returns"),
        (lambda kernel: kernel.astype(jnp.int32), r"is int32 of shape \[24, 40\]: quantize takes kernels"),
        (lambda kernel: kernel[None], r"is float32 of shape \[1, 24, 40\]"),
    ],
)
def test_what_is_no_plain_kernel_is_refused_by_name(form, says, tiny_config):
    params = random_params(tiny_config)
    fc1 = params["model"]["encoder"]["layers"]["0"]["fc1"]
    fc1["kernel"] = form(fc1["kernel"])
    with pytest.raises(ValueError, match=f"model/encoder/layers/0/fc1/kernel {says}" if says[:2] != "in" else says):
        quantize(params)


# The saved form


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", CLASSES)
def test_a_saved_tree_comes_back_bit_for_bit(kind, tied, tmp_path, tiny_small_config):
    config = tiny_small_config.replace(tie_word_embeddings=tied)
    params = quantize(jax.tree.map(jnp.asarray, tree_of(config, kind)))
    save_pretrained(tmp_path, config, params)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model_int8.safetensors"]
    model, loaded = CLASSES[kind].from_pretrained(tmp_path)
    same(loaded, params)
    assert model.config == config.replace(is_decoder=kind == "ForCausalLM", is_encoder_decoder=kind != "ForCausalLM")


def test_the_file_holds_integers_and_scales_under_the_published_names(small_demo, demo):
    stored = load_file(small_demo / "model_int8.safetensors")
    kernel = demo.params["model"]["encoder"]["layers"]["1"]["fc1"]["kernel"]
    values, scales = (stored[f"model.encoder.layers.1.fc1.{name}"] for name in ("weight", "weight_scale"))
    assert values.dtype == np.int8
    assert scales.dtype == np.float32
    np.testing.assert_allclose(values * scales[:, None], np.asarray(kernel).T, atol=scales.max() * 0.501)
    assert stored["lm_head.weight"].dtype == np.int8
    assert stored["model.shared.weight"].dtype == np.float16
    assert os.path.getsize(small_demo / "model_int8.safetensors") < 5.3e6


def test_converting_loading_and_quantising_give_the_same_leaves(small_demo, demo, tmp_path):
    wanted = quantize(demo.params)
    same(Checkpoint.from_pretrained(small_demo).params, wanted)
    same(Checkpoint.from_pretrained("demo", quantize="int8").params, wanted)
    same(Checkpoint.from_pretrained(small_demo, quantize="int8").params, wanted)
    again = convert_checkpoint(small_demo, tmp_path / "again", dtype="bfloat16")
    assert again.int8
    assert again.parameters == 3_488_064
    half = flatten(Checkpoint.from_pretrained(tmp_path / "again", dtype=jnp.bfloat16).params)
    same(half["lm_head/kernel"], wanted["lm_head"]["kernel"])
    assert half["model/shared/embedding"].dtype == jnp.bfloat16


def test_other_models_take_their_part_of_a_quantised_folder(small_demo, demo):
    whole = flatten(quantize(demo.params))
    causal = flatten(BlenderbotForCausalLM.from_pretrained(small_demo)[1])
    same(causal, {path: whole[path] for path in causal})
    assert "lm_head/kernel" in causal
    headless = flatten(BlenderbotModel.from_pretrained(small_demo)[1])
    same(headless, {path: whole[f"model/{path}"] for path in headless})


def test_loading_never_holds_a_widened_kernel(small_demo, monkeypatch):
    def refuse(kernel):
        raise AssertionError("packed anew")

    monkeypatch.setattr("blenderbot_jax.checkpoint.load.pack", refuse)
    placed = []
    monkeypatch.setattr(
        "blenderbot_jax.checkpoint.load._place",
        lambda path, array, dtype: placed.append((array.dtype, np.dtype(dtype))) or jnp.asarray(array, dtype),
    )
    assert is_quantized(Checkpoint.from_pretrained(small_demo).params)
    assert {to for kind, to in placed if kind == np.int8} == {np.dtype(np.int8)}


NAME = "model.decoder.layers.1.fc2.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop(f"{NAME}_scale"), f"or else have scales beside them: {NAME}_scale is missing"),
        (lambda t: t.update({f"{NAME}_scale": t[f"{NAME}_scale"].astype("f2")}), f"{NAME}_scale is float16 of shape"),
        (lambda t: t.update({f"{NAME}_scale": t[f"{NAME}_scale"][1:]}), "one for each output channel: [24]"),
        (lambda t: t[f"{NAME}_scale"].__setitem__(3, np.nan), f"{NAME}_scale holds nan, scales are finite"),
        (lambda t: t[f"{NAME}_scale"].__setitem__(3, 0), f"{NAME}_scale holds 0.0, scales are finite and above 0"),
        (lambda t: t.update({NAME: t[NAME].T.copy()}), f"{NAME} has shape [56, 24], the configuration asks for [24"),
        (lambda t: t.update({NAME: t[NAME].astype("i2")}), f"{NAME} holds int16, weights are floating point"),
        (lambda t: t.update({NAME: t[NAME].astype("f4")}), f"unexpected: {NAME}_scale"),
        (
            lambda t: t.update({"model.shared.weight": t["model.shared.weight"].astype("i1")}),
            "model.shared.weight holds int8, weights are floating point",
        ),
        (lambda t: t.pop(NAME), f"missing: {NAME}"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_by_name(change, says, tmp_path, tiny_config):
    save_pretrained(tmp_path, tiny_config, quantize(random_params(tiny_config)))
    tensors = load_file(tmp_path / "model_int8.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model_int8.safetensors")
    with pytest.raises(CheckpointError) as error:
        BlenderbotForConditionalGeneration.from_pretrained(tmp_path)
    assert says in str(error.value)


def test_quantised_weights_are_not_saved_where_others_would_be_read_first(tmp_path, tiny_config):
    params = random_params(tiny_config)
    save_pretrained(tmp_path, tiny_config, params)
    with pytest.raises(ValueError, match=r"holds model\.safetensors, which is read before model_int8\.safetensors"):
        save_pretrained(tmp_path, tiny_config, quantize(params))
    with pytest.raises(ValueError, match="choose another folder"):
        convert_checkpoint("demo", tmp_path, quantize="int8")
    same(BlenderbotForConditionalGeneration.from_pretrained(tmp_path)[1], params)


def test_prepared_parameters_are_not_saved(tmp_path, tiny_config):
    params = random_params(tiny_config)
    fc1 = params["model"]["encoder"]["layers"]["0"]["fc1"]
    fc1["kernel"] = BlockedKernel.pack(fc1["kernel"])
    with pytest.raises(ValueError, match="layers/0/fc1/kernel is a BlockedKernel: save the parameters as they were"):
        save_pretrained(tmp_path / "out", tiny_config, params)
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_are_not_converted(tmp_path, tiny_config):
    tensors = random_tensors(tiny_config, "float32")
    tensors[NAME][2, 3] = np.inf
    write(tmp_path / "source", tiny_config, tensors)
    with pytest.raises(CheckpointError, match="model/decoder/layers/1/fc2/kernel holds inf: what is not finite"):
        convert_checkpoint(tmp_path / "source", tmp_path / "out", quantize="int8")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("load", [Checkpoint.from_pretrained, Chatbot.from_pretrained])
def test_a_quantisation_that_there_is_not_is_refused(load):
    with pytest.raises(ValueError, match="quantize is 'int8', or None for none, not 'int4'"):
        load("demo", quantize="int4")
    with pytest.raises(ValueError, match="not 8"):
        convert_checkpoint("demo", "out", quantize=8)


def test_transformers_takes_a_quantised_folder_for_none_of_its_own(small_demo):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        transformers.BlenderbotForConditionalGeneration.from_pretrained(small_demo)
    with pytest.raises(CheckpointError, match="weights in 8 bits, which transformers does not read"):
        verify_checkpoint(small_demo, ["Hi!"])


# The commands


@pytest.mark.long
def test_reply_answers_with_int8_weights_however_they_were_made(small_demo):
    fast = ("--beams", "1", "--max-length", "12")
    wanted = Chatbot.from_pretrained("demo", quantize="int8").configured(num_beams=1, max_length=12).reply("Hi!")
    for loading in (("--quantize", "int8"), ("--model", small_demo)):
        said = run("reply", *loading, *fast, "Hi!")
        assert (said.exit_code, said.stdout) == (0, f"{wanted}\n"), said.stderr


def test_every_command_that_loads_a_model_can_quantise_it():
    for name in ("chat", "reply", "explain", "warm-up", "export", "convert", "info"):
        assert "--quantize [int8]" in " ".join(run(name, "--help").stdout.split()), name
    assert "is not 'int8'" in run("reply", "--quantize", "int4", "Hi!").stderr


def test_convert_says_what_it_wrote(tmp_path):
    said = run("convert", "demo", tmp_path / "out", "--quantize", "int8")
    assert said.exit_code == 0
    assert "3,488,064 parameters in int8 and the rest as it was stored, 5.2 MB" in said.stdout


@pytest.mark.long
def test_explain_refuses_gradients_that_are_undefined(small_demo):
    for loading in (("--quantize", "int8"), ("--model", small_demo)):
        said = run("explain", *loading, "Hi!", "Hello.")
        assert said.exit_code == 2
        assert "weights in 8 bits have no gradients: take --method cross_attention" in said.stderr
    said = run("explain", "--quantize", "int8", "--method", "cross_attention", "Hi!", "Hello.")
    assert said.exit_code == 0
    assert "looked most at" in said.stdout


def test_info_counts_the_memory_of_decoding(small_demo):
    said = " ".join(run("info", "demo").stdout.replace("│", " ").split())
    for words in (
        "14.0 MB in float32, 7.0 MB in bfloat16 or float16, 6.8 MB with int8 kernels",
        "batch 1, num_beams 3, replies of 64 tokens",
        "2 L B (K C + S) D x 4 = 2 x 3 x 1 x (3 x 64 + 128) x 192 x 4 1.5 MB",
        "B K V x 4 = 1 x 3 x 4000 x 4 48.0 kB",
        "peak, about their sum 16.3 MB",
    ):
        assert words in said
    chosen = ("--batch-size", 8, "--beams", 10, "--max-length", 20, "--dtype", "bfloat16")
    said = " ".join(run("info", small_demo, *chosen).stdout.replace("│", " ").split())
    for words in (
        "kernels in int8, the rest in bfloat16 5.2 MB",
        "batch 8, num_beams 10, replies of 32 tokens",
        "B K V x 4 x 2 = 8 x 10 x 4000 x 4 x 2 2.6 MB",
    ):
        assert words in said
    assert "kernels in int8, the rest in float32" in run("info", "demo", "--quantize", "int8").stdout


# What it costs


@pytest.mark.slow
def test_perplexity_rises_by_less_than_one_per_cent(demo, data_folder):
    # Of one width, so that one program serves.
    examples = held_out(demo, data_folder / "dialogues")
    examples = [one for one in examples if len(one.input_ids) <= 32 and len(one.labels) <= 16]
    before, after = (perplexity(demo, params, examples[:512]) for params in (demo.params, quantize(demo.params)))
    assert 10 < before < 50
    assert abs(after / before - 1) < 0.01


@pytest.mark.slow
def test_few_replies_change(demo, data_folder):
    found = compare(demo, held_out(demo, data_folder / "dialogues", 1000), contexts=40)
    assert found["contexts"] == 40
    assert abs(found["perplexity ratio"] - 1) < 0.01
    assert 0 < found["replies changed"] <= 20
    assert found["bytes"]["int8"] < found["bytes"]["float32"] / 2


# Memory

_MEASURED = [
    (False, None, 8, 10, 60),
    (False, None, 1, 1, 30),
    (True, None, 8, 10, 60),
    (False, jnp.bfloat16, 8, 10, 60),
]


@ON_CPU
@pytest.mark.slow
@pytest.mark.parametrize(("int8", "cache_dtype", "batch", "beams", "length"), _MEASURED)
def test_a_program_takes_at_most_a_tenth_more_than_the_formula(int8, cache_dtype, batch, beams, length, demo):
    config, params = demo.model.config, quantize(demo.params) if int8 else demo.params
    ids = np.full((batch, 128), 5, np.int32)
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    work = request(config, GenerationConfig.recipe(num_beams=beams, max_length=length), given)
    model = demo.model.clone(cache_dtype=cache_dtype)
    compiled = decode.lower(model, work.plan, params, work.inputs, work.task, None).compile().memory_analysis()
    formula = decoding_memory(
        config,
        weight_bytes(demo.params, int8=int8),
        batch=batch,
        beams=beams,
        capacity=work.plan.capacity,
        cache_itemsize=None if cache_dtype is None else cache_dtype.dtype.itemsize,
        int8=int8,
    )
    taken = compiled.temp_size_in_bytes + compiled.argument_size_in_bytes
    assert 0.8 * formula.total < taken < 1.1 * formula.total


def test_gradients_through_quantised_weights_are_refused(demo):
    batch = demo.tokenizer(["Hi!"])
    with pytest.raises(ValueError, match="no gradients: take method='cross_attention'"):
        attribution(demo.model, quantize(demo.params), batch.input_ids, batch.attention_mask, batch.input_ids)
