"""Packed weights: the same products, the same replies, and refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blenderbot_jax import native, preparation
from blenderbot_jax.ensemble import Ensemble
from blenderbot_jax.generation import GenerationConfig, generate
from blenderbot_jax.kernels import BlockedKernel, is_native, matmul
from blenderbot_jax.model import BlenderbotForCausalLM, BlenderbotForConditionalGeneration
from blenderbot_jax.preparation import prepare
from blenderbot_jax.quantize import quantize
from tests.golden.fill import golden_params
from tests.natively import needs_native

PROMPTS = np.random.default_rng(0).integers(3, 96, (1, 9))


FORMS = [False, pytest.param(True, marks=needs_native)]


@pytest.fixture(autouse=True)
def blocks_everywhere(monkeypatch):
    """Blocks on every release of jax and for kernels of any size, so that they are held to the plain form."""
    monkeypatch.setattr(preparation, "_LEAST_JAX", (0, 1))
    monkeypatch.setattr(preparation, "_LEAST_BYTES", 0)


@pytest.mark.parametrize("shape", [(24, 64), (24, 100), (5, 3)])
@pytest.mark.parametrize("rows", [(1,), (2, 3)])
def test_a_kernel_in_blocks_gives_the_plain_product(shape, rows):
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((*rows, shape[0])), rng.standard_normal(shape)
    blocked = BlockedKernel.pack(jnp.asarray(kernel, jnp.float32))
    assert blocked.blocks.shape[1:] == (shape[0], 64)
    np.testing.assert_allclose(matmul(jnp.asarray(x, jnp.float32), blocked), x @ kernel, atol=1e-5)


def test_a_single_short_row_gives_the_plain_product():
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in ((1, 1, 24), (24, 16)))
    wanted = np.asarray(x, np.float32) @ np.asarray(kernel, np.float32)
    np.testing.assert_allclose(matmul(x, kernel, jnp.float32), wanted, atol=1e-4)


@pytest.mark.parametrize("natively", FORMS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["tiny_config", "tiny_small_config"])
def test_prepared_parameters_give_the_same_replies(request, kind, tied, natively):
    model = BlenderbotForConditionalGeneration(request.getfixturevalue(kind).replace(tie_word_embeddings=tied))
    params = golden_params(model)
    prepared = prepare(model, params, rows=3, natively=natively)
    assert is_native(prepared) == natively
    assert isinstance(prepared["lm_head"]["kernel"], BlockedKernel)
    layer = prepared["model"]["decoder"]["layers"]["0"]
    assert isinstance(layer["fc1"]["kernel"], BlockedKernel)
    assert isinstance(layer["encoder_attn"]["q_proj"]["kernel"], BlockedKernel)
    # What reads the prompt has many rows, which XLA multiplies as they are.
    assert isinstance(layer["encoder_attn"]["k_proj"]["kernel"], BlockedKernel) == natively
    config = GenerationConfig(num_beams=3, max_length=12, no_repeat_ngram_size=3)
    plain, fast = (generate(model, tree, PROMPTS, config=config) for tree in (params, prepared))
    np.testing.assert_array_equal(fast.sequences, plain.sequences)
    np.testing.assert_allclose(fast.scores, plain.scores, atol=1e-5)


@pytest.mark.parametrize("natively", FORMS)
def test_causal_models_and_ensembles_are_prepared_too(tiny_config, natively):
    causal = BlenderbotForCausalLM(tiny_config.replace(is_encoder_decoder=False))
    params = golden_params(causal, eos_bias=None)
    config = GenerationConfig(max_length=14)
    plain, fast = (
        generate(causal, tree, PROMPTS, config=config) for tree in (params, prepare(causal, params, natively=natively))
    )
    np.testing.assert_array_equal(fast.sequences, plain.sequences)
    model = BlenderbotForConditionalGeneration(tiny_config)
    both, trees = Ensemble((model, model)), (golden_params(model),) * 2
    members = prepare(both, trees, natively=natively)
    assert all(isinstance(tree["lm_head"]["kernel"], BlockedKernel) for tree in members)
    config = GenerationConfig(num_beams=2, max_length=10)
    plain, fast = (generate(both, each, PROMPTS, config=config) for each in (trees, members))
    np.testing.assert_array_equal(fast.sequences, plain.sequences)


def test_many_rows_and_short_types_keep_their_form_and_are_cast_once(tiny_config):
    model = BlenderbotForConditionalGeneration(tiny_config)
    params = golden_params(model)
    assert jax.tree.structure(prepare(model, params, rows=80, natively=False)) == jax.tree.structure(params)
    cast = prepare(model.clone(dtype=jnp.bfloat16), params, natively=False)
    layer = cast["model"]["decoder"]["layers"]["0"]
    assert layer["fc1"]["kernel"].dtype == cast["model"]["shared"]["embedding"].dtype == jnp.bfloat16
    assert layer["final_layer_norm"]["scale"].dtype == jnp.float32


@pytest.mark.parametrize("natively", FORMS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("quantise", [lambda tree: tree, quantize])
def test_donated_parameters_are_freed_one_by_one_and_the_result_is_the_same(
    tiny_config, monkeypatch, natively, dtype, quantise
):
    model = BlenderbotForConditionalGeneration(tiny_config, dtype=dtype)

    def fresh():
        return jax.tree.map(jnp.array, quantise(golden_params(model)))

    kept = fresh()
    wanted = prepare(model, kept, natively=natively)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(kept))

    held = []
    pack = preparation._native_form if natively else preparation._packed

    def packing(kernel):
        held.append(sum(not leaf.is_deleted() for leaf in jax.tree.leaves(given)))
        return pack(kernel)

    monkeypatch.setattr(preparation, pack.__name__, packing)
    given = fresh()
    found = prepare(model, given, natively=natively, donate=True)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    results = {id(leaf) for leaf in jax.tree.leaves(found)}
    for leaf in jax.tree.leaves(given):
        assert leaf.is_deleted() == (id(leaf) not in results)
    assert held == sorted(held, reverse=True)
    if len(held) > 1:
        assert held[-1] < held[0]


def test_an_array_in_two_places_is_not_freed(tiny_config):
    model = BlenderbotForConditionalGeneration(tiny_config, dtype=jnp.bfloat16)
    params = jax.tree.map(jnp.array, golden_params(model))
    first, second = params["model"]["decoder"]["layers"]["0"], params["model"]["decoder"]["layers"]["1"]
    second["fc1"] = first["fc1"]
    alone = first["fc2"]["kernel"]
    found = prepare(model, params, natively=False, donate=True)["model"]["decoder"]["layers"]
    np.testing.assert_array_equal(found["0"]["fc1"]["kernel"], found["1"]["fc1"]["kernel"])
    assert alone.is_deleted()
    assert not first["fc1"]["kernel"].is_deleted()


def test_what_two_members_share_is_not_freed_before_the_second_is_prepared(tiny_config):
    model = BlenderbotForConditionalGeneration(tiny_config)
    shared, alone = (jax.tree.map(jnp.array, golden_params(model)) for _ in range(2))
    found = prepare(Ensemble((model,) * 3), (shared, alone, shared), donate=True)
    jax.tree.map(np.testing.assert_array_equal, found[2], found[0])
    kernels = [tree["model"]["decoder"]["layers"]["0"]["fc1"]["kernel"] for tree in (shared, alone)]
    assert [kernel.is_deleted() for kernel in kernels] == [False, True]


def test_small_kernels_keep_their_form(tiny_config, monkeypatch):
    monkeypatch.setattr(preparation, "_LEAST_BYTES", 2**21)
    model = BlenderbotForConditionalGeneration(tiny_config)
    params = golden_params(model)
    assert jax.tree.structure(prepare(model, params, natively=False)) == jax.tree.structure(params)


@needs_native
@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}, {}])
def test_native_kernels_decode_what_xla_does(tiny_config, settings):
    model = BlenderbotForConditionalGeneration(tiny_config)
    params = golden_params(model, eos_bias=None)
    for quantise in (lambda tree: tree, quantize):
        trees = quantise(params), prepare(model, quantise(params))
        assert is_native(trees[1])
        config = GenerationConfig(max_length=14, no_repeat_ngram_size=2, **settings)
        ids, begin = np.array([[5, 9, 7, 2, 0], [8, 4, 2, 0, 0]]), np.array([[1, 30], [1, 40]])
        key = jax.random.key(0) if "do_sample" in settings else None
        plain, fast = (generate(model, tree, ids, config=config, key=key, decoder_input_ids=begin) for tree in trees)
        np.testing.assert_array_equal(fast.sequences, plain.sequences)
        np.testing.assert_allclose(fast.scores, plain.scores, atol=1e-4)


@needs_native
def test_models_and_caches_in_bfloat16_stay_close_to_float32(tiny_config):
    wide = BlenderbotForConditionalGeneration(tiny_config)
    params = golden_params(wide, eos_bias=None)
    config = GenerationConfig(max_length=4)
    exact = generate(wide, params, [[5, 9, 7, 2]], config=config)
    for model in (wide.clone(dtype=jnp.bfloat16), wide.clone(cache_dtype=jnp.bfloat16)):
        prepared = prepare(model, params)
        assert prepared["model"]["decoder"]["layers"]["0"]["fc1"]["kernel"].blocks.dtype == model.dtype
        fast = generate(model, prepared, [[5, 9, 7, 2]], config=config)
        np.testing.assert_allclose(fast.token_log_probs, exact.token_log_probs, rtol=0.05)


def test_what_cannot_run_natively_is_left_to_xla(tiny_config, monkeypatch):
    model = BlenderbotForConditionalGeneration(tiny_config)
    params = golden_params(model)
    assert not is_native(prepare(model.clone(dtype=jnp.float16), params))
    monkeypatch.setattr(native, "available", lambda: False)
    assert not is_native(prepare(model, params))
    with pytest.raises(RuntimeError, match=r"no native kernels here: they need x86-64 Linux.*natively=None"):
        prepare(model, params, natively=True)


def test_packing_can_be_traced():
    kernel = jnp.arange(12.0).reshape(3, 4)
    traced, eager = jax.jit(BlockedKernel.pack)(kernel), BlockedKernel.pack(kernel)
    np.testing.assert_array_equal(traced.blocks, eager.blocks)


def test_the_callers_parameters_stay_as_they_are(tiny_config):
    model = BlenderbotForConditionalGeneration(tiny_config)
    params = golden_params(model)
    before = jax.tree.map(lambda leaf: leaf, params)
    prepare(model, params)
    assert "lm_head" not in params
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, before, params))


def test_rows_below_one_are_refused(tiny_config):
    model = BlenderbotForConditionalGeneration(tiny_config)
    for rows in (0, True, 1.5):
        with pytest.raises(ValueError, match="at least 1, not"):
            prepare(model, {}, rows=rows)


def test_blocks_are_data_of_a_program():
    kernel = BlockedKernel.pack(jnp.ones((4, 70)))
    same = jax.jit(lambda tree: dataclasses.replace(tree, blocks=tree.blocks * 2))(kernel)
    assert same.features == 70
    assert float(same.blocks[0, 0, 0]) == 2
