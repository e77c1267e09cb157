"""ParlAI's decoding against its rules in plain Python: on chains, on tiny models, and through all that decodes."""

import dataclasses
import itertools
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blenderbot_jax.chatbot import Chatbot
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.ensemble import Ensemble
from blenderbot_jax.generation import Draft, GenerationConfig, ParlaiConfig, generate, generate_many
from blenderbot_jax.generation.parlai_beam import parlai_search
from blenderbot_jax.generation.plan import Plan, compile_config
from blenderbot_jax.generation.sampling import Replies, row_keys
from blenderbot_jax.generation.task import Task
from blenderbot_jax.preparation import prepare
from blenderbot_jax.quantize import quantize
from blenderbot_jax.warm import warm_up
from tests.compiling import compiled_programs
from tests.parlai_rules import (
    PROMPTS,
    RECIPE,
    assert_same,
    decode,
    log_softmax,
    next_logits,
    replies,
    rules_of,
    tiny_model,
)

START, END, V, STATES = 1, 2, 9, 97
MODEL = BlenderbotConfig(
    vocab_size=V, d_model=8, encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=15
)


SLOW = pytest.mark.slow


# ---- chains ----------------------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnums=0)
def search(plan: Plan, table: jax.Array, task: Task, key: jax.Array | None) -> Replies:
    """Decode a chain: row h of `table` [97, V] holds the logits of what follows a reply whose tokens hash to h."""

    def step(tokens: jax.Array, history: jax.Array) -> tuple[jax.Array, jax.Array]:
        history = (history * 7 + tokens) % STATES
        return table[history], history

    def reorder(history: jax.Array, parents: jax.Array) -> jax.Array:
        return jnp.take_along_axis(history, parents, axis=1)

    return parlai_search(step, reorder, jnp.zeros((len(task.prompt), plan.rows), jnp.int32), task, plan, key)


def task_of(config: GenerationConfig, contexts: list[list[int]], valid: list[bool] | None = None) -> tuple[Plan, Task]:
    width = max(map(len, contexts))
    plan, numbers = compile_config(config, MODEL, width)
    ids = np.zeros((len(contexts), width), np.int32)
    for row, context in zip(ids, contexts, strict=True):
        row[: len(context)] = context
    numbers = dataclasses.replace(numbers, source_width=np.array([len(context) for context in contexts], np.int32))
    prompt = np.full((len(contexts), 1), START, np.int32)
    return plan, Task(prompt, ids, np.ones(len(contexts), bool) if valid is None else np.array(valid), numbers)


def chain(table: np.ndarray, tokens: tuple[int, ...]) -> np.ndarray:
    history = 0
    for token in tokens:
        history = (history * 7 + token) % STATES
    return table[history]


def noise_of(key: jax.Array, b: int = 0, B: int = 1, K: int = 1, vocab: int = V) -> Any:
    """The noise that row k of prompt b draws with, as a function of row and length."""
    keys = row_keys(key, B, K)

    @cache
    def noise(row: int, length: int) -> np.ndarray:
        return np.asarray(_gumbel(keys[b, row], length, vocab), np.float64)

    return noise


@partial(jax.jit, static_argnums=2)
def _gumbel(key: jax.Array, length: int, vocab: int) -> jax.Array:
    return jax.random.gumbel(jax.random.fold_in(key, length), (vocab,))


TABLES = st.tuples(st.integers(0, 10_000), st.sampled_from([0.5, 1.5, 4.0]), st.sampled_from([-2.0, 0.0, 1.5]))


def table_of(drawn: tuple[int, float, float]) -> np.ndarray:
    """Random logits, more or less peaked, ends more or less likely."""
    seed, scale, end = drawn
    table = np.random.default_rng(seed).normal(size=(STATES, V)) * scale
    table[:, END] += end
    return table.astype(np.float32)


NUMBERS = {
    "min_new_tokens": st.integers(1, 5),
    "max_new_tokens": st.integers(6, 15),
    "length_penalty": st.sampled_from([0.0, 0.65, 1.0, 2.0, -1.0]),
    "temperature": st.sampled_from([0.7, 1.0, 1.6]),
}
CONTEXT = (3, 4, 5, 6, 3, 4, 7, 8, 2)


