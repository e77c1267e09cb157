"""Each rule on scores small enough to check by hand, their order, and the programs they make."""

import dataclasses
import doctest
import importlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.generation import GenerationConfig
from blenderbot_jax.generation.plan import Plan, Settings, compile_config
from blenderbot_jax.generation.processors import ORDER, Step, ends_with, process
from tests.compiling import compiled_programs

V = 10
MODEL = BlenderbotConfig(vocab_size=V, d_model=8, encoder_attention_heads=2, decoder_attention_heads=2)
# Every rule at once.
EVERYTHING: dict[str, Any] = {
    "sequence_bias": [[[7], 2.5], [[3, 8], -1.5]], "encoder_repetition_penalty": 1.2, "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 2, "encoder_no_repeat_ngram_size": 3, "bad_words_ids": [[9], [4, 5]], "min_length": 5,
    "forced_bos_token_id": 6, "forced_eos_token_id": 2, "remove_invalid_values": True, "do_sample": True,
    "exponential_decay_length_penalty": (1, 1.2), "suppress_tokens": [3], "begin_suppress_tokens": [5, 8],
    "temperature": 1.4, "top_h": 0.95, "top_k": 9, "top_p": 0.95, "min_p": 0.01, "typical_p": 0.95,
    "epsilon_cutoff": 0.001, "eta_cutoff": 0.002, "renormalize_logits": True,
}  # fmt: skip

_process = jax.jit(process, static_argnums=3)


def bent(
    scores: Any,
    reply: list[int],
    prompt: list[int] | None = None,
    *,
    begin: int = 1,
    constraint: Any = None,
    custom: Any = (),
    **fields: Any,
) -> np.ndarray:
    """Scores [V] of one row after a configuration's rules; the decoder was given the first `begin` of the reply."""
    prompt = prompt or [2]
    plan, numbers = compile_config(GenerationConfig(**fields), MODEL, len(prompt), begin)
    tokens = np.zeros((1, 1, plan.capacity), np.int32)
    tokens[0, 0, : len(reply)] = reply
    # Fillers beyond the caller's own width must not count.
    step = Step(tokens, jnp.int32(len(reply)), np.array([[*prompt, 0, 0, 0, 0]], np.int32), numbers.prompt_length)
    return np.asarray(
        _process(np.asarray(scores, np.float32)[None, None], step, numbers, plan, constraint, custom)[0, 0]
    )


def barred(reply: list[int], prompt: list[int] | None = None, **fields: Any) -> set[int]:
    """The tokens a configuration bars after a reply so far."""
    return set(np.flatnonzero(np.isneginf(bent(np.zeros(V), reply, prompt, **fields))).tolist())


def test_rules_run_in_the_order_of_transformers():
    assert list(ORDER) == [
        "sequence_bias", "encoder_repetition_penalty", "repetition_penalty", "no_repeat_ngram",
        "encoder_no_repeat_ngram", "bad_words", "min_length", "forced_bos", "forced_eos", "remove_invalid_values",
        "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "temperature", "top_h",
        "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "renormalize_logits",
    ]  # fmt: skip
    assert compile_config(GenerationConfig(**EVERYTHING), MODEL, 4)[0].processors == tuple(ORDER)


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
    assert bent(np.ones(V), [1], [8, 0], encoder_repetition_penalty=2.0)[[0, 8]].tolist() == [2, 2]
    assert bent(np.ones(V), [1], [8, 2], encoder_repetition_penalty=2.0)[0] == 1


def test_a_bad_word_is_barred_where_it_would_be_completed():
    words = [[7], [4, 5], [4, 5, 6]]
    assert barred([1, 4], bad_words_ids=words) == {7, 5}
    assert barred([1, 4, 5], bad_words_ids=words) == {7, 6}
    assert barred([1, 3], bad_words_ids=words) == {7}
    assert barred([1], bad_words_ids=[[1, 1, 9]]) == set()


def test_an_end_token_alone_is_never_a_bad_word():
    assert barred([1, 4], bad_words_ids=[[2], [7]]) == {7}


def test_biases_add_up_where_a_sequence_would_be_completed():
    biases = {(7,): 1.0, (4, 7): 2.0, (3, 4, 7): 4.0, (5, 7): 8.0, (4, 9): -np.inf, (1, 1, 8): 3.0}
    out = bent(np.full(V, 0.5), [1, 3, 4], sequence_bias=biases)
    assert out[7] == 7.5
    assert np.isneginf(out[9])
    assert (np.delete(out, [7, 9]) == 0.5).all()
    assert bent(np.zeros(V), [1], sequence_bias=biases)[8] == 0


