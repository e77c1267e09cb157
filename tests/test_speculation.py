"""Drafts: the replies of plain decoding token for token, in fewer steps of the model, and early refusals."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner

from blenderbot_jax import (
    BlenderbotForCausalLM,
    BlenderbotForConditionalGeneration,
    Chatbot,
    Draft,
    Ensemble,
    GenerationConfig,
    generate,
    generate_many,
    quantize,
)
from blenderbot_jax.cli import main
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.model import Params
from blenderbot_jax.warm import warm_up
from tests.golden.fill import golden_params
from tests.talking import echoing
from tests.test_warm import compilations

TOKENS = 3
RULES = {"no_repeat_ngram_size": 3, "repetition_penalty": 1.2, "forced_bos_token_id": 7, "forced_eos_token_id": 2}
MORE_RULES = {**RULES, "encoder_no_repeat_ngram_size": 3, "bad_words_ids": [[8], [9, 12]]}


@pytest.fixture(scope="module")
def model(tiny_config: BlenderbotConfig) -> BlenderbotForConditionalGeneration:
    return BlenderbotForConditionalGeneration(tiny_config.replace(init_std=0.4))


@pytest.fixture(scope="module")
def params(model: BlenderbotForConditionalGeneration) -> Params:
    # The bias lets replies end here and there.
    return golden_params(model, eos_bias=2.0)


def perturbed(params: Params, size: float) -> Params:
    """Parameters that choose the same tokens more or less often."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jax.device_put(np.asarray(leaf) * np.float32(1 + size * rng.standard_normal(leaf.shape))), params
    )


@pytest.fixture(scope="module")
def drafts(model, params) -> dict[str, Draft]:
    """One that is always right, one that is often, and one that hardly ever is."""
    others = {"same": params, "similar": perturbed(params, 0.1), "unrelated": perturbed(params, 3)}
    return {name: Draft(model, other, tokens=TOKENS) for name, other in others.items()}


def prompts(*lengths: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    ids = np.zeros((len(lengths), max(lengths)), np.int32)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = rng.integers(3, 90, length)
    return ids


def assert_same_replies(found, wanted):
    np.testing.assert_array_equal(found.sequences, wanted.sequences)
    np.testing.assert_array_equal(found.lengths, wanted.lengths)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-4)
    np.testing.assert_allclose(found.token_log_probs, wanted.token_log_probs, atol=1e-4)


@pytest.mark.parametrize("kind", ["same", "similar", "unrelated"])
@pytest.mark.parametrize("min_length", [4, 25])
def test_greedy_replies_under_rules_are_those_without_a_draft(model, params, drafts, kind, min_length):
    """At 25 tokens replies take every position that the model has."""
    config = GenerationConfig(max_length=25, min_length=min_length, **RULES)
    ids = prompts(5, 9)
    plain = generate(model, params, ids, config=config)
    drafted = generate(model, params, ids, config=config, draft=drafts[kind])
    assert_same_replies(drafted, plain)
    steps = int(plain.lengths.max()) - 1
    least = math.ceil(steps / (TOKENS + 1))
    assert plain.rounds is None
    assert {"same": least, "similar": least + 1, "unrelated": steps - 4}[kind] <= int(drafted.rounds)
    assert int(drafted.rounds) <= {"same": least, "similar": steps - 1, "unrelated": steps}[kind]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["same", "similar", "unrelated"])
def test_samples_that_continue_a_prompt_are_those_without_a_draft_for_the_same_keys(model, params, drafts, kind):
    config = GenerationConfig(max_length=25, do_sample=True, num_return_sequences=3)
    begin = np.array([[1, 30, 31, 32], [1, 40, 41, 42]])
    asked = {"config": config, "key": jax.random.split(jax.random.key(3), 2), "decoder_input_ids": begin}
    plain = generate(model, params, prompts(6, 4), **asked)
    drafted = generate(model, params, prompts(6, 4), **asked, draft=drafts[kind])
    assert_same_replies(drafted, plain)
    assert len(set(np.asarray(plain.lengths).ravel().tolist())) > 1
    if kind == "same":
        assert int(drafted.rounds) == math.ceil((int(plain.lengths.max()) - 4) / (TOKENS + 1))