@pytest.mark.parametrize("K", [3, pytest.param(1, marks=SLOW), pytest.param(5, marks=SLOW)])
@settings(max_examples=40, deadline=None)
@given(drawn=TABLES, numbers=st.fixed_dictionaries(NUMBERS))
def test_a_search_finds_what_the_rules_in_plain_python_find(K: int, drawn: Any, numbers: dict[str, Any]):
    rules = {"num_beams": K, "no_repeat_ngram_size": 2, "encoder_no_repeat_ngram_size": 2}
    rules |= {"num_return_sequences": K, "bad_words_ids": [[7, 3], [8]]}
    config = ParlaiConfig(**rules, **numbers)
    plan, task = task_of(config, [list(CONTEXT)])
    table = table_of(drawn)
    expected = decode(partial(chain, table), rules_of(config, CONTEXT))
    assert_same(replies(search(plan, table, task, None)), expected)


@pytest.mark.parametrize(
    ("inference", "K"),
    [
        ("factual", 4),
        *(pytest.param(*case, marks=SLOW) for case in itertools.product(("all", "top_k", "top_p", "factual"), (1, 3))),
    ],
)
@settings(max_examples=30, deadline=None)
@given(drawn=TABLES, numbers=st.fixed_dictionaries(NUMBERS), seed=st.integers(0, 1000), data=st.data())
def test_draws_are_those_of_the_rules_with_the_same_noise(
    inference: str, K: int, drawn: Any, numbers: dict[str, Any], seed: int, data: Any
):
    config = ParlaiConfig(do_sample=True, num_beams=K, num_return_sequences=K, no_repeat_ngram_size=2, **numbers)
    share = st.floats(0.05, 0.99)
    if inference == "top_k":
        config = config.replace(top_k=data.draw(st.integers(1, V)))
    if inference == "top_p":
        config = config.replace(top_p=data.draw(share))
    if inference == "factual":
        own = {"top_p_decay": data.draw(share), "top_p_floor": data.draw(share), "sentence_end_ids": [4, 6]}
        config = config.replace(top_p=data.draw(share), **own)
    plan, task = task_of(config, [[2]])
    table, key = table_of(drawn), jax.random.key(seed)
    expected = decode(partial(chain, table), rules_of(config), noise_of(key, K=K))
    assert_same(replies(search(plan, table, task, key)), expected)


@pytest.mark.parametrize("cut", [{"top_k": 3}, pytest.param({"top_p": 0.8}, marks=SLOW), pytest.param({}, marks=SLOW)])
@settings(max_examples=30, deadline=None)
@given(
    drawn=TABLES, numbers=st.fixed_dictionaries(NUMBERS | {"beam_delay": st.integers(0, 7)}), seed=st.integers(0, 1000)
)
def test_a_search_takes_over_from_draws(cut: dict[str, Any], drawn: Any, numbers: dict[str, Any], seed: int):
    K = 4
    config = ParlaiConfig(do_sample=True, num_beams=K, num_return_sequences=K, **cut, **numbers)
    plan, task = task_of(config, [[2]])
    table, key = table_of(drawn), jax.random.key(seed)
    expected = decode(partial(chain, table), rules_of(config), noise_of(key, K=K))
    assert_same(replies(search(plan, table, task, key)), expected)


@pytest.mark.parametrize(
    "sampling",
    [
        {"do_sample": True, "beam_delay": 2},
        pytest.param({}, marks=SLOW),
        pytest.param({"do_sample": True, "top_k": 4}, marks=SLOW),
    ],
)
@settings(max_examples=15, deadline=None)
@given(drawn=TABLES, seed=st.integers(0, 1000))
def test_prompts_of_a_batch_do_not_know_of_each_other(sampling: dict[str, Any], drawn: Any, seed: int):
    """Each ends when it would alone, and stays as it is while others go on; rows that fill the batch do nothing."""
    config = ParlaiConfig(
        num_beams=3, num_return_sequences=3, max_new_tokens=13, encoder_no_repeat_ngram_size=1, **sampling
    )
    contexts = [[3, 4], [5, 6], [2], [7, 8]]
    table = table_of(drawn)
    key = jax.random.key(seed) if sampling else None
    plan, task = task_of(config, contexts, [True, True, False, True])
    together = search(plan, table, task, key)
    for b in (0, 1, 3):
        noise = None if key is None else noise_of(key, b, B=4, K=3)
        assert_same(replies(together, b), decode(partial(chain, table), rules_of(config, tuple(contexts[b])), noise))


