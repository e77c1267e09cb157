"""Beam search without a model: a chain drawn by hand, and every sequence of a tiny vocabulary."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.generation import GenerationConfig, beam
from blenderbot_jax.generation.beam import beam_search, top_continuations
from blenderbot_jax.generation.plan import compile_config
from blenderbot_jax.generation.ranking import best_first
from blenderbot_jax.generation.sampling import Replies, decode_rows
from blenderbot_jax.generation.task import Task

START, END = 1, 2


def search(table: np.ndarray, B: int = 1, valid: Any = None, key: Any = None, **fields: Any) -> Replies:
    """Decode a Markov chain: row t of `table` [V, V] holds the probabilities of what follows token t."""
    V = len(table)
    model = BlenderbotConfig(
        vocab_size=V, d_model=8, encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=16
    )
    plan, settings = compile_config(GenerationConfig(**fields), model, 1)
    with np.errstate(divide="ignore"):
        logits = jnp.asarray(np.maximum(np.log(table), -1e30), jnp.float32)

    def step(tokens: jax.Array, history: jax.Array) -> tuple[jax.Array, jax.Array]:
        # The cache counts the tokens each beam has seen, so that a wrong reorder would show.
        return logits[tokens], history * 31 + tokens

    def reorder(history: jax.Array, parents: jax.Array) -> jax.Array:
        return jnp.take_along_axis(history, parents, axis=1)

    cache = jnp.zeros((B, plan.rows), jnp.int32)
    alive = jnp.ones(B, bool) if valid is None else jnp.asarray(valid)
    prompt = jnp.full((B, 1), START, jnp.int32)
    task = Task(prompt, jnp.zeros((B, 1), jnp.int32), alive, jax.tree.map(jnp.asarray, settings))
    if "beam" in plan.mode:
        return jax.jit(lambda cache: beam_search(step, reorder, cache, task, plan, key))(cache)
    return jax.jit(lambda cache: decode_rows(step, cache, task, plan, key))(cache)


#          0.6            0.5
#  start -------> 3 -----------> end          greedy: 3, then a coin toss            0.6 * 0.5 = 0.30
#     \\            \\  0.5
#      \\            `-----------> 3 ...
#       \\  0.4            0.9
#        `------> 4 -----------> end          the better path begins worse           0.4 * 0.9 = 0.36
CHAIN = np.zeros((5, 5))
CHAIN[START, 3], CHAIN[START, 4] = 0.6, 0.4
CHAIN[3, END], CHAIN[3, 3] = 0.5, 0.5
CHAIN[4, END], CHAIN[4, 3] = 0.9, 0.1
CHAIN[END, END] = CHAIN[0, 0] = 1.0


def reply(out: Replies, b: int = 0, k: int = 0) -> list[int]:
    return np.asarray(out.tokens)[b, k, : int(out.lengths[b, k])].tolist()


def test_greedy_takes_the_likeliest_step_and_beams_find_the_likelier_path():
    assert reply(search(CHAIN, max_length=8))[:2] == [START, 3]
    out = search(CHAIN, num_beams=2, max_length=8, length_penalty=0.0)
    assert reply(out) == [START, 4, END]
    np.testing.assert_allclose(out.scores[0, 0], np.log(0.4 * 0.9), rtol=1e-6)


def test_beams_come_best_first_with_their_token_log_probs():
    out = search(CHAIN, num_beams=2, max_length=8, length_penalty=0.0)
    assert [reply(out, 0, k) for k in (0, 1)] == [[START, 4, END], [START, 3, END]]
    np.testing.assert_allclose(out.log_probs.sum(-1), out.scores, rtol=1e-6)
    np.testing.assert_allclose(out.log_probs[0, 0, :3], [0, np.log(0.4), np.log(0.9)], rtol=1e-6)


def test_the_length_penalty_divides_by_generated_tokens():
    out = search(CHAIN, num_beams=2, max_length=8, length_penalty=2.0, early_stopping=True)
    np.testing.assert_allclose(out.scores[0, 0], np.log(0.4 * 0.9) / 2**2, rtol=1e-6)


def test_what_follows_the_end_is_pad():
    out = search(CHAIN, num_beams=2, max_length=8)
    for k in range(2):
        assert set(np.asarray(out.tokens)[0, k, int(out.lengths[0, k]) :].tolist()) == {0}


def test_rows_that_fill_a_batch_change_nothing():
    alone = search(CHAIN, num_beams=2, max_length=8)
    filled = search(CHAIN, B=3, valid=[True, False, False], num_beams=2, max_length=8)
    np.testing.assert_array_equal(filled.tokens[0], alone.tokens[0])
    np.testing.assert_array_equal(filled.scores[0], alone.scores[0])


@pytest.mark.parametrize(("seed", "penalty"), [(0, 0.0), (1, 0.65), (2, 1.5)])
def test_a_wide_beam_finds_the_best_of_all_sequences(seed: int, penalty: float):
    """With more beams than there are prefixes, nothing is pruned: the search must equal brute force."""
    V, longest = 5, 5
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.ones(V), size=V)
    settings = {"num_beams": 120, "max_length": longest, "length_penalty": penalty, "early_stopping": "never"}
    out = search(np.pad(table, ((0, 120 - V), (0, 120 - V))), **settings)
    found = {
        tuple(tokens): sum(np.log(table[a, b]) for a, b in itertools.pairwise(tokens)) / (len(tokens) - 1) ** penalty
        for tokens in all_replies(V, longest)
    }
    best = max(found, key=lambda tokens: found[tokens])
    assert reply(out) == list(best)
    np.testing.assert_allclose(out.scores[0, 0], found[best], rtol=1e-5)


def all_replies(V: int, longest: int):
    """Every sequence that starts, does not go on after its end, and is no longer than allowed."""
    for length in range(2, longest + 1):
        for body in itertools.product(range(V), repeat=length - 1):
            ended = body[-1] == END
            if END not in body[:-1] and (ended or length == longest):
                yield [START, *body]


@pytest.mark.parametrize("seed", range(3))
def test_two_stages_of_top_k_equal_one_over_everything_ties_included(seed: int):
    scores = np.random.default_rng(seed).integers(0, 4, (2, 3, 8)).astype(np.float32)
    best, beams, tokens = top_continuations(jnp.asarray(scores), 6)
    flat_best, flat = jax.lax.top_k(scores.reshape(2, -1), 6)
    np.testing.assert_array_equal(best, flat_best)
    np.testing.assert_array_equal(np.asarray(beams) * 8 + np.asarray(tokens), flat)


def test_more_continuations_than_tokens_are_refused():
    with pytest.raises(ValueError, match="needs 50 continuations"):
        top_continuations(jnp.zeros((1, 5, 8)), 50)


def test_beam_sampling_draws_without_replacement_from_the_softmax_of_all_beams():
    """Two tokens are drawn from one row; how often each pair comes is known, and the keys are fixed."""
    table = np.zeros((5, 5))
    table[START] = probabilities = np.array([0.0, 0.0, 0.15, 0.55, 0.3])
    table[[0, 2, 3, 4], END] = 1.0
    draws = 4000

    def draw(key: jax.Array) -> jax.Array:
        return search(table, key=key, num_beams=2, num_return_sequences=2, do_sample=True, max_length=2).tokens[0, :, 1]

    pairs = np.sort(np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(0), draws))), axis=1)
    for a, b in itertools.combinations((2, 3, 4), 2):
        p, q = probabilities[a], probabilities[b]
        expected = p * q / (1 - p) + q * p / (1 - q)
        found = (pairs == (a, b)).all(axis=1).mean()
        assert abs(found - expected) < 4 * (expected * (1 - expected) / draws) ** 0.5


def test_sampled_beams_are_returned_best_first():
    out = search(CHAIN, key=jax.random.key(3), num_beams=3, num_return_sequences=3, do_sample=True, max_length=6)
    assert (np.diff(np.asarray(out.scores)[0]) <= 0).all()


@pytest.mark.parametrize("penalty", [-12.0, 12.0])
def test_what_has_ended_comes_before_places_not_filled_whatever_the_penalty(penalty):
    out = search(CHAIN, num_beams=2, num_return_sequences=2, length_penalty=penalty, max_length=12)
    assert (np.asarray(out.lengths) > 1).all()
    assert np.isfinite(out.scores).all()


def test_a_penalty_that_leaves_the_numbers_of_float32_is_refused():
    with pytest.raises(ValueError, match=r"length_penalty=40.0: .* between 1e-30 and"):
        search(CHAIN, num_beams=2, length_penalty=40.0, max_length=12)


@pytest.mark.parametrize("seed", range(4))
def test_each_beams_own_best_and_its_end_are_all_that_a_step_needs(seed: int, monkeypatch: pytest.MonkeyPatch):
    """The continuations of each beam by themselves against the best of all in one list, ties and barred tokens too."""
    rng = np.random.default_rng(seed)
    V, K = 12, 4
    table = np.exp(rng.integers(-3, 1, (V, V)).astype(np.float64))
    table[rng.random((V, V)) < 0.4] = 0
    table[:, END] = rng.choice([0, 0.1, 1.0], V)
    settings = {"num_beams": K, "num_return_sequences": K, "max_length": 9, "no_repeat_ngram_size": 2, "B": 2}
    settings |= {"early_stopping": bool(seed % 2), "length_penalty": [0.0, 1.0, 2.0, -1.0][seed]}
    each = search(table, **settings)
    monkeypatch.setattr(beam, "_all_but_ends_run_on", lambda *args: False)
    listed = search(table, **settings)
    for one, other in zip(jax.tree.leaves(each), jax.tree.leaves(listed), strict=True):
        np.testing.assert_array_equal(one, other)


def test_entries_are_ordered_by_one_key_after_the_other_and_the_earlier_of_equals_first():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 3, (2, 2, 30)).astype(np.float32)
    first[0, :4] = -np.inf
    expected = [np.lexsort((np.arange(30), -b, -a))[:7] for a, b in zip(first, second, strict=True)]
    np.testing.assert_array_equal(best_first(jnp.asarray(first), jnp.asarray(second), count=7), expected)


def test_more_leaders_than_entries_are_refused():
    with pytest.raises(ValueError, match="a row of 3 entries has no first 4"):
        best_first(jnp.zeros((1, 3)), count=4)