def test_the_end_waits_for_the_least_length():
    assert barred([1, 4, 4], min_length=4) == {2}
    assert barred([1, 4, 4, 4], min_length=4) == set()
    assert barred([1, 4, 4], min_new_tokens=2) == set()
    assert barred([1, 4], min_new_tokens=2, eos_token_id=[2, 9]) == {2, 9}


def test_new_tokens_are_counted_without_the_decoder_prompt():
    assert barred([1, 5, 5, 4], begin=3, min_new_tokens=2) == {2}
    assert barred([1, 5, 5, 4], begin=3, min_length=4) == set()
    assert barred([1, 5, 5, 4], begin=3, max_new_tokens=2, forced_eos_token_id=2) == set(range(V)) - {2}
    assert barred([1, 5, 5, 4], begin=3, max_length=6, forced_eos_token_id=2) == set()


def test_the_last_place_is_forced_at_no_cost():
    assert barred([1, 4, 4], max_length=4, forced_eos_token_id=2) == set(range(V)) - {2}
    assert bent(np.full(V, -7.0), [1, 4, 4], max_length=4, forced_eos_token_id=2)[2] == 0
    assert barred([1, 4], max_length=4, forced_eos_token_id=2) == set()


def test_the_first_token_is_forced_after_a_lone_start_token_only():
    assert barred([1], forced_bos_token_id=6) == set(range(V)) - {6}
    assert bent(np.full(V, -7.0), [1], forced_bos_token_id=6)[6] == 0
    assert barred([1, 6], forced_bos_token_id=6) == set()
    assert barred([1, 5], begin=2, forced_bos_token_id=6) == set()


def test_tokens_are_suppressed_always_or_at_the_beginning():
    assert barred([1, 4], suppress_tokens=[3, 9, 0]) == {3, 9, 0}
    assert barred([1], begin_suppress_tokens=[3, 9]) == {3, 9}
    assert barred([1, 4], begin_suppress_tokens=[3, 9]) == set()
    assert barred([1, 5, 5], begin=3, begin_suppress_tokens=[3]) == {3}


def test_a_forced_first_token_moves_the_beginning_unless_there_is_a_decoder_prompt():
    both = {"begin_suppress_tokens": [3], "forced_bos_token_id": 3}
    assert barred([1], **both) == set(range(V)) - {3}
    assert barred([1, 3], **both) == {3}
    assert barred([1, 5], begin=2, **both) == {3}


def test_the_end_grows_more_pressing_after_its_start():
    decay = {"exponential_decay_length_penalty": (2, 1.5)}
    scores = np.where(np.arange(V) == 2, -4.0, 1.0)
    assert bent(scores, [1, 4, 4], **decay)[2] == -4
    assert bent(scores, [1, 4, 4, 4], **decay)[2] == -4 + 4 * 0.5
    assert bent(scores, [1, 4, 4, 4, 4], **decay)[2] == -4 + 4 * 1.25
    assert (np.delete(bent(scores, [1, 4, 4, 4, 4], **decay), 2) == 1).all()
    assert bent(scores, [1, 5, 5, 4, 4, 4], begin=3, **decay)[2] == -4 + 4 * 0.5
    assert barred([1, 4, 4, 4], min_length=9, **decay) == {2}


def test_repetition_is_penalised_whatever_the_sign():
    scores = np.arange(V) - 5.0
    out = bent(scores, [1, 9, 9], repetition_penalty=2.0)
    expected = scores.copy()
    expected[1], expected[9] = -8.0, 2.0
    np.testing.assert_array_equal(out, expected)


def test_tokens_of_the_prompt_gain_whatever_the_sign():
    out = bent(np.arange(V) - 5.0, [3], [9, 1, 1], encoder_repetition_penalty=2.0)
    assert (out[1], out[9], out[3]) == (-2.0, 8.0, -2.0)


def test_invalid_values_become_numbers_and_barred_tokens_the_least_of_them():
    scores = np.zeros(V)
    scores[[3, 4, 5]] = np.nan, np.inf, -np.inf
    out = bent(scores, [1], bad_words_ids=[[7]], remove_invalid_values=True)
    least = np.finfo(np.float32).min
    assert out[[3, 4, 5, 7]].tolist() == [0, np.finfo(np.float32).max, least, least]


def test_renormalised_scores_are_log_probabilities_after_all_other_rules():
    out = bent(np.arange(V), [1], do_sample=True, top_k=3, renormalize_logits=True)
    assert np.isfinite(out).sum() == 3
    assert np.exp(out).sum() == pytest.approx(1)


