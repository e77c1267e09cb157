"""One compiled program per bucket and plan: neither another prompt nor another number compiles a new one."""

import jax
import numpy as np
import pytest

from blenderbot_jax import (
    BlenderbotConfig,
    BlenderbotForCausalLM,
    BlenderbotForConditionalGeneration,
    GenerationConfig,
    generate,
)
from blenderbot_jax.generation.many import Packing, generate_many
from blenderbot_jax.generation.plan import compile_config
from tests.compiling import compiled_programs

VOCAB, POSITIONS = 32, 40


@pytest.fixture(scope="module")
def tiny():
    config = BlenderbotConfig(
        vocab_size=VOCAB,
        max_position_embeddings=POSITIONS,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
    )
    model = BlenderbotForConditionalGeneration(config)
    return model, model.init_params(jax.random.key(0))


def prompts(rng, rows, width):
    return rng.integers(4, VOCAB, (rows, width), dtype=np.int32)


def test_five_hundred_prompts_compile_one_program_per_bucket(tiny):
    rng = np.random.default_rng(0)
    config = GenerationConfig(max_length=5)
    with compiled_programs() as seen:
        for number in range(500):
            out = generate(*tiny, prompts(rng, 1, 1 + number % POSITIONS), config=config)
            assert out.sequences.shape == (1, 1, 5)
    assert seen.count("jit(decode)") == len({16, 32, POSITIONS})


def test_batches_compile_one_program_per_bucket(tiny):
    rng = np.random.default_rng(0)
    config = GenerationConfig(max_length=6)
    with compiled_programs() as seen:
        for rows in (3, 4, 3):
            assert generate(*tiny, prompts(rng, rows, 7), config=config).lengths.shape == (rows, 1)
    assert seen.count("jit(decode)") == 1


def test_chosen_widths_are_what_prompts_are_padded_to(tiny):
    rng = np.random.default_rng(0)
    ids = prompts(rng, 1, 20)
    config = GenerationConfig(max_length=11)
    with compiled_programs() as seen:
        for width in (17, 20, 24):
            generate(*tiny, prompts(rng, 1, width), config=config, widths=(16, 24))
    assert seen.count("jit(decode)") == 1
    found = [generate(*tiny, ids, config=config, **options).sequences for options in ({"widths": (16, 24)}, {})]
    np.testing.assert_array_equal(*found)


def test_twenty_temperatures_compile_one_program(tiny):
    rng = np.random.default_rng(0)
    config = GenerationConfig(do_sample=True, max_length=5)
    ids = prompts(rng, 1, 7)
    generate(*tiny, ids, config=config.replace(temperature=0.5), key=jax.random.key(0))
    with compiled_programs() as seen:
        for temperature in np.linspace(0.6, 2.0, 20).tolist():
            generate(*tiny, ids, config=config.replace(temperature=temperature), key=jax.random.key(0))
    assert seen == []


# Many prompts of different lengths


def mixed(rng, count):
    return [prompts(rng, 1, width)[0].tolist() for width in rng.integers(1, POSITIONS + 1, count)]


def gathered(model, params, asked, **options):
    """Replies in the order of the prompts: tokens [R, max_length] and scores [R] of each."""
    found = {}
    for places, replies in generate_many(model, params, asked, **options):
        found |= dict(zip(places, zip(replies.tokens, replies.scores, strict=True), strict=True))
    return [found[place] for place in range(len(asked))]