def test_a_causal_model_continues_padded_prompts_up_to_a_stop_sequence_as_without_a_draft(tiny_config):
    model = BlenderbotForCausalLM(tiny_config)
    whole = golden_params(BlenderbotForConditionalGeneration(tiny_config))
    params = {"model": whole["model"]}
    asked = {"config": GenerationConfig(max_length=25, min_length=25)}
    ids = np.array([[0, 0, 0, 1, 5], [1, 7, 8, 9, 10]])
    free = generate(model, params, ids, **asked, stop_sequences=[[95, 94]])
    # What really follows, so that it stops the first row.
    stop = np.asarray(free.sequences)[0, 0, 12:14].tolist()
    plain = generate(model, params, ids, **asked, stop_sequences=[stop])
    assert int(plain.lengths[0, 0]) < int(free.lengths[0, 0])
    for size, rounds in ((0, (5, 5)), (0.1, (6, 19))):
        draft = Draft(model, perturbed(params, size), TOKENS)
        drafted = generate(model, params, ids, **asked, stop_sequences=[stop], draft=draft)
        assert_same_replies(drafted, plain)
        assert rounds[0] <= int(drafted.rounds) <= rounds[1]


def test_once_warm_a_draft_of_another_architecture_compiles_nothing_and_may_draft_past_the_end(
    model, params, tiny_small_config
):
    other = BlenderbotForConditionalGeneration(
        tiny_small_config.replace(d_model=16, decoder_layers=1, max_position_embeddings=40)
    )
    draft = Draft(other, golden_params(other), tokens=60)
    config = GenerationConfig(max_length=25, min_length=25, **RULES)
    plain = generate(model, params, prompts(5, 9), config=config)
    warm_up(model, params, config, batch_sizes=(2,), source_widths=(9,), draft=draft)
    with compilations() as compiled:
        drafted = generate(model, params, prompts(5, 9), config=config, draft=draft)
    assert compiled == []
    assert_same_replies(drafted, plain)


@pytest.mark.long
def test_tokens_drawn_with_a_draft_follow_the_models_distribution(model, params, drafts):
    """1,000 second tokens, after a forced first, against the model's own probabilities.

    The forced token is always guessed right, so the second is chosen from a guess that was read. The key is fixed, so
    the outcome is too; the bound on the total variation is about three times what as many draws miss by on average.
    """
    count, first = 1000, 7
    config = GenerationConfig(
        do_sample=True, top_k=8, max_length=3, num_return_sequences=count, forced_bos_token_id=first
    )
    ids = prompts(5)
    out = generate(model, params, ids, config=config, key=jax.random.key(0), draft=drafts["similar"])
    assert int(out.rounds) == 1
    logits = np.asarray(model.apply({"params": params}, ids, None, np.array([[1, first]])).logits)[0, 1]
    kept = logits >= np.sort(logits)[-8]
    wanted = np.where(kept, np.exp(logits - logits.max()), 0)
    found = np.bincount(np.asarray(out.sequences)[0, :, 2], minlength=len(logits)) / count
    assert np.abs(found - wanted / wanted.sum()).sum() / 2 < 0.08


