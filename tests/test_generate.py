"""generate: one program per bucket, the same replies however a prompt is padded or batched, and early refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.generation import GenerationConfig, generate
from blenderbot_jax.model import BlenderbotForConditionalGeneration, Params
from tests.golden.fill import GOLDEN, golden_model, golden_params

SAMPLING = GenerationConfig(do_sample=True, temperature=0.8, top_k=30, top_p=0.9, max_length=12, num_return_sequences=3)
BEAMS = GenerationConfig(
    num_beams=4, max_length=12, length_penalty=0.65, no_repeat_ngram_size=3, num_return_sequences=2
)


@pytest.fixture(scope="module")
def model(tiny_config: BlenderbotConfig) -> BlenderbotForConditionalGeneration:
    return BlenderbotForConditionalGeneration(tiny_config.replace(init_std=0.4))


@pytest.fixture(scope="module")
def params(model: BlenderbotForConditionalGeneration) -> Params:
    return model.init_params(jax.random.key(0))


def prompts(*lengths: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ids = np.zeros((len(lengths), max(lengths)), np.int32)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = rng.integers(3, 90, length)
    return ids


@pytest.mark.parametrize("case", GOLDEN["generation"], ids=lambda case: f"{case['model']}-{case['settings']}")
def test_golden_replies_are_reproduced_without_torch(case):
    model = golden_model(case["model"])
    params = golden_params(model, eos_bias=case["eos_bias"])
    ids = np.array(GOLDEN["inputs"]["input_ids"])
    out = generate(model, params, ids, ids != 0, config=GenerationConfig(forced_eos_token_id=2, **case["settings"]))
    for b, rows in enumerate(case["rows"]):
        for r, row in enumerate(rows):
            assert np.asarray(out.sequences)[b, r, : int(out.lengths[b, r])].tolist() == row["tokens"]
            if row["score"] is not None:
                assert abs(float(out.scores[b, r]) - row["score"]) < 1e-4


def test_a_prompt_gets_the_same_reply_alone_and_in_a_padded_batch(model, params):
    ids = prompts(5, 9, 3)
    together = generate(model, params, ids, config=BEAMS)
    for b, length in enumerate((5, 9, 3)):
        alone = generate(model, params, ids[b : b + 1, :length], config=BEAMS)
        np.testing.assert_array_equal(alone.sequences[0], together.sequences[b])
        np.testing.assert_allclose(alone.scores[0], together.scores[b], atol=1e-5)


def test_a_cached_step_by_step_decode_equals_the_uncached_model(model, params):
    ids = prompts(6)
    out = generate(model, params, ids, config=GenerationConfig(max_length=15))
    uncached = jax.jit(lambda reply: model.apply({"params": params}, ids, None, reply).logits)
    tokens = [model.config.decoder_start_token_id]
    while len(tokens) < 15 and tokens[-1] != 2:
        # Attention is causal, so what stands behind the last token changes nothing.
        logits = uncached(np.array([tokens + [0] * (15 - len(tokens))]))
        tokens.append(int(logits[0, len(tokens) - 1].argmax()))
    assert np.asarray(out.sequences)[0, 0, : int(out.lengths[0, 0])].tolist() == tokens


@pytest.mark.parametrize("config", [GenerationConfig(max_length=9), BEAMS, SAMPLING], ids=["greedy", "beam", "sample"])
def test_token_log_probs_add_up_to_the_score(model, params, config):
    out = generate(model, params, prompts(5, 8), config=config, key=jax.random.key(0) if config.do_sample else None)
    generated = np.asarray(out.lengths) - 1
    penalty = config.length_penalty or 0.0
    np.testing.assert_allclose(out.token_log_probs.sum(-1) / generated**penalty, out.scores, rtol=1e-5)
    assert out.sequences.shape == (2, config.num_return_sequences or 1, config.max_length)
    assert (np.asarray(out.sequences)[..., 0] == 1).all()


def test_samples_depend_on_the_key_and_on_the_row_but_not_on_the_batch(model, params):
    ids = prompts(6, 6, 6)
    ids[1] = ids[0]
    first, again = (generate(model, params, ids, config=SAMPLING, key=jax.random.key(1)) for _ in range(2))
    np.testing.assert_array_equal(first.sequences, again.sequences)
    other = generate(model, params, ids, config=SAMPLING, key=jax.random.key(2))
    assert not np.array_equal(first.sequences, other.sequences)
    assert not np.array_equal(first.sequences[0], first.sequences[1])
    alone = generate(model, params, ids[:1], config=SAMPLING, key=jax.random.key(1))
    np.testing.assert_array_equal(alone.sequences[0], first.sequences[0])


def test_samples_follow_the_models_distribution(model, params):
    """2,000 first tokens against the model's own probabilities.

    The key is fixed, so the outcome is too; the bound of 0.08 on the total variation is four times what 2,000 draws
    over these few likely tokens miss by on average.
    """
    ids = prompts(5)
    config = GenerationConfig(do_sample=True, top_k=8, max_length=2, num_return_sequences=2000)
    out = generate(model, params, ids, config=config, key=jax.random.key(0))
    logits = np.asarray(model.apply({"params": params}, ids, None, np.array([[1]])).logits)[0, 0]
    kept = logits >= np.sort(logits)[-8]
    wanted = np.where(kept, np.exp(logits - logits.max()), 0)
    found = np.bincount(np.asarray(out.sequences)[0, :, 1], minlength=len(logits)) / 2000
    assert np.abs(found - wanted / wanted.sum()).sum() / 2 < 0.08


def test_both_cache_forms_give_the_same_replies(model, params, monkeypatch):
    ids = prompts(5, 9, 7, 4)
    with_table = generate(model, params, ids, config=BEAMS)

    class Gathering(BlenderbotForConditionalGeneration):
        def prefill(self, encoded, attention_mask=None, **settings):
            return super().prefill(encoded, attention_mask, **{**settings, "ancestry": False})

    gathered = generate(Gathering(model.config), params, ids, config=BEAMS)
    np.testing.assert_array_equal(gathered.sequences, with_table.sequences)
    np.testing.assert_allclose(gathered.scores, with_table.scores, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_decodes_to_finite_scores(model, params, dtype):
    out = generate(model.clone(dtype=dtype), params, prompts(5, 7), config=BEAMS)
    assert np.isfinite(out.scores).all()


def test_a_sampling_key_is_required_and_otherwise_refused(model, params):
    with pytest.raises(ValueError, match=r"pass key=jax\.random\.key"):
        generate(model, params, prompts(5), config=SAMPLING)
    with pytest.raises(ValueError, match="nothing is drawn"):
        generate(model, params, prompts(5), config=BEAMS, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[5, 96]], None, r"input_ids\[0, 1\] is 96, but ids go from 0 to 95"),
        ([[5, -1]], None, "is -1"),
        ([5, 6], None, r"shape \[batch, length\]"),
        (np.full((1, 25), 5), None, "25 tokens, but this model knows positions for 24"),
        ([[5, 6]], [[1]], "attention_mask must have the shape of input_ids"),
        (np.zeros((0, 4), int), None, "at least 1"),
    ],
)
def test_bad_prompts_are_refused(model, params, ids, mask, message):
    with pytest.raises(ValueError, match=message):
        generate(model, params, np.asarray(ids), mask if mask is None else np.asarray(mask), config=BEAMS)


def test_ids_that_are_not_integers_are_refused(model, params):
    with pytest.raises(TypeError, match="integers"):
        generate(model, params, np.ones((1, 3)), config=BEAMS)


def test_the_output_is_a_frozen_tree(model, params):
    out = generate(model, params, prompts(5), config=BEAMS)
    assert len(jax.tree.leaves(out)) == 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        out.scores = None