def test_many_prompts_compile_one_program_per_shape(tiny):
    rng = np.random.default_rng(0)
    config, packing = GenerationConfig(max_length=7), Packing(batch_size=8, widths=(24, POSITIONS))
    lists = [mixed(rng, 40) for _ in range(3)]
    plan, _ = compile_config(config, tiny[0].config, 1)
    batches = [batch for asked in lists for batch in packing.batches(dict(enumerate(asked)), tiny[0], plan)]
    with compiled_programs() as seen:
        for asked in lists:
            gathered(*tiny, asked, config=config, packing=packing)
    assert seen.count("jit(decode)") == len({(batch.rows, batch.width) for batch in batches}) == 2


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [{"encoder_no_repeat_ngram_size": 1}, {"encoder_repetition_penalty": 3.0, "num_beams": 3}],
    ids=["greedy", "beams"],
)
def test_many_prompts_get_the_replies_of_each_alone(tiny, changes):
    # Rules that look at the prompt's tokens one by one: a pad that counted would be barred, or gain.
    rng = np.random.default_rng(1)
    asked = [prompts(rng, 1, width)[0].tolist() for width in (3, 20, 1, 16, 9, 5, 30, 7)]
    config = GenerationConfig(max_length=9, **changes)
    together = gathered(*tiny, asked, config=config, packing=Packing(batch_size=8))
    for prompt, (tokens, scores) in zip(asked, together, strict=True):
        alone = generate(*tiny, np.array([prompt]), config=config)
        np.testing.assert_array_equal(tokens, alone.sequences[0])
        np.testing.assert_allclose(scores, alone.scores[0], rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("beams", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_what_is_drawn_depends_on_key_and_place_alone(tiny, beams):
    asked = [[5, 9, 2]] * 5 + mixed(np.random.default_rng(2), 1)
    options = {"config": GenerationConfig(do_sample=True, num_beams=beams, max_length=9), "key": jax.random.key(3)}
    narrow = Packing(batch_size=4, widths=(8, 24, POSITIONS))
    replies = [tokens for tokens, _ in gathered(*tiny, asked, **options)]
    np.testing.assert_array_equal(replies, [tokens for tokens, _ in gathered(*tiny, asked, packing=narrow, **options)])
    assert len({tokens.tobytes() for tokens in replies[:5]}) > 1
    # The same streams as those of a batch, and of a part of the list that keeps its places.
    np.testing.assert_array_equal(replies[:5], generate(*tiny, np.array(asked[:5]), **options).sequences)
    part = {3: asked[3], 1: asked[1]}
    [(places, found)] = generate_many(*tiny, part, packing=narrow, **options)
    np.testing.assert_array_equal(found.tokens, [replies[place] for place in places])
    assert set(places) == set(part)


def test_a_batch_is_as_large_as_its_memory(tiny):
    # 2 of keys and values x 1 layer x 8 wide x 4 bytes for each of 16 source places and 16 of the reply: 2 KiB a row.
    config = GenerationConfig(max_length=9)
    for memory, sizes in ((2**13, [4, 4]), (2**11, [1] * 8), (1, [1] * 8)):
        found = generate_many(*tiny, [[5, 2]] * 8, config=config, packing=Packing(memory=memory))
        assert [len(places) for places, _ in found] == sizes


def test_more_beams_make_smaller_batches_unless_a_size_is_said(tiny):
    plans = [compile_config(GenerationConfig(num_beams=beams), tiny[0].config, 1)[0] for beams in (1, 10, 100)]
    sizes = [Packing().most(plan) for plan in plans]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] >= 1
    assert [Packing(batch_size=6).most(plan) for plan in plans] == [6, 6, 6]


def test_wrong_prompts_among_many_are_refused_by_place(tiny):
    config = GenerationConfig(max_length=5)
    for wrong, message in (
        ([], r"prompts\[1\] must have shape"),
        ([VOCAB], rf"prompts\[1\]\[0, 0\] is {VOCAB}"),
        ([4] * (POSITIONS + 1), rf"prompts\[1\] has {POSITIONS + 1} tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            generate_many(*tiny, [[4, 2], wrong], config=config)
    with pytest.raises(ValueError, match="nothing is drawn"):
        generate_many(*tiny, [[4, 2]], config=config, key=jax.random.key(0))
    with pytest.raises(TypeError, match="a causal model has generate"):
        generate_many(BlenderbotForCausalLM(tiny[0].config), tiny[1], [[4]], config=config)
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        Packing(batch_size=0)
    with pytest.raises(ValueError, match="ascending numbers"):
        Packing(widths=(32, 16))
