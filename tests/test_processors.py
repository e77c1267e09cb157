"""Each rule on scores small enough to check by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.generation import GenerationConfig
from blenderbot_jax.generation.plan import compile_config
from blenderbot_jax.generation.processors import ORDER, Step, process

V = 10
MODEL = BlenderbotConfig(vocab_size=V, d_model=8, encoder_attention_heads=2, decoder_attention_heads=2)


def bent(scores: Any, reply: list[int], prompt: list[int] | None = None, **fields: Any) -> np.ndarray:
    """Scores [V] of one row after the rules of a configuration."""
    prompt = prompt or [2]
    plan, settings = compile_config(GenerationConfig(**fields), MODEL, len(prompt))
    tokens = jnp.zeros((1, 1, plan.capacity), jnp.int32).at[0, 0, : len(reply)].set(jnp.array(reply))
    # Fillers beyond the caller's own width must not count.
    source = jnp.array([[*prompt, 0, 0, 0, 0]], jnp.int32)
    step = Step(tokens, jnp.int32(len(reply)), source)
    return np.asarray(
        process(jnp.asarray(scores, jnp.float32)[None, None], step, jax.tree.map(jnp.asarray, settings), plan)
    )[0, 0]


def barred(reply: list[int], prompt: list[int] | None = None, **fields: Any) -> set[int]:
    """The tokens a configuration bars after a reply so far."""
    return set(np.flatnonzero(np.isneginf(bent(np.zeros(V), reply, prompt, **fields))).tolist())


def test_no_trigram_of_the_reply_comes_twice():
    assert barred([1, 4, 5, 6, 4, 5], no_repeat_ngram_size=3) == {6}
    assert barred([1, 4, 5, 6, 4], no_repeat_ngram_size=3) == set()


def test_the_start_token_is_part_of_the_reply_for_the_ngram_rule():
    assert barred([1, 4, 1], no_repeat_ngram_size=2) == {4}


def test_unigrams_bar_every_token_so_far():
    assert barred([1, 4, 4, 7], no_repeat_ngram_size=1) == {1, 4, 7}


def test_a_reply_shorter_than_the_ngram_bars_nothing():
    assert barred([1], no_repeat_ngram_size=3) == set()
    assert barred([1], [1, 1, 1, 2], encoder_no_repeat_ngram_size=3) == set()


def test_no_trigram_of_the_prompt_is_repeated():
    assert barred([1, 5, 6], [5, 6, 7, 5, 6, 8, 2], encoder_no_repeat_ngram_size=3) == {7, 8}


def test_the_callers_pads_count_in_the_prompt_and_the_buckets_do_not():
    assert barred([1, 8, 2], [8, 2, 0, 0], encoder_no_repeat_ngram_size=3) == {0}
    assert barred([1, 8, 2], [8, 2], encoder_no_repeat_ngram_size=3) == set()


def test_a_bad_word_is_barred_where_it_would_be_completed():
    words = [[7], [4, 5], [4, 5, 6]]
    assert barred([1, 4], bad_words_ids=words) == {7, 5}
    assert barred([1, 4, 5], bad_words_ids=words) == {7, 6}
    assert barred([1, 3], bad_words_ids=words) == {7}
    assert barred([1], bad_words_ids=[[1, 1, 9]]) == set()


def test_an_end_token_alone_is_never_a_bad_word():
    assert barred([1, 4], bad_words_ids=[[2], [7]]) == {7}


def test_the_end_waits_for_the_least_length():
    assert barred([1, 4, 4], min_length=4) == {2}
    assert barred([1, 4, 4, 4], min_length=4) == set()
    assert barred([1, 4, 4], min_new_tokens=2) == set()
    assert barred([1, 4], min_new_tokens=2, eos_token_id=[2, 9]) == {2, 9}


def test_the_last_place_is_forced_at_no_cost():
    assert barred([1, 4, 4], max_length=4, forced_eos_token_id=2) == set(range(V)) - {2}
    assert bent(np.full(V, -7.0), [1, 4, 4], max_length=4, forced_eos_token_id=2)[2] == 0
    assert barred([1, 4], max_length=4, forced_eos_token_id=2) == set()


def test_repetition_is_penalised_whatever_the_sign():
    scores = np.arange(V) - 5.0
    out = bent(scores, [1, 9, 9], repetition_penalty=2.0)
    expected = scores.copy()
    expected[1], expected[9] = -8.0, 2.0
    np.testing.assert_array_equal(out, expected)


def test_top_k_keeps_ties_with_the_kth():
    out = bent([0, 1, 3, 3, 3, 9, 0, 0, 0, 0], [1], do_sample=True, top_k=2)
    assert set(np.flatnonzero(np.isfinite(out))) == {2, 3, 4, 5}


def test_top_p_keeps_the_fewest_tokens_that_reach_p():
    probabilities = np.array([0.5, 0.25, 0.125, 0.0625, 0.0625, 0, 0, 0, 0, 0])
    with np.errstate(divide="ignore"):
        scores = np.log(probabilities)
    assert set(np.flatnonzero(np.isfinite(bent(scores, [1], do_sample=True, top_p=0.7)))) == {0, 1}
    assert set(np.flatnonzero(np.isfinite(bent(scores, [1], do_sample=True, top_p=0.0)))) == {0}


def test_temperature_divides():
    np.testing.assert_array_equal(bent(np.arange(V), [1], do_sample=True, temperature=2.0), np.arange(V) / 2)


def test_rules_run_in_the_order_of_transformers():
    assert list(ORDER) == [
        "repetition_penalty", "no_repeat_ngram", "encoder_no_repeat_ngram", "bad_words", "min_length", "forced_eos",
        "temperature", "top_k", "top_p",
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_a_batch_of_rows_is_each_row_alone(seed: int):
    rng = np.random.default_rng(seed)
    plan, settings = compile_config(
        GenerationConfig(
            num_beams=3,
            no_repeat_ngram_size=2,
            encoder_no_repeat_ngram_size=2,
            repetition_penalty=1.5,
            bad_words_ids=[[4, 5]],
        ),
        MODEL,
        6,
    )
    settings = jax.tree.map(jnp.asarray, settings)
    tokens = jnp.asarray(rng.integers(1, V, (4, 3, plan.capacity)), jnp.int32)
    source = jnp.asarray(rng.integers(1, V, (4, 6)), jnp.int32)
    scores = jnp.asarray(rng.normal(size=(4, 3, V)), jnp.float32)
    together = process(scores, Step(tokens, jnp.int32(9), source), settings, plan)
    for b in range(4):
        for k in range(3):
            one = Step(tokens[b : b + 1, k : k + 1], jnp.int32(9), source[b : b + 1])
            np.testing.assert_array_equal(
                process(scores[b : b + 1, k : k + 1], one, settings, plan)[0, 0], together[b, k]
            )
