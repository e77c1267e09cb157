"""Decoding and scoring under JAX's transformations, and lowered for a TPU."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from blenderbot_jax.generation import GenerationConfig, generate
from blenderbot_jax.model import BlenderbotForConditionalGeneration
from blenderbot_jax.scoring import token_log_probs

BEAMS = GenerationConfig(num_beams=3, max_length=9, no_repeat_ngram_size=2, encoder_no_repeat_ngram_size=3)
SAMPLES = GenerationConfig(do_sample=True, top_p=0.9, max_length=9, num_return_sequences=2)
PROMPTS = np.random.default_rng(0).integers(3, 96, (8, 5)).astype(np.int32)


@pytest.fixture(scope="module")
def tiny(tiny_config):
    model = BlenderbotForConditionalGeneration(tiny_config.replace(decoder_layers=1))
    return model, jax.tree.map(lambda leaf: leaf * 6, model.init_params(jax.random.key(0)))


@pytest.fixture(scope="module")
def replies(tiny):
    return generate(*tiny, PROMPTS, config=BEAMS)


def same(ours, expected):
    np.testing.assert_array_equal(np.asarray(ours.sequences).reshape(expected.sequences.shape), expected.sequences)
    np.testing.assert_allclose(np.asarray(ours.scores).reshape(expected.scores.shape), expected.scores, atol=1e-5)


def test_generate_under_jit_gives_the_same_replies(tiny, replies):
    model, params = tiny
    same(jax.jit(partial(generate, model, config=BEAMS))(params, PROMPTS), replies)


def test_generate_under_vmap_over_prompts_gives_the_same_replies(tiny, replies):
    model, params = tiny
    same(jax.vmap(lambda ids: generate(model, params, ids, config=BEAMS))(PROMPTS[:, None]), replies)


def test_an_ensemble_of_parameter_sets_is_decoded_at_once_by_vmap(tiny, replies):
    model, params = tiny
    other = jax.tree.map(lambda leaf: leaf[::-1], params)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), params, other)
    both = jax.vmap(lambda tree: generate(model, tree, PROMPTS, config=BEAMS))(stacked)
    same(jax.tree.map(lambda leaf: leaf[0], both), replies)
    same(jax.tree.map(lambda leaf: leaf[1], both), generate(model, other, PROMPTS, config=BEAMS))


def test_generate_under_pmap_gives_each_device_its_prompts(tiny, replies):
    model, params = tiny
    each = jax.pmap(lambda ids: generate(model, params, ids, config=BEAMS))
    same(each(PROMPTS.reshape(4, 2, 5)), replies)


def test_generate_under_shard_map_gives_each_device_its_prompts(tiny, replies):
    model, params = tiny
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = partial(
        jax.shard_map, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"), check_vma=False
    )
    same(jax.jit(split(lambda ids: generate(model, params, ids, config=BEAMS)))(PROMPTS), replies)


def test_generate_over_a_sharded_batch_gives_the_same_replies(tiny, replies):
    model, params = tiny
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    ids = jax.device_put(PROMPTS, NamedSharding(mesh, PartitionSpec("data")))
    out = jax.jit(partial(generate, model, config=BEAMS))(
        jax.device_put(params, NamedSharding(mesh, PartitionSpec())), ids
    )
    assert len(out.sequences.sharding.device_set) == 4
    same(out, replies)


def test_samples_of_vmapped_keys_are_those_of_each_key(tiny):
    model, params = tiny
    keys = jax.random.split(jax.random.key(1), 2)
    both = jax.vmap(lambda key: generate(model, params, PROMPTS[:2], config=SAMPLES, key=key).sequences)(keys)
    for row, key in zip(both, keys, strict=True):
        np.testing.assert_array_equal(row, generate(model, params, PROMPTS[:2], config=SAMPLES, key=key).sequences)


@pytest.mark.long
def test_scores_of_generated_replies_can_be_differentiated(tiny):
    model, params = tiny

    def surprise(params):
        drawn = generate(model, jax.lax.stop_gradient(params), PROMPTS[:2], config=SAMPLES, key=jax.random.key(0))
        places = jnp.arange(SAMPLES.max_length)
        labels = jnp.where((places > 0) & (places < drawn.lengths[:, :1]), drawn.sequences[:, 0], -100)[:, 1:]
        return -token_log_probs(model, params, PROMPTS[:2], None, labels).sum(), labels

    (_, labels), gradients = jax.jit(jax.value_and_grad(surprise, has_aux=True))(params)
    expected = jax.grad(lambda params: -token_log_probs(model, params, PROMPTS[:2], None, labels).sum())(params)
    for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    assert float(jnp.abs(gradients["model"]["shared"]["embedding"]).max()) > 0


@pytest.mark.parametrize("transform", ["vmap", "pmap", "shard_map"])
def test_token_log_probs_under_a_transformation_are_the_same(tiny, transform):
    model, params = tiny
    labels = np.random.default_rng(1).integers(3, 96, (8, 6))
    expected = token_log_probs(model, params, PROMPTS, None, labels)

    def score(ids, labels):
        return token_log_probs(model, params, ids, None, labels)

    if transform == "shard_map":
        mesh, spec = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)), PartitionSpec("data")
        ours = jax.jit(jax.shard_map(score, mesh=mesh, in_specs=spec, out_specs=spec))(PROMPTS, labels)
    else:
        ours = getattr(jax, transform)(score)(PROMPTS.reshape(4, 2, 5), labels.reshape(4, 2, 6))
    np.testing.assert_allclose(np.asarray(ours).reshape(expected.shape), expected, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        GenerationConfig.recipe(max_length=20, min_length=3),
        GenerationConfig(
            do_sample=True, temperature=0.8, top_k=20, top_p=0.9, min_p=0.05, typical_p=0.9, max_length=20
        ),
        GenerationConfig(num_beams=3, do_sample=True, repetition_penalty=1.2, max_length=20, output_scores=True),
    ],
    ids=["recipe", "sampling", "beam sampling"],
)
def test_the_decode_program_lowers_for_a_tpu(tiny, config):
    model, params = tiny
    key = jax.random.key(0) if config.do_sample else None

    def decode(params, ids, mask, key):
        return generate(model, params, ids, mask, config=config, key=key)

    exported = jax.export.export(jax.jit(decode), platforms=["tpu"])(params, PROMPTS, PROMPTS != 0, key)
    assert exported.platforms == ("tpu",)
    assert "stablehlo.while" in exported.mlir_module()
