"""ParlAI's decoding as it is asked for: configuration, files, whole conversations, phrases, the command line."""

import dataclasses
import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner

from blenderbot_jax import chatbot
from blenderbot_jax.chatbot import Chatbot
from blenderbot_jax.cli import main
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.dialogue import Conversation
from blenderbot_jax.generation import GenerationConfig, ParlaiConfig, generate, generate_many
from blenderbot_jax.generation.phrases import block_list, phrase_forms, sentence_ends
from blenderbot_jax.generation.plan import compile_config
from blenderbot_jax.generation.sampling import Replies
from tests.parlai_rules import PROMPTS, RECIPE, assert_same, decode, next_logits, replies, rules_of, tiny_model
from tests.talking import echoing


@pytest.fixture(scope="module")
def tiny(tiny_config):
    return tiny_model(tiny_config)


# ---- configuration ---------------------------------------------------------------------------------------------------


def test_the_recipe_is_that_of_parlai():
    config = GenerationConfig.parlai()
    plan, numbers = compile_config(config, BlenderbotConfig.blenderbot_3b(), 7)
    assert (plan.mode, plan.rows, plan.draws, plan.searches) == ("parlai", 10, "", True)
    assert plan.processors == ("no_repeat_ngram", "encoder_no_repeat_ngram", "min_length")
    assert (numbers.max_length, numbers.min_length, numbers.start_token) == ([129], [21], [1])
    np.testing.assert_array_equal(numbers.length_divisors[0], np.float32(((np.arange(130) + 2) / 6) ** 0.65))
    assert GenerationConfig.parlai(num_beams=3).num_beams == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beam_delay": -1}, "beam_delay must be an integer of at least 0, not -1"),
        ({"top_p_decay": 0.0}, "top_p_decay must be a number above 0 and up to 1"),
        ({"top_p_floor": 1.5}, "top_p_floor must be a number between 0 and 1"),
        ({"sentence_end_ids": "."}, "sentence_end_ids must be a list of token ids"),
        ({"block_full_context": 3}, "block_full_context must be true or false"),
        ({"beam_delay": 3}, "beam_delay=3 .*set do_sample=True"),
        ({"early_stopping": True}, "early_stopping=True: ParlAI's search has an end of its own"),
        ({"do_sample": True, "top_k": 5, "top_p": 0.9}, "top_k=5 and top_p=0.9: ParlAI draws by one of them"),
        ({"do_sample": True, "min_p": 0.1}, "min_p=0.1 is no rule of ParlAI's decoding"),
        ({"do_sample": True, "typical_p": 0.9}, "typical_p=0.9 is no rule of ParlAI's decoding"),
        ({"top_p_decay": 0.9}, "top_p_decay and top_p_floor change top_p, which is not set"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences=3 is more than"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=f"ParlaiConfig: {message}"):
        ParlaiConfig(**fields)


def test_its_fields_are_its_own():
    with pytest.raises(TypeError, match="beam_delay"):
        GenerationConfig(beam_delay=3)  # pyright: ignore[reportCallIssue]
    assert GenerationConfig() != ParlaiConfig()
    assert len({ParlaiConfig(), ParlaiConfig(), ParlaiConfig(sentence_end_ids=[3])}) == 2
    with pytest.raises(ValueError, match="sentence_end_ids names id 8008"):
        compile_config(ParlaiConfig(sentence_end_ids=[8008]), BlenderbotConfig(), 1)


def test_it_survives_a_file(tmp_path):
    own = {"top_p_decay": 0.9, "top_p_floor": 0.3, "sentence_end_ids": [4, 6], "block_full_context": True}
    config = GenerationConfig.parlai(do_sample=True, beam_delay=5, top_p=0.9, bad_words_ids=[[7], [9, 12]], **own)
    config.save_json(tmp_path / "generation_config.json")
    found = GenerationConfig.from_pretrained(tmp_path)
    assert (found, type(found)) == (config, ParlaiConfig)
    assert ParlaiConfig.from_pretrained(tmp_path) == config
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert (written["decoding"], written["beam_delay"]) == ("parlai", 5)
    assert "decoding" not in GenerationConfig.recipe().to_dict()
    with pytest.raises(ValueError, match="decoding may be \"parlai\", or left out, and not 'fairseq'"):
        GenerationConfig.from_dict({"decoding": "fairseq"})


def test_transformers_reads_the_file(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = GenerationConfig.parlai(do_sample=True, top_p=0.9, top_p_decay=0.9, sentence_end_ids=[4])
    config.save_json(tmp_path / "generation_config.json")
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert (theirs.num_beams, theirs.length_penalty, theirs.min_new_tokens) == (10, 0.65, 20)
    theirs.save_pretrained(tmp_path / "again")
    assert GenerationConfig.from_pretrained(tmp_path / "again").num_beams == 10


# ---- whole conversations ---------------------------------------------------------------------------------------------

CONTEXTS = [[11, 12, 13, *range(40, 60), *PROMPTS[0]], [70, *PROMPTS[1]], PROMPTS[2]]


@pytest.mark.long
def test_rules_look_at_the_context_in_place_of_the_prompt(tiny):
    for prompt, context in zip(PROMPTS, CONTEXTS, strict=True):
        best = decode(next_logits(*tiny, prompt), rules_of(RECIPE, tuple(context)))
        assert_same(replies(generate(*tiny, [prompt], config=RECIPE, context_ids=[context])), best)
    for places, out in generate_many(*tiny, PROMPTS, config=RECIPE, contexts=CONTEXTS):
        for row, place in enumerate(places):
            best = decode(next_logits(*tiny, PROMPTS[place]), rules_of(RECIPE, tuple(CONTEXTS[place])))
            assert_same(replies(out, row), best)


@pytest.mark.slow
def test_a_context_bars_with_transformers_rules_too_and_with_encodings_alone(tiny):
    model, params = tiny
    config = GenerationConfig(num_beams=2, max_length=9, encoder_no_repeat_ngram_size=1)
    said = set(np.asarray(generate(model, params, PROMPTS[:1], config=config).sequences)[0, 0, 1:].tolist()) - {0, 2}
    encoded = model.apply({"params": params}, jnp.asarray(PROMPTS[:1]), method="encode")
    for source in ({"input_ids": PROMPTS[:1]}, {"encoder_outputs": encoded}):
        out = generate(model, params, config=config, context_ids=[sorted(said)], **source)
        assert not said & set(np.asarray(out.sequences)[0, 0].tolist())
    traced = jax.jit(lambda ids: generate(model, params, PROMPTS[:1], config=config, context_ids=ids))
    ours = generate(model, params, PROMPTS[:1], config=config, context_ids=[sorted(said)])
    np.testing.assert_array_equal(traced(jnp.asarray([sorted(said)])).sequences, ours.sequences)


def test_contexts_that_do_not_fit_are_refused(tiny):
    full = RECIPE.replace(block_full_context=True)
    for call in (partial(generate, *tiny, PROMPTS[:1]), partial(generate_many, *tiny, PROMPTS[:1])):
        with pytest.raises(ValueError, match="block_full_context=True looks at whole conversations"):
            call(config=full)
    with pytest.raises(ValueError, match="context_ids are for a batch of 2, the prompts for one of 1"):
        generate(*tiny, PROMPTS[:1], config=full, context_ids=CONTEXTS[:2])
    with pytest.raises(ValueError, match=r"context_ids\[0\]\[0, 1\] is 96"):
        generate(*tiny, PROMPTS[:1], config=full, context_ids=[[3, 96]])
    with pytest.raises(ValueError, match=r"prompts\[2\] has no context"):
        generate_many(*tiny, PROMPTS, config=full, contexts=CONTEXTS[:2])
    with pytest.raises(ValueError, match=r"contexts\[1\]\[0, 0\] is -1"):
        generate_many(*tiny, PROMPTS, config=full, contexts={0: [3], 1: [-1], 2: [3]})


@pytest.fixture(scope="module")
def bot():
    config = GenerationConfig.parlai(
        num_beams=2, min_new_tokens=2, max_new_tokens=10, no_repeat_ngram_size=0, encoder_no_repeat_ngram_size=1
    )
    return dataclasses.replace(Chatbot.from_pretrained("demo"), generation_config=config)


def test_a_bot_looks_at_whole_conversations(bot, monkeypatch):
    seen = []

    def replying(model: Any, params: Any, prompts: Any, **options: Any) -> Any:
        seen.append(options.get("contexts"))
        tokens = np.full((len(prompts), 1, 2), 300)
        yield tuple(prompts), Replies(tokens, np.full((len(prompts), 1), 2), np.zeros((len(prompts), 1)), tokens)

    monkeypatch.setattr(chatbot, "generate_many", replying)
    chat = Conversation(persona=("i like the sea.",)).add("user", "Hello, how are you?")
    while bot.checkpoint.encode(chat).dropped_turns < 2:
        chat = chat.add("bot", "I like to walk by the sea with my old dog, in the rain and in the sun.")
    everything = chat.encode(bot.checkpoint.tokenizer, 10_000).input_ids
    full, short = bot.configured(block_full_context=True), Conversation().add("user", "Hi!")
    full.respond(chat)
    full.responses([short, chat])
    bot.respond(chat)
    assert seen == [{0: everything}, {0: short.encode(bot.checkpoint.tokenizer).input_ids, 1: everything}, None]
    assert len(everything) > 128


# ---- phrases, and the command line -----------------------------------------------------------------------------------


def test_a_phrase_has_the_forms_of_parlai():
    assert phrase_forms(" bad Word\n") == (
        "bad Word", "bad Words", "bad word", "bad words", "BAD WORD", "BAD WORDS", "Bad Word", "Bad WordS",
        "Bad Words", "Bad word", "Bad words",
    )  # fmt: skip
    assert phrase_forms("  ") == ()
    assert block_list(["a", "", "A"], lambda text: list(text.encode())) == (
        (97,), (97, 115), (65,), (65, 83), (65, 115),
    )  # fmt: skip


def test_sentences_end_behind_words_and_by_themselves():
    tokenizer = Chatbot.from_pretrained("demo").checkpoint.tokenizer
    ends = sentence_ends(partial(tokenizer.encode, add_special_tokens=False))
    assert {tokenizer.decode([token]).strip() for token in ends} == {".", "?", "!"}
    assert tokenizer.encode("I like it.", add_special_tokens=False)[-1] in ends


@pytest.mark.slow
def test_a_bot_avoids_phrases(bot):
    words = bot.reply("Hello, how are you?").split()
    avoiding = bot.avoiding([words[0], " ".join(words[1:3])])
    assert avoiding.reply("Hello, how are you?").split()[0].lower() != words[0].lower()
    assert len(avoiding.avoiding(["x"]).generation_config.bad_words_ids) > len(
        avoiding.generation_config.bad_words_ids or ()
    )


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="blenderbot-jax")


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        (("--recipe", "parlai"), {"num_beams": 10, "min_new_tokens": 20, "max_new_tokens": 128}),
        (("--recipe", "published"), {"num_beams": 10, "min_length": 20, "forced_eos_token_id": 2}),
        (
            ("--recipe", "parlai", "--beams", 4, "--min-length", 3, "--max-length", 9, "--temperature", 2),
            {"num_beams": 4, "min_length": 3, "min_new_tokens": None, "max_new_tokens": None, "temperature": 2.0},
        ),
        (("--recipe", "parlai", "--sample", "--top-k", 9), {"num_beams": 1, "do_sample": True, "top_k": 9}),
        (("--recipe", "parlai", "--sample", "--beam-delay", 5), {"num_beams": 10, "beam_delay": 5}),
        (
            ("--recipe", "parlai", "--sample", "--top-p", 0.9, "--top-p-decay", 0.9, "--top-p-floor", 0.3),
            {"top_p": 0.9, "top_p_decay": 0.9, "top_p_floor": 0.3},
        ),
        (("--recipe", "parlai", "--full-context"), {"block_full_context": True}),
    ],
)
def test_the_options_of_the_command(monkeypatch, arguments, fields):
    asked = []
    monkeypatch.setattr(Chatbot, "responses", echoing(asked))
    assert run("reply", *arguments, "Hi!").exit_code == 0
    config = asked[0].generation_config
    assert isinstance(config, ParlaiConfig) == ("parlai" in arguments)
    assert {name: getattr(config, name) for name in fields} == fields
    if "--top-p-decay" in arguments:
        assert config.sentence_end_ids