def markov(probabilities: dict[tuple[int, int], float]) -> np.ndarray:
    """A chain in which the last token says what follows, for replies of two tokens at most."""
    table = np.full((STATES, V), -30.0, np.float32)
    for before in range(V):
        state = START if before == START else (START * 7 + before) % STATES
        for after in range(V):
            if (before, after) in probabilities:
                table[state, after] = np.log(probabilities[before, after])
    return table


def test_those_that_end_take_places_of_the_search():
    """By hand: of the two best continuations of 3 and 4 the better one ends, and leaves one place to run on."""
    table = markov({(START, 3): 0.6, (START, 4): 0.4, (3, END): 0.9, (3, 5): 0.1, (4, END): 0.2, (4, 5): 0.8})
    config = ParlaiConfig(num_beams=2, num_return_sequences=2, max_new_tokens=2, length_penalty=1.0)
    plan, task = task_of(config, [[2]])
    out = search(plan, table, task, None)
    # 3 </s> scores log 0.54 over (2 + 2) / 6; 4 5 (0.32) is cut off, and 4 </s> (0.08) had no place.
    expected = [((START, 3, END), np.log(0.54) * 6 / 4), ((START, 4, END), np.log(0.32) * 6 / 4)]
    assert_same(replies(out), expected)
    np.testing.assert_allclose(out.log_probs[0, 0, :3], np.log([1.0, 0.6, 0.9]), rtol=1e-5, atol=1e-7)


def test_the_start_token_is_never_said_and_has_no_share():
    table = np.zeros((STATES, V), np.float32)
    table[:, START] = 50.0
    config = ParlaiConfig(num_beams=2, num_return_sequences=2, max_new_tokens=9)
    for fields in ({}, {"do_sample": True}):
        plan, task = task_of(config.replace(**fields), [[2]])
        out = search(plan, table, task, jax.random.key(0) if fields else None)
        said = replies(out)
        assert all(START not in tokens[1:] for tokens, _ in said)
        np.testing.assert_allclose(np.asarray(out.log_probs)[0, 0, 1 : len(said[0][0])], -np.log(V - 1), rtol=1e-5)


@pytest.mark.parametrize("least", [1, 4])
def test_the_least_length_counts_tokens_before_the_end(least: int):
    table = np.zeros((STATES, V), np.float32)
    table[:, END] = 20.0
    plan, task = task_of(
        ParlaiConfig(num_beams=2, num_return_sequences=2, min_new_tokens=least, max_new_tokens=9), [[2]]
    )
    [(tokens, _)] = replies(search(plan, table, task, None))[:1]
    assert len(tokens) == 1 + least + 1
    assert tokens[-1] == END


def test_where_nothing_ends_the_end_takes_the_last_place():
    table = np.random.default_rng(0).normal(size=(STATES, V)).astype(np.float32)
    table[:, END] = -30.0
    config = ParlaiConfig(num_beams=2, num_return_sequences=2, max_new_tokens=6, length_penalty=0.0)
    plan, task = task_of(config, [[2]])
    out = search(plan, table, task, None)
    assert_same(replies(out), decode(partial(chain, table), rules_of(config)))
    first, second = replies(out)
    # The score counts the token that stood there.
    assert len(first[0]) == len(second[0]) == 7
    assert first[0][-1] == second[0][-1] == END
    assert first[1] > second[1]
    np.testing.assert_allclose(np.asarray(out.log_probs)[0].sum(axis=-1), np.asarray(out.scores)[0], rtol=1e-5)


def test_what_is_cut_off_comes_behind_what_has_ended_whatever_its_score():
    table = markov({(START, END): 0.2, (START, 3): 0.8, (3, 4): 1.0})
    config = ParlaiConfig(num_beams=2, num_return_sequences=2, max_new_tokens=2)
    plan, task = task_of(config, [[2]])
    out = replies(search(plan, table, task, None))
    assert [tokens for tokens, _ in out] == [(START, END), (START, 3, END)]
    assert out[0][1] < out[1][1]


