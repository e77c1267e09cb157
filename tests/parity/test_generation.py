"""Random models, prompts and settings: the same replies as transformers, token for token."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from blenderbot_jax.config import BlenderbotConfig, BlenderbotSmallConfig
from blenderbot_jax.generation import GenerationConfig, generate
from tests.parity.generation import decode_in_transformers, mismatches
from tests.parity.reference import pair

SHAPES: list[dict[str, Any]] = [
    {"encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 4},
    {"encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 2},
    {"encoder_layers": 1, "decoder_layers": 3, "encoder_attention_heads": 1, "decoder_attention_heads": 8},
]
CASES, SLOW_CASES = 10, 96
BATCH = 24


def random_model(case: int) -> BlenderbotConfig:
    family = BlenderbotConfig if case % 2 else BlenderbotSmallConfig
    rng = np.random.default_rng(case)
    return family(
        **SHAPES[case % len(SHAPES)],
        vocab_size=int(rng.choice([48, 90, 160])),
        max_position_embeddings=40,
        d_model=16,
        encoder_ffn_dim=24,
        decoder_ffn_dim=32,
        scale_embedding=bool(rng.integers(2)),
        **({} if case % 2 else {"scale_decoder_embedding": False}),
    )


def random_settings(case: int, vocab_size: int) -> GenerationConfig:
    """Greedy or beams, with every rule in random company."""
    rng = np.random.default_rng(1000 + case)
    beams = int(rng.choice([1, 2, 3, 5, 10]))
    words = [rng.integers(3, vocab_size, rng.integers(1, 4)).tolist() for _ in range(4)]
    optional = {
        "min_length": int(rng.integers(2, 10)),
        "forced_eos_token_id": 2,
        "no_repeat_ngram_size": int(rng.integers(1, 4)),
        "encoder_no_repeat_ngram_size": int(rng.integers(1, 4)),
        "repetition_penalty": float(rng.choice([0.8, 1.2, 2.0])),
        "bad_words_ids": words,
    }
    chosen = {name: value for name, value in optional.items() if rng.random() < 0.5}
    if beams > 1:
        chosen |= {
            "num_beams": beams,
            "num_return_sequences": int(rng.integers(1, min(beams, 5) + 1)),
            "length_penalty": float(rng.choice([-1.0, 0.0, 0.65, 1.0, 2.0])),
            "early_stopping": [True, False, "never"][rng.integers(3)],
        }
    if "min_length" in chosen and rng.random() < 0.3:
        chosen["min_new_tokens"] = chosen.pop("min_length")
    limit = "max_length" if rng.random() < 0.7 or "forced_eos_token_id" in chosen else "max_new_tokens"
    return GenerationConfig(**chosen, **{limit: int(rng.integers(12, 30))})


def random_prompts(case: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of 3 to 14 tokens, padded on the right."""
    rng = np.random.default_rng(2000 + case)
    lengths = rng.integers(3, 15, BATCH)
    mask = np.arange(lengths.max()) < lengths[:, None]
    return np.where(mask, rng.integers(2, vocab_size, mask.shape), 0), mask.astype(np.int32)


@pytest.mark.parametrize(
    "case", [*range(CASES), *(pytest.param(case, marks=pytest.mark.slow) for case in range(CASES, SLOW_CASES))]
)
def test_replies_and_scores_equal_transformers(case: int):
    config = random_model(case)
    # Large weights make distributions peaked, small ones flat; </s> is made likely enough to come up early.
    reference, model, params = pair(config, seed=case, scale=[0.15, 0.3, 0.6][case % 3])
    params["final_logits_bias"] = params["final_logits_bias"].at[0, 2].add(2.0)
    reference.final_logits_bias[0, 2] += 2.0
    ids, mask = random_prompts(case, config.vocab_size)
    settings = random_settings(case, config.vocab_size)
    theirs = decode_in_transformers(reference, ids, mask, settings)
    ours = generate(model, params, ids, mask, config=settings)
    assert mismatches(reference, ids, mask, settings, ours, theirs) == []
    if theirs.scores is not None:
        np.testing.assert_allclose(np.asarray(ours.scores), theirs.scores, atol=1e-3, rtol=1e-4)


def test_the_random_cases_make_hundreds_of_sequences_and_the_slow_ones_thousands():
    drawn = [random_settings(case, random_model(case).vocab_size) for case in range(SLOW_CASES)]
    counts = [BATCH * (settings.num_return_sequences or 1) for settings in drawn]
    assert sum(counts[:CASES]) >= 500
    assert sum(counts) >= 5000


def test_several_end_tokens_equal_transformers():
    config = BlenderbotConfig(**SHAPES[0], vocab_size=60, d_model=16, encoder_ffn_dim=24, decoder_ffn_dim=24)
    reference, model, params = pair(config, seed=5)
    ids, mask = random_prompts(5, 60)
    settings = GenerationConfig(num_beams=4, max_length=16, eos_token_id=[2, 9, 11], forced_eos_token_id=9)
    theirs = decode_in_transformers(reference, ids, mask, settings)
    ours = generate(model, params, ids, mask, config=settings)
    for b in range(BATCH):
        length = int(ours.lengths[b, 0])
        assert np.asarray(ours.sequences)[b, 0, :length].tolist() == theirs.sequences[b, 0, :length].tolist()
    np.testing.assert_allclose(np.asarray(ours.scores), theirs.scores, atol=1e-3)
