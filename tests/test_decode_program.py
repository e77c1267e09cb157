"""The compiled decoding program: what it holds, and that the segments of its cache change nothing."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.generation import GenerationConfig, generate, plan
from blenderbot_jax.generation.decode import decode
from blenderbot_jax.generation.request import request
from blenderbot_jax.model import BlenderbotForConditionalGeneration
from blenderbot_jax.preparation import prepare
from tests.golden.fill import golden_params
from tests.natively import needs_native


def loop_bodies(program: str) -> list[str]:
    """The computations that a compiled program repeats."""
    names = set(re.findall(r"body=%?([\w.-]+)", program))
    found = [part for part in re.split(r"\n(?=%|ENTRY)", program) if re.match(r"%?([\w.-]+)", part)[1] in names]
    assert found
    return found


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("natively", [False, pytest.param(True, marks=needs_native)])
@pytest.mark.parametrize("beams", [1, 4])
def test_the_loop_holds_one_cache_and_copies_none(beams, natively):
    B, C, D, L = 16, 128, 64, 2
    config = BlenderbotConfig(
        vocab_size=96, max_position_embeddings=C, encoder_layers=1, decoder_layers=L, d_model=D, encoder_ffn_dim=32,
        decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2,
    )  # fmt: skip
    model = BlenderbotForConditionalGeneration(config)
    params = jax.eval_shape(model.init_params, jax.random.key(0))
    params = jax.eval_shape(lambda tree: prepare(model, tree, natively=True), params) if natively else params
    ids = np.full((B, 8), 9, np.int32)
    batch = request(config, GenerationConfig(num_beams=beams, max_length=C), {"input_ids": ids})
    assert batch.plan.segments == (32, C)
    compiled = decode.lower(model, batch.plan, params, batch.inputs, batch.task, None).compile()
    cache = 2 * L * B * beams * C * D * 4
    # Native products have room of their own to arrange rows in, here about what the prompts' keys and values take.
    room = 2 * L * batch.inputs.source_ids.size * D * 4 if natively else 0
    assert compiled.memory_analysis().temp_size_in_bytes < 1.25 * cache + room
    # A segment of a layer's keys or values is the least that a copy of a cache would copy.
    least = B * beams * 32 * D
    for body in loop_bodies(compiled.as_text()):
        copied = re.findall(r"f32\[([\d,]+)\]\S* copy\(", body)
        assert all(np.prod([int(size) for size in shape.split(",")]) < least for shape in copied)


@pytest.mark.long
@pytest.mark.parametrize(
    "settings",
    [{"num_beams": 3}, {"num_beams": 1}, {"do_sample": True, "num_return_sequences": 2}],
    ids=["beam", "greedy", "sample"],
)
def test_replies_are_the_same_however_the_cache_grows(tiny_config, monkeypatch, settings):
    model = BlenderbotForConditionalGeneration(tiny_config)
    params = golden_params(model, eos_bias=None)
    config = GenerationConfig(max_length=20, min_length=14, **settings)
    ids = np.random.default_rng(0).integers(3, 96, (3, 7))
    key = jax.random.key(0) if "do_sample" in settings else None
    whole = generate(model, params, ids, config=config, key=key)
    monkeypatch.setattr(plan, "_FIRST_SEGMENT", 8)
    grown = generate(model, params, ids, config=config, key=key)
    np.testing.assert_array_equal(grown.sequences, whole.sequences)
    np.testing.assert_allclose(grown.scores, whole.scores, atol=1e-5)


def test_a_prompt_wider_than_the_first_segment_is_read_whole(tiny_config, monkeypatch):
    model = BlenderbotForConditionalGeneration(tiny_config)
    params = golden_params(model, eos_bias=None)
    config = GenerationConfig(max_length=20, num_beams=2)
    ids, begin = np.full((1, 5), 9), np.arange(1, 13)[None]
    whole = generate(model, params, ids, config=config, decoder_input_ids=begin)
    monkeypatch.setattr(plan, "_FIRST_SEGMENT", 8)
    grown = generate(model, params, ids, config=config, decoder_input_ids=begin)
    np.testing.assert_array_equal(grown.sequences, whole.sequences)


@pytest.mark.long
@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_beams": 1}], ids=["beam", "greedy"])
def test_a_cache_in_bfloat16_takes_half_and_keeps_scores_to_its_precision(tiny_config, settings):
    wide = BlenderbotForConditionalGeneration(tiny_config)
    half = wide.clone(cache_dtype=jnp.bfloat16)
    params = golden_params(wide, eos_bias=None)
    ids = np.random.default_rng(0).integers(3, 96, (3, 7))
    config = GenerationConfig(max_length=12, min_length=12, **settings)
    one, other = (generate(model, params, ids, config=config) for model in (wide, half))
    np.testing.assert_allclose(one.scores, other.scores, rtol=0.005)
    assert not np.array_equal(one.scores, other.scores)
    encoded = half.apply({"params": params}, ids, method="encode")
    assert encoded.dtype == jnp.float32
    caches = [model.apply({"params": params}, encoded, capacity=12, method="prefill") for model in (wide, half)]
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(cache) if leaf.ndim == 4) for cache in caches]
    assert sizes[1] * 2 == sizes[0]