def test_a_place_for_which_there_is_no_reply_says_so():
    table = markov({(START, END): 1.0})
    config = ParlaiConfig(num_beams=2, num_return_sequences=2, max_new_tokens=4, suppress_tokens=[0, 3, 4, 5, 6, 7, 8])
    plan, task = task_of(config, [[2]])
    out = search(plan, table, task, None)
    assert np.asarray(out.lengths).tolist() == [[2, 1]]
    assert np.asarray(out.tokens)[0, 1].tolist() == [START] + [0] * (plan.capacity - 1)
    assert np.isneginf(out.scores[0, 1])
    assert not np.asarray(out.log_probs)[0, 1].any()


def test_a_stop_sequence_ends_a_reply_as_the_end_token_does():
    table = markov({(START, 3): 1.0, (3, 4): 0.9, (3, 5): 0.1})
    config = ParlaiConfig(num_beams=2, num_return_sequences=2, max_new_tokens=9)
    plan, numbers = compile_config(config, MODEL, 1, 1, [[3, 4]])
    task = Task(np.array([[START]]), np.array([[2]]), np.array([True]), numbers)
    assert replies(search(plan, table, task, None))[0][0] == (START, 3, 4)


def test_numbers_do_not_make_another_program():
    def numbers(length: int, delay: int, p: float, decay: float) -> ParlaiConfig:
        return ParlaiConfig(
            do_sample=True, num_beams=3, max_new_tokens=length, beam_delay=delay, top_p=p, top_p_decay=decay,
            temperature=p, length_penalty=p,
        )  # fmt: skip

    settings = [numbers(9, 2, 0.9, 0.9), numbers(12, 0, 0.3, 1.0), numbers(11, 99, 1.0, 0.5)]
    plans = {task_of(config, [[2]])[0] for config in settings}
    shapes = {jax.tree.structure(task_of(config, [[2]])[1]) for config in settings}
    assert len(plans) == len(shapes) == 1
    with compiled_programs("search") as compiled:
        for config in settings:
            plan, task = task_of(config, [[2]])
            search(plan, table_of((0, 1.0, 0.0)), task, jax.random.key(0))
    assert len(compiled) <= 1


# ---- models ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tiny_config):
    return tiny_model(tiny_config)


@pytest.fixture(scope="module")
def expected(tiny):
    """What the rules in plain Python find with the model's forward pass, for each prompt."""
    return [decode(next_logits(*tiny, prompt), rules_of(RECIPE, tuple(prompt))) for prompt in PROMPTS]


def test_generate_finds_what_the_rules_find_with_the_models_forward_pass(tiny, expected):
    for prompt, best in zip(PROMPTS, expected, strict=True):
        assert_same(replies(generate(*tiny, [prompt], config=RECIPE)), best)


@SLOW
def test_it_is_not_what_transformers_rules_find(tiny, expected):
    other = GenerationConfig(**{name: value for name, value in RECIPE.to_dict().items() if name != "decoding"})
    outs = [replies(generate(*tiny, [prompt], config=other)) for prompt in PROMPTS]
    assert outs != [[reply for reply, _ in best] for best in expected]


def test_prompts_of_many_lengths_get_the_replies_they_get_alone(tiny, expected):
    for places, out in generate_many(*tiny, PROMPTS, config=RECIPE):
        for row, place in enumerate(places):
            assert_same(replies(out, row), expected[place])


@SLOW
@pytest.mark.parametrize("fields", [{"top_k": 5}, {"top_p": 0.8, "top_p_decay": 0.8, "sentence_end_ids": [5, 6]}])
def test_draws_are_the_same_alone_and_among_others(tiny, fields):
    config = RECIPE.replace(do_sample=True, beam_delay=4, **fields)
    key = jax.random.key(5)
    for places, out in generate_many(*tiny, PROMPTS, config=config, key=key):
        for row, place in enumerate(places):
            noise = noise_of(key, place, B=len(PROMPTS), K=4, vocab=96)
            best = decode(next_logits(*tiny, PROMPTS[place]), rules_of(config, tuple(PROMPTS[place])), noise)
            assert_same(replies(out, row), best)