def test_a_constraint_stands_between_the_least_length_and_the_forced_tokens():
    def only_seven_and_two(allowed: jax.Array, step: Step) -> jax.Array:
        return allowed & (step.length > 0)

    allowed = jax.tree_util.Partial(only_seven_and_two, np.isin(np.arange(V), [2, 7]))
    assert barred([1, 4], constraint=allowed, min_length=5) == set(range(V)) - {7}
    assert barred([1, 4], constraint=allowed, forced_bos_token_id=6) == set(range(V)) - {2, 7}
    assert barred([1], constraint=allowed, forced_bos_token_id=6) == set(range(V)) - {6}
    assert barred([1], constraint=allowed, suppress_tokens=[7]) == set(range(V)) - {2}
    # All that is allowed had been barred: it costs nothing then.
    out = bent(np.full(V, -3.0), [1, 4], constraint=allowed, min_length=5, bad_words_ids=[[7]])
    assert set(np.flatnonzero(out == 0)) == {2, 7}
    nothing = jax.tree_util.Partial(only_seven_and_two, np.zeros(V, bool))
    assert barred([1, 4], constraint=nothing) == set(range(V))


def test_a_constraint_is_lifted_for_a_drawn_row_alone_and_for_beams_together():
    scores = np.zeros((1, 2, V), np.float32)
    scores[0, 0, 7] = -np.inf
    constraint = jax.tree_util.Partial(lambda step: jnp.arange(V) == 7)

    def first_row(scores: np.ndarray, **fields: Any) -> float:
        plan, numbers = compile_config(GenerationConfig(**fields), MODEL, 1)
        step = Step(np.ones((1, 2, plan.capacity), np.int32), jnp.int32(2), None)
        return float(_process(scores, step, numbers, plan, constraint)[0, 0, 7])

    assert first_row(scores, do_sample=True, num_return_sequences=2) == 0
    assert first_row(scores, num_beams=2) == -np.inf
    assert first_row(np.full_like(scores, -np.inf), num_beams=2) == 0


def test_custom_rules_run_in_turn_between_suppression_and_sampling():
    def plus(amount: jax.Array, scores: jax.Array, step: Step) -> jax.Array:
        return jnp.where(jnp.arange(V) == step.tokens[0, 0, step.length - 1], 0, scores + amount)

    def squared(scores: jax.Array, step: Step) -> jax.Array:
        return scores * (step.length - step.prompt_length).astype(scores.dtype)

    rules = (jax.tree_util.Partial(plus, np.float32(1)), jax.tree_util.Partial(squared))
    out = bent(np.full(V, 3.0), [1, 4, 5], custom=rules, suppress_tokens=[5, 6], do_sample=True, temperature=0.5)
    assert out[5] == 0
    assert np.isneginf(out[6])
    assert out[7] == (3 + 1) * 2 / 0.5


def test_a_reply_ends_with_a_stop_sequence_whole_and_in_its_last_places():
    _, numbers = compile_config(GenerationConfig(), MODEL, 1, stop_sequences=([7], [3, 4], [1, 5, 6, 5]))
    replies = np.array([[[1, 3, 4, 0], [1, 4, 3, 4], [1, 5, 6, 5], [1, 7, 3, 7]], [[3, 7, 7, 3]] * 4], np.int32)

    def ended(length: int) -> list[list[bool]]:
        return ends_with(jnp.asarray(replies), jnp.int32(length), numbers.stop_sequences).tolist()

    assert ended(4) == [[False, True, True, True], [False] * 4]
    assert ended(3) == [[True, False, False, False], [True] * 4]
    assert ended(1) == [[False] * 4, [False] * 4]
    nothing = compile_config(GenerationConfig(), MODEL, 1)[1].stop_sequences
    assert not ends_with(jnp.asarray(replies), jnp.int32(4), nothing).any()


def everything(rows: int = 1, width: int = 6, seed: int = 0, **changes: Any) -> tuple[Any, Step, Settings, Plan]:
    """Arguments of `process` for every rule at once; under beams with 3 of them."""
    rng = np.random.default_rng(seed)
    plan, numbers = compile_config(GenerationConfig(**{**EVERYTHING, **changes}), MODEL, width)
    shape = (rows, plan.rows, plan.capacity)
    step = Step(
        rng.integers(0, V, shape, dtype=np.int32),
        jnp.int32(7),
        rng.integers(0, V, (rows, width + 2), dtype=np.int32),
        numbers.prompt_length,
    )
    return rng.normal(size=(rows, plan.rows, V)).astype(np.float32), step, numbers, plan


def test_a_batch_of_rows_is_each_row_alone():
    scores, step, numbers, plan = everything(rows=4, num_beams=3, do_sample=False, renormalize_logits=False)
    together = _process(scores, step, numbers, plan)
    for b in range(4):
        one = Step(step.tokens[b : b + 1], step.length, step.source_ids[b : b + 1], step.prompt_length)
        np.testing.assert_array_equal(_process(scores[b : b + 1], one, numbers, plan)[0], together[b])


