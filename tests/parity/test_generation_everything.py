"""Every rule in random company, drawn or searched, from the start or from a prompt: the replies of transformers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from blenderbot_jax.generation import GenerationConfig, generate
from tests.parity.generation import decode_in_transformers, mismatches, shared_noise
from tests.parity.reference import pair
from tests.parity.test_generation import random_model, random_prompts

CASES, SLOW_CASES = 8, 120
BATCH = 24
MODES = ("greedy", "beam", "sample", "beam_sample")


def random_settings(case: int, vocab_size: int) -> GenerationConfig:
    """One of the four modes, each rule with probability 0.3."""
    rng = np.random.default_rng(5000 + case)
    mode = MODES[case % 4]

    def ids(low: int, high: int) -> list[int]:
        return rng.choice(np.arange(3, vocab_size), rng.integers(low, high), replace=False).tolist()

    optional: dict[str, Any] = {
        "sequence_bias": [[ids(1, 3), float(rng.normal() * 4)] for _ in range(3)],
        "encoder_repetition_penalty": float(rng.choice([0.7, 1.3])),
        "repetition_penalty": float(rng.choice([0.8, 1.2])),
        "no_repeat_ngram_size": int(rng.integers(1, 4)),
        "encoder_no_repeat_ngram_size": int(rng.integers(2, 4)),
        "bad_words_ids": [ids(1, 3) for _ in range(3)],
        "min_length": int(rng.integers(2, 12)),
        "min_new_tokens": int(rng.integers(1, 8)),
        "forced_bos_token_id": int(rng.integers(3, vocab_size)),
        "forced_eos_token_id": 2,
        "exponential_decay_length_penalty": (int(rng.integers(1, 6)), float(rng.choice([1.05, 1.4]))),
        "suppress_tokens": ids(1, 5),
        "begin_suppress_tokens": ids(1, 5),
        "renormalize_logits": True,
    }
    cutoffs: dict[str, Any] = {
        "temperature": float(rng.choice([0.6, 1.4])),
        "top_k": int(rng.integers(12, 30)),
        "top_h": float(rng.choice([0.5, 0.9])),
        "top_p": float(rng.choice([0.7, 0.95])),
        "min_p": float(rng.choice([0.02, 0.2])),
        "typical_p": float(rng.choice([0.6, 0.95])),
        "epsilon_cutoff": float(rng.choice([1e-3, 2e-2])),
        "eta_cutoff": float(rng.choice([1e-3, 2e-2])),
    }
    if mode == "sample":
        optional |= cutoffs
    elif mode == "beam_sample":
        # The others can leave too few continuations, where torch.multinomial gives up.
        optional |= {name: cutoffs[name] for name in ("temperature", "top_k")}
        # Where one token alone may follow, torch.multinomial has too few to draw from.
        del optional["forced_bos_token_id"], optional["forced_eos_token_id"]
    chosen = {name: value for name, value in optional.items() if rng.random() < 0.3}
    if "suppress_tokens" in chosen and "forced_bos_token_id" in chosen:
        del chosen["suppress_tokens"]  # they may bar the forced token, which is refused here
    if "sample" in mode:
        chosen.setdefault("top_k", 0)  # None means 50 there
    if "beam" in mode:
        beams = int(rng.choice([2, 3, 4]))
        chosen |= {
            "num_beams": beams,
            "length_penalty": float(rng.choice([0.0, 0.65, 1.0])),
            "early_stopping": [True, False, "never"][rng.integers(3)],
        }
    if mode != "greedy":
        most = chosen.get("num_beams", 3)
        chosen |= {"num_return_sequences": int(rng.integers(1, most + 1)), "do_sample": "sample" in mode}
    limit = "max_length" if rng.random() < 0.7 or "forced_eos_token_id" in chosen else "max_new_tokens"
    return GenerationConfig(**chosen, **{limit: int(rng.integers(14, 28))})


def random_replies_begun(case: int, vocab_size: int) -> np.ndarray | None:
    """In every third case, what replies begin with, after the start token."""
    rng = np.random.default_rng(7000 + case)
    return rng.integers(3, vocab_size, (BATCH, rng.integers(1, 9))) if case % 3 == 2 else None


@pytest.mark.parametrize(
    "case", [*range(CASES), *(pytest.param(case, marks=pytest.mark.slow) for case in range(CASES, SLOW_CASES))]
)
def test_replies_equal_transformers_under_all_rules(case: int):
    config = random_model(case)
    reference, model, params = pair(config, seed=case, scale=[0.15, 0.3, 0.6][case % 3])
    params["final_logits_bias"] = params["final_logits_bias"].at[0, 2].add(2.0)
    reference.final_logits_bias[0, 2] += 2.0
    ids, mask = random_prompts(case, config.vocab_size)
    begun, settings = random_replies_begun(case, config.vocab_size), random_settings(case, config.vocab_size)
    prompt_length = 1 if begun is None else 1 + begun.shape[1]
    key = jax.random.key(case) if settings.do_sample else None
    with shared_noise(jax.random.key(case), BATCH, settings, prompt_length):
        theirs = decode_in_transformers(reference, ids, mask, settings, decoder_input_ids=begun)
    ours = generate(model, params, ids, mask, config=settings, key=key, decoder_input_ids=begun)
    assert mismatches(reference, ids, mask, settings, ours, theirs, prompt_length, key) == []
    if theirs.scores is not None:
        np.testing.assert_allclose(np.asarray(ours.scores), theirs.scores, atol=1e-3, rtol=1e-4)


def test_all_cases_together_make_three_thousand_sequences_and_use_every_rule():
    drawn = [random_settings(case, random_model(case).vocab_size) for case in range(SLOW_CASES)]
    assert BATCH * sum(settings.num_return_sequences or 1 for settings in drawn) >= 3000
    used = {name for settings in drawn for name in settings.to_dict()}
    assert used >= {"top_h", "typical_p", "eta_cutoff", "sequence_bias", "forced_bos_token_id", "renormalize_logits"}


@pytest.mark.parametrize("beams", [1, 3])
def test_what_is_passed_beside_the_settings_equals_transformers(beams):
    """Allowed tokens, a processor of one's own and a stop sequence, all three at once."""
    import transformers

    config = random_model(1)
    reference, model, params = pair(config, seed=3, scale=0.6)
    ids, mask = random_prompts(1, config.vocab_size)
    settings = GenerationConfig(num_beams=beams, max_length=16, num_return_sequences=beams)

    def hold_back(scores: Any, tokens: Any, xp: Any) -> Any:
        """Every third token after each one loses 2.5."""
        return xp.where((xp.arange(config.vocab_size) + tokens[..., -1:]) % 3 != 0, scores, scores - 2.5)

    def own(scores: jax.Array, step: Any) -> jax.Array:
        return hold_back(scores, jnp.take(step.tokens, step.length[None] - 1, axis=2), jnp)

    def allowed(step: Any) -> jax.Array:
        tokens = jnp.arange(config.vocab_size)
        return (tokens == 2) | (tokens >= jnp.where(step.length % 2 == 1, 4, 8))

    passed: dict[str, Any] = {"config": settings, "processors": (own,), "prefix_allowed_tokens_fn": allowed}
    first = np.asarray(generate(model, params, ids, mask, **passed).sequences)[0, 0]
    stop = tuple(first[5:7].tolist())

    class HoldsBack(transformers.LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            return hold_back(scores, input_ids, torch)

    class Stops(transformers.StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **others: Any) -> Any:
            del scores, others
            return (input_ids[:, -1] == stop[1]) & (input_ids[:, -2] == stop[0])

    theirs = decode_in_transformers(
        reference,
        ids,
        mask,
        settings,
        prefix_allowed_tokens_fn=lambda _, tokens: [2, *range(4 if len(tokens) % 2 else 8, config.vocab_size)],
        logits_processor=transformers.LogitsProcessorList([HoldsBack()]),
        stopping_criteria=transformers.StoppingCriteriaList([Stops()]),
    )
    ours = generate(model, params, ids, mask, **passed, stop_sequences=(stop,))
    sequences, lengths = np.asarray(ours.sequences), np.asarray(ours.lengths)
    stopped = 0
    for b, r in np.ndindex(*lengths.shape):
        mine = sequences[b, r, : lengths[b, r]].tolist()
        assert theirs.sequences[b, r, : len(mine)].tolist() == mine
        assert set(theirs.sequences[b, r, len(mine) :].tolist()) <= {0, 2}
        stopped += tuple(mine[-2:]) == stop
    assert 0 < stopped < lengths.size