@pytest.mark.slow
def test_lists_of_prompts_are_answered_as_without_a_draft(model, params, drafts):
    ids = prompts(6, 4)
    config = GenerationConfig(max_length=25, min_length=25, **RULES)
    each = [row[row != 0].tolist() for row in ids]
    ((places, found),) = generate_many(model, params, each, config=config, draft=drafts["similar"])
    plain = generate(model, params, ids, config=config)
    np.testing.assert_array_equal(found.tokens[np.argsort(places)], plain.sequences)


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        ({"num_beams": 3}, {}, r"num_beams=3 searches: config\.replace\(num_beams=1\)"),
        ({}, {"encoder_outputs": np.zeros((1, 4, 24), np.float32)}, "a draft encodes prompts for itself"),
        ({}, {"inputs_embeds": np.zeros((1, 4, 24), np.float32)}, "a draft encodes prompts for itself"),
    ],
)
def test_what_a_draft_cannot_do_is_refused(model, params, drafts, config, arguments, message):
    given = arguments or {"input_ids": prompts(4)}
    with pytest.raises(ValueError, match=message):
        generate(model, params, **given, config=GenerationConfig(max_length=9, **config), draft=drafts["same"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 97}, "its vocabulary has 97 and the model's 96"),
        ({"max_position_embeddings": 23}, "it knows 23 positions and the model 24"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder is False for the draft and True for the model"),
    ],
)
def test_a_draft_that_does_not_fit_is_refused(model, params, change, message):
    draft = Draft(BlenderbotForConditionalGeneration(model.config.replace(**change)), params)
    config = GenerationConfig(max_length=9)
    with pytest.raises(ValueError, match=message):
        generate(model, params, prompts(4), config=config, draft=draft)
    with pytest.raises(ValueError, match=message):
        generate_many(model, params, [[5, 2]], config=config, draft=draft)
    with pytest.raises(ValueError, match=message):
        warm_up(model, params, config, draft=draft)


def test_what_is_no_draft_is_refused_with_what_is_one(model, params):
    with pytest.raises(TypeError, match=r"draft is a Draft\(model, params\), not tuple"):
        generate(model, params, prompts(4), config=GenerationConfig(max_length=9), draft=(model, params))
    with pytest.raises(ValueError, match="at least 1, not 0"):
        Draft(model, params, tokens=0)
    with pytest.raises(TypeError, match=r"draft=Draft\(model, params\)"):
        generate(model, params, prompts(4), config=GenerationConfig(max_length=9), assistant_model=model)


def test_a_causal_draft_cannot_read_what_an_encoder_gave(tiny_config):
    lm = BlenderbotForCausalLM(tiny_config)
    with pytest.raises(ValueError, match="a draft cannot read them"):
        generate(
            lm, {}, [[1, 5]], encoder_outputs=np.zeros((1, 4, 24), np.float32), config=GenerationConfig(max_length=9),
            draft=Draft(lm, {}),
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24))
def test_random_settings_give_the_replies_without_a_draft(model, params, seed):
    rng = np.random.default_rng(seed)
    samples = bool(rng.integers(2))
    drawn = {"do_sample": True, "top_p": 0.9, "num_return_sequences": int(rng.integers(1, 4))} if samples else {}
    rules = {name: value for name, value in MORE_RULES.items() if rng.integers(2)}
    length = int(rng.integers(4, 26))
    rules["output_scores"] = bool(rng.integers(2))
    config = GenerationConfig(max_length=length, min_length=int(rng.integers(0, length)), **rules, **drawn)
    ids = prompts(*rng.integers(1, 24, int(rng.integers(1, 5))))
    begin = rng.integers(3, 90, (len(ids), int(rng.integers(1, length - 1)))) if rng.integers(2) else None
    asked = {"config": config, "key": jax.random.key(seed) if samples else None, "decoder_input_ids": begin}
    draft = Draft(model, perturbed(params, float(rng.choice([0, 0.05, 0.2]))), tokens=int(rng.integers(1, 9)))
    plain, drafted = generate(model, params, ids, **asked), generate(model, params, ids, **asked, draft=draft)
    assert_same_replies(drafted, plain)
    if config.output_scores:
        np.testing.assert_allclose(drafted.step_scores, plain.step_scores, atol=1e-4)