@SLOW
def test_other_forms_of_the_weights_decode_alike(tiny, expected):
    model, params = tiny
    for form in (prepare(model, params), prepare(model, params, natively=False)):
        assert_same(replies(generate(model, form, PROMPTS[:1], config=RECIPE)), expected[0])
    pair = Ensemble((model, model))
    assert_same(replies(generate(pair, (params, params), PROMPTS[:1], config=RECIPE)), expected[0])
    in_8_bits = quantize(params)
    best = decode(next_logits(model, in_8_bits, PROMPTS[0]), rules_of(RECIPE, tuple(PROMPTS[0])))
    assert_same(replies(generate(model, in_8_bits, PROMPTS[:1], config=RECIPE)), best)


@SLOW
def test_under_jit_and_vmap_it_gives_the_same(tiny):
    model, params = tiny
    ids = jnp.asarray([[5, 6, 7, 2], [30, 31, 5, 2]])
    plain = generate(model, params, ids, config=RECIPE)
    for out in (
        jax.jit(partial(generate, model, config=RECIPE))(params, ids),
        jax.tree.map(
            lambda leaf: leaf[:, 0],
            jax.vmap(lambda row: generate(model, params, row, config=RECIPE))(ids[:, None]),
        ),
    ):
        np.testing.assert_array_equal(out.sequences, plain.sequences)
        np.testing.assert_allclose(out.scores, plain.scores, rtol=1e-4)


@SLOW
def test_a_decoder_prompt_is_continued(tiny):
    out = generate(*tiny, PROMPTS[:1], config=RECIPE, decoder_input_ids=[[1, 40, 41]])
    assert np.asarray(out.sequences)[0, :, :3].tolist() == [[1, 40, 41]] * 4
    assert (np.asarray(out.lengths) >= 3 + 3 + 1).all()


@SLOW
def test_steps_give_back_what_tokens_were_chosen_by(tiny):
    out = generate(*tiny, PROMPTS[:1], config=RECIPE.replace(output_scores=True, output_logits=True, temperature=1.5))
    # The end may stand in a place that it has not won.
    length = int(out.lengths[0, 0]) - 1
    assert out.step_scores is not None
    assert out.step_logits is not None
    chosen = np.take_along_axis(np.asarray(out.step_scores)[0, 0], np.asarray(out.sequences)[0, 0, :, None], -1)[:, 0]
    np.testing.assert_allclose(chosen[:length], np.asarray(out.token_log_probs)[0, 0, :length], atol=2e-4)
    logits = np.asarray(out.step_logits, np.float64)[0, 0, 1] / 1.5
    logits[START] = -1e20
    # Of the first step only the end token is barred.
    rest = np.delete(np.arange(96), [START, END])
    np.testing.assert_allclose(np.asarray(out.step_scores)[0, 0, 1][rest], log_softmax(logits)[rest], atol=2e-4)


def test_a_draft_is_refused(tiny):
    with pytest.raises(ValueError, match="not for ParlAI's"):
        generate(*tiny, PROMPTS[:1], config=RECIPE.replace(num_beams=1, num_return_sequences=1), draft=Draft(*tiny))


def test_after_warming_up_nothing_compiles(tiny):
    model, params = tiny
    warm_up(model, params, RECIPE.replace(block_full_context=True), source_widths=(7,))
    with compiled_programs("decode") as compiled:
        generate(model, params, PROMPTS[:1], config=RECIPE)
        generate(model, params, PROMPTS[:1], config=RECIPE, context_ids=[[*range(8, 20), 2]])
    assert compiled == []


@SLOW
def test_an_exported_program_decodes_alike(tiny, expected, tmp_path):
    pytest.importorskip("flatbuffers")
    from blenderbot_jax.export import export_decode
    from blenderbot_jax.run_exported import Exported

    tokenizer = Chatbot.from_pretrained("demo").checkpoint.tokenizer
    export_decode(tmp_path / "program", *tiny, tokenizer, RECIPE, source_width=8)
    out = Exported(tmp_path / "program").generate(PROMPTS[:1])
    assert_same(replies(Replies(**out)), expected[0])
