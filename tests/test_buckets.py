"""One compiled program per bucket and plan: neither another prompt nor another number compiles a new one."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
import pytest

from blenderbot_jax import BlenderbotConfig, BlenderbotForConditionalGeneration, GenerationConfig, generate

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


@contextmanager
def programs() -> Iterator[list[str]]:
    """The names of the programs that are compiled meanwhile."""
    seen: list[str] = []

    def listen(event: str, duration: float, **others: str) -> None:
        del duration
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(others["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def prompts(rng, rows, width):
    return rng.integers(4, VOCAB, (rows, width), dtype=np.int32)


def test_five_hundred_prompts_compile_one_program_per_bucket(tiny):
    rng = np.random.default_rng(0)
    config = GenerationConfig(max_length=5)
    with programs() as seen:
        for number in range(500):
            out = generate(*tiny, prompts(rng, 1, 1 + number % POSITIONS), config=config)
            assert out.sequences.shape == (1, 1, 5)
    assert seen.count("jit(decode)") == len({16, 32, POSITIONS})


def test_batches_compile_one_program_per_bucket(tiny):
    rng = np.random.default_rng(0)
    config = GenerationConfig(max_length=6)
    with programs() as seen:
        for rows in (3, 4, 3):
            assert generate(*tiny, prompts(rng, rows, 7), config=config).lengths.shape == (rows, 1)
    assert seen.count("jit(decode)") == 1


def test_twenty_temperatures_compile_one_program(tiny):
    rng = np.random.default_rng(0)
    config = GenerationConfig(do_sample=True, max_length=5)
    ids = prompts(rng, 1, 7)
    generate(*tiny, ids, config=config.replace(temperature=0.5), key=jax.random.key(0))
    with programs() as seen:
        for temperature in np.linspace(0.6, 2.0, 20).tolist():
            generate(*tiny, ids, config=config.replace(temperature=temperature), key=jax.random.key(0))
    assert seen == []