@pytest.mark.slow
def test_ensembles_quantised_drafts_given_encodings_and_mapped_keys_decode_as_without_a_draft(model, params):
    ids = prompts(5, 8)
    pair, both = Ensemble((model, model)), (params, perturbed(params, 0.3))
    config = GenerationConfig(max_length=25, min_length=25)
    plain = generate(pair, both, ids, config=config)
    assert_same_replies(generate(pair, both, ids, config=config, draft=Draft(model, quantize(params))), plain)
    same = generate(pair, both, ids, config=config, draft=Draft(pair, both))
    assert_same_replies(same, plain)
    assert int(same.rounds) == math.ceil(24 / 5)
    encoded = model.apply({"params": params}, ids, ids != 0, method="encode")
    given = generate(model, params, ids, encoder_outputs=encoded, config=config, draft=Draft(model, params))
    assert_same_replies(given, generate(model, params, ids, config=config))
    assert int(given.rounds) == math.ceil(24 / 5)
    keys = jax.random.split(jax.random.key(0), 3)
    config = GenerationConfig(do_sample=True, max_length=12)
    draft = Draft(model, perturbed(params, 0.1))

    def sequences(key: jax.Array, **given) -> jax.Array:
        return generate(model, params, jnp.asarray(ids), config=config, key=key, **given).sequences

    mapped = jax.jit(jax.vmap(lambda key: sequences(key, draft=draft)))(keys)
    np.testing.assert_array_equal(mapped, np.stack([sequences(key) for key in keys]))


@pytest.mark.long
def test_a_chatbot_drafts_with_another_checkpoint_and_says_the_same():
    bot = Chatbot.from_pretrained("demo").configured(num_beams=1, max_length=12)
    drafting = bot.with_draft(bot.checkpoint, tokens=2)
    assert drafting.draft.tokens == 2
    said = bot.reply("Do you like music?")
    assert drafting.reply("Do you like music?") == said
    prepared = drafting.prepared()
    assert jax.tree.structure(prepared.draft.params) == jax.tree.structure(prepared.checkpoint.params)
    # The draft's weights are the model's own here, or share what is not a kernel: they are not used up.
    quantised = bot.with_draft(dataclasses.replace(bot.checkpoint, params=quantize(bot.checkpoint.params)), tokens=2)
    for shared in (drafting, quantised):
        assert shared.prepared(donate=True).reply("Do you like music?") == said
    assert bot.reply("Do you like music?") == said


def test_a_draft_with_another_tokenizer_is_refused():
    bot = Chatbot.from_pretrained("demo")
    tokens = bot.checkpoint.tokenizer.get_vocab()
    # Two words that have changed places.
    first, second, *_ = tokens
    tokens[first], tokens[second] = tokens[second], tokens[first]
    other = dataclasses.replace(bot.checkpoint, tokenizer=SimpleNamespace(get_vocab=lambda: tokens))
    with pytest.raises(ValueError, match="the draft's tokenizer has other tokens"):
        bot.with_draft(other)


def test_the_command_line_loads_a_draft_and_refuses_it_where_it_does_nothing(monkeypatch):
    asked = []
    monkeypatch.setattr(Chatbot, "responses", echoing(asked))
    run = CliRunner().invoke
    assert run(main, ["reply", "--draft", "demo", "--draft-tokens", "2", "--beams", "1", "Hi"]).output == "Hi\n"
    assert run(main, ["reply", "--draft", "demo", "--sample", "Hi"]).output == "Hi\n"
    assert [bot.draft.tokens for bot in asked] == [2, Draft.tokens]
    for arguments, says in (
        (["--draft", "demo", "--beams", "3"], "--draft has no effect on a search with 3 beams: add --beams 1"),
        (["--draft-tokens", "2"], "--draft-tokens has no effect without a --draft"),
    ):
        refused = run(main, ["reply", *arguments, "Hi"])
        assert refused.exit_code == 2
        assert says in refused.stderr