def test_the_commands_block_list(monkeypatch, tmp_path):
    (tmp_path / "block.txt").write_text("music\n\nbad word\n", encoding="utf-8")
    asked = []
    monkeypatch.setattr(Chatbot, "responses", echoing(asked))
    assert run("reply", "--block-list", tmp_path / "block.txt", "Hi!").exit_code == 0
    tokenizer = asked[0].checkpoint.tokenizer
    words = {tokenizer.decode(list(word)).strip() for word in asked[0].generation_config.bad_words_ids}
    assert {"music", "Music", "MUSICS", "bad words"} <= words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--beam-delay", 3), "--beam-delay is of ParlAI's decoding: add --recipe parlai"),
        (("--recipe", "parlai", "--beam-delay", 3), "--beam-delay has no effect unless replies are drawn"),
        (("--recipe", "published", "--full-context"), "--full-context/--no-full-context is of ParlAI's decoding"),
        (("--recipe", "parlai", "--beams", 1, "--draft", "demo"), "--draft is not for ParlAI's decoding"),
        (("--recipe", "fairseq"), "'fairseq' is not one of 'published', 'parlai'"),
        (("--temperature", 2), "--temperature has no effect unless"),
    ],
)
def test_wrong_options_are_refused(arguments, message):
    result = run("reply", *arguments, "Hi!")
    assert result.exit_code == 2
    assert message in result.stderr
