"""warm_up: after it, generate compiles nothing; before it, it does."""

from functools import partial

import jax
import numpy as np
import pytest

from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.generation import GenerationConfig, generate, generate_many
from blenderbot_jax.model import BlenderbotForCausalLM, BlenderbotForConditionalGeneration, Params
from blenderbot_jax.warm import warm_up
from tests.compiling import compiled_programs

GREEDY = GenerationConfig(max_length=9)


@pytest.fixture(scope="module")
def model(tiny_config: BlenderbotConfig) -> BlenderbotForConditionalGeneration:
    # A model of its own, so that nothing the other tests compiled serves it.
    return BlenderbotForConditionalGeneration(tiny_config.replace(d_model=16, decoder_layers=1, init_std=0.3))


@pytest.fixture(scope="module")
def params(model: BlenderbotForConditionalGeneration) -> Params:
    return zeros(model)


def zeros(model: BlenderbotForConditionalGeneration | BlenderbotForCausalLM) -> Params:
    """Parameters whose making compiles nothing."""
    shapes = jax.eval_shape(model.init_params, jax.random.key(0))
    return jax.tree.map(lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype)), shapes)


compilations = partial(compiled_programs, "decode")


def prompts(rows: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(3, 90, (rows, width)).astype(np.int32)


def test_after_warming_up_nothing_compiles_in_those_buckets(model, params):
    seen = []
    with compilations() as warming:
        done = warm_up(
            model,
            params,
            GREEDY,
            batch_sizes=(1, 2),
            source_widths=(5, 16),
            on_progress=lambda *counts: seen.append(counts),
        )
    assert done == ((1, 16), (2, 16))
    assert seen == [(0, 2), (1, 2), (2, 2)]
    assert len(warming) == 2
    with compilations() as compiled:
        for rows, width in ((1, 3), (2, 16), (1, 12)):
            generate(model, params, prompts(rows, width), config=GREEDY.replace(max_length=7))
    assert compiled == []


def test_without_warming_up_generate_compiles(model, params):
    with compilations() as compiled:
        generate(model, params, prompts(1, 6), config=GREEDY.replace(no_repeat_ngram_size=2))
    assert compiled


def test_sampling_rules_and_stop_sequences_are_part_of_what_is_warmed(model, params):
    def louder(scores, step):
        del step
        return scores * 2

    config = GenerationConfig(do_sample=True, temperature=0.7, max_length=9)
    options = {"processors": (louder,), "stop_sequences": [[5, 6]]}
    key = jax.random.key(3)
    warm_up(model, params, config, source_widths=(16,), **options)
    with compilations() as compiled:
        generate(model, params, prompts(1, 16), config=config, key=key, **options)
    assert compiled == []


@pytest.mark.parametrize("settings", [{}, {"do_sample": True}], ids=["greedy", "sample"])
def test_lists_of_prompts_run_the_programs_of_batches(model, params, settings):
    config = GenerationConfig(max_length=10, no_repeat_ngram_size=4, **settings)
    key = jax.random.key(3) if settings else None
    warm_up(model, params, config, batch_sizes=(2,), source_widths=(16,))
    with compilations() as compiled:
        found = dict(generate_many(model, params, [[5, 6, 7], [8, 9]], config=config, key=key))
        generate(model, params, prompts(2, 5), config=config, key=key)
    assert list(found) == [(0, 1)]
    assert compiled == []


def test_every_width_is_warmed_unless_said_otherwise(model, params, monkeypatch):
    asked = []

    class Program:
        def compile(self) -> None:
            """Nothing is compiled here."""

    def lower(model, plan, params, inputs, task, key, draft):
        asked.append(inputs.shape)
        return Program()

    monkeypatch.setattr("blenderbot_jax.warm.decode", type("Decode", (), {"lower": staticmethod(lower)}))
    assert warm_up(model, params, GREEDY) == ((1, 16), (1, 24))
    assert asked == [(1, 16, 1), (1, 24, 1)]
    assert warm_up(model, params, GREEDY, batch_sizes=(3, 4), source_widths=(20,)) == ((4, 24),)


def test_a_causal_model_is_warmed_for_the_widths_of_its_prompts(tiny_config):
    model = BlenderbotForCausalLM(tiny_config.replace(d_model=16, decoder_layers=1, is_encoder_decoder=False))
    params = zeros(model)
    with pytest.raises(ValueError, match="pass source_widths"):
        warm_up(model, params, GREEDY)
    assert warm_up(model, params, GREEDY, source_widths=(3,)) == ((1, 8),)
    with compilations() as compiled:
        generate(model, params, prompts(1, 7), config=GREEDY)
    assert compiled == []


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"batch_sizes": (0,)}, "batch_sizes are integers of at least 1"),
        ({"source_widths": (True,)}, "source_widths are integers of at least 1"),
        ({"source_widths": (2.5,)}, "source_widths are integers of at least 1"),
        ({"source_widths": (25,)}, "at most the model's positions, 24: leave 25 out"),
    ],
)
def test_sizes_no_program_has_are_refused(model, params, sizes, says):
    with pytest.raises(ValueError, match=says):
        warm_up(model, params, GREEDY, **sizes)