OTHER_NUMBERS: dict[str, Any] = {
    "sequence_bias": [[[3], -2.5], [[4, 9], 5.5]], "encoder_repetition_penalty": 0.7, "repetition_penalty": 0.8,
    "bad_words_ids": [[1, 2], [8]], "min_length": 11, "forced_bos_token_id": 3, "forced_eos_token_id": 9,
    "exponential_decay_length_penalty": (3, 0.9), "suppress_tokens": [1], "begin_suppress_tokens": [0, 3],
    "temperature": 0.6, "top_h": 0.7, "top_k": 4, "top_p": 0.8, "min_p": 0.2, "typical_p": 0.7,
    "epsilon_cutoff": 0.1, "eta_cutoff": 0.2,
}  # fmt: skip


def test_a_batch_may_hold_other_numbers_in_each_row():
    first, second = everything(seed=1), everything(seed=1, **OTHER_NUMBERS)
    assert first[3] == second[3]
    scores, step, numbers = jax.tree.map(
        lambda a, b: np.concatenate([a, b]) if np.ndim(a) else a, first[:3], second[:3]
    )
    together = np.asarray(_process(scores, step, numbers, first[3]))
    for row, alone in zip(together, (first, second), strict=True):
        # Another batch is another program, which may sum a softmax in another order.
        np.testing.assert_allclose(row, _process(*alone)[0], rtol=1e-6, atol=1e-6)
    assert (np.isfinite(together[0]) != np.isfinite(together[1])).any()


def test_other_numbers_compile_nothing():
    scores, step, numbers, plan = everything()
    _process(scores, step, numbers, plan)
    with compiled_programs() as seen:
        for changes in (OTHER_NUMBERS, {"top_p": 0.5, "suppress_tokens": [4], "min_p": 0.3, "max_length": 30}):
            _process(*everything(**changes))
        _, other = compile_config(GenerationConfig(**EVERYTHING), MODEL, 5, prompt_length=3)
        _process(scores, step, other, plan)
    assert seen == []


def test_the_rules_lower_for_a_tpu_and_stay_in_float32():
    scores, step, numbers, plan = everything(num_beams=3)
    exported = export.export(jax.jit(partial(process, plan=plan)), platforms=["tpu"])(scores, step, numbers)
    assert exported.platforms == ("tpu",)
    assert exported.out_avals[0].shape == scores.shape
    assert exported.out_avals[0].dtype == np.float32


def test_temperatures_are_swept_by_vmap():
    scores, step, numbers, plan = everything()
    sweep = np.array([[0.5], [1.0], [3.0]], np.float32)

    def at(temperature: Any) -> jax.Array:
        return process(scores, step, dataclasses.replace(numbers, temperature=temperature), plan)

    swept = jax.jit(jax.vmap(at))(sweep)
    for row, temperature in zip(swept, sweep, strict=True):
        alone = _process(scores, step, dataclasses.replace(numbers, temperature=temperature), plan)
        np.testing.assert_allclose(row, alone, rtol=1e-6, atol=1e-6)


def test_gradients_pass_through_to_the_tokens_that_are_kept():
    scores, step, numbers, plan = everything(top_h=1.0, top_p=0.999, typical_p=0.999)

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def slope(scores: Any) -> tuple[jax.Array, jax.Array]:
        out = process(scores, step, numbers, plan)
        return out.max(), out

    (_, out), grads = slope(scores)
    assert np.isfinite(out).sum() > 2
    assert np.isfinite(grads).all()
    assert (np.asarray(grads) != 0)[np.isfinite(out)].all()


def test_no_rule_makes_an_array_of_the_square_of_the_vocabulary():
    wide = MODEL.replace(vocab_size=4096)
    plan, numbers = compile_config(GenerationConfig(**EVERYTHING, num_beams=2), wide, 6)
    step = Step(jnp.zeros((1, 2, plan.capacity), jnp.int32), jnp.int32(7), jnp.zeros((1, 8), jnp.int32), 1)
    jaxpr = jax.make_jaxpr(partial(process, plan=plan))(jnp.zeros((1, 2, 4096)), step, numbers)

    def sizes(jaxpr: Any) -> list[int]:
        inner = [value.jaxpr for eqn in jaxpr.eqns for value in eqn.params.values() if hasattr(value, "jaxpr")]
        own = [variable.aval.size for eqn in jaxpr.eqns for variable in eqn.outvars]
        return own + [size for each in inner for size in sizes(each)]

    assert max(sizes(jaxpr.jaxpr)) <= 8 * 4096


@pytest.mark.parametrize("name", ["step", "plan", "ranking"])
def test_docstring_examples_print_what_they_show(name: str):
    module = importlib.import_module(f"blenderbot_jax.generation.{name}")
    result = doctest.testmod(module, extraglobs={"jnp": jnp})
    assert result.attempted > 0
    assert result.failed == 0
