"""Self-chat: many dialogues at once are those held one by one; files, keys, ends and refusals."""

from collections.abc import Mapping
from dataclasses import replace

import jax
import pytest

from blenderbot_jax import Chatbot, Conversation, Packing
from blenderbot_jax.data import Dialogue, read_dialogues
from blenderbot_jax.evaluation.replies import answer
from blenderbot_jax.evaluation.self_chat import OPENINGS, dialogue_lines, self_chat, write_dialogues
from blenderbot_jax.generation import ParlaiConfig, generate_many
from blenderbot_jax.responses import Response

TEXTS = ["Hi!", "Do you like music?", "I have two dogs and a cat."]


@pytest.fixture(scope="module")
def bot():
    # One width: few programs.
    bot = Chatbot.from_pretrained("demo").configured(num_beams=1, max_length=10)
    return replace(bot, packing=Packing(widths=(64,)))


@pytest.fixture(scope="module")
def sampling_bot(bot):
    return bot.configured(do_sample=True)


def saying(text, prompt):
    """A response of this text."""
    return Response(text, 0.0, prompt.conversation, 0, 0, ())


def one_by_one(bots, opening, turns, personas):
    """A dialogue turn after turn, by `respond`."""
    said = list(opening)
    for number in range(len(said), turns):
        name = "AB"[number % 2]
        chat = Conversation(persona=tuple(personas.get(name, ())))
        for place, text in enumerate(said):
            chat = chat.add("bot" if "AB"[place % 2] == name else "user", text)
        said.append(bots[name].respond(chat).text)
    return tuple(("AB"[place % 2], text) for place, text in enumerate(said))


def test_many_dialogues_are_those_held_one_by_one(bot):
    other = bot.configured(min_length=6, max_length=7)
    openings = [["Hi!"], ["Do you like music?", "I do."], ["I have a dog."]]
    personas = [{"A": ["i love hiking."]}, {}, {"B": ["i am a cook.", "i have two cats."]}]
    given = ["Hi!", openings[1], ("I have a dog.",)]
    counts = []
    found = self_chat(bot, other, openings=given, turns=4, personas=personas, on_progress=counts.append)
    bots = {"A": bot, "B": other}
    assert [one.turns for one in found] == [
        one_by_one(bots, opening, 4, traits) for opening, traits in zip(openings, personas, strict=True)
    ]
    assert found[0].personas == {"A": ("i love hiking.",)}
    assert sum(counts) == 3 + 2 + 3
    # The partner does speak for B: with itself the bot says something else.
    assert self_chat(bot, openings=given, turns=4, personas=personas) != found


@pytest.mark.long
def test_a_dialogue_draws_the_same_whatever_others_are_held_beside_it(sampling_bot):
    key = jax.random.key(3)
    many = self_chat(sampling_bot, openings=["Hi!"] * 4, turns=3, key=key)
    assert self_chat(sampling_bot, openings=["Hi!"] * 2, turns=3, key=key) == many[:2]
    assert len({one.turns for one in many}) > 1
    assert self_chat(sampling_bot, openings=["Hi!"] * 4, turns=3, key=jax.random.key(4)) != many


def test_rounds_draw_from_streams_of_their_own(sampling_bot, monkeypatch):
    keys = []

    def recorded(bot, prompts, *, key):
        keys.append(key)
        yield {place: saying("hello", prompt) for place, prompt in prompts.items()}

    monkeypatch.setattr(Chatbot, "answers", recorded)
    self_chat(sampling_bot, openings=TEXTS, turns=4, key=jax.random.key(0))
    wanted = [jax.random.fold_in(jax.random.key(0), number) for number in (1, 2, 3)]
    assert [jax.random.key_data(key).tolist() for key in keys] == [jax.random.key_data(key).tolist() for key in wanted]


def test_every_round_is_one_list_of_all_dialogues_that_go_on(bot, monkeypatch):
    rounds = []

    def script(bot, prompts, **options):
        rounds.append(sorted(prompts))
        for place, prompt in prompts.items():
            yield {place: saying("" if place == 1 and len(rounds) == 2 else f"so {place}", prompt)}

    monkeypatch.setattr(Chatbot, "answers", script)
    found = self_chat(bot, openings=TEXTS, turns=5)
    # The second says nothing in the second round, which is its end.
    assert rounds == [[0, 1, 2], [0, 1, 2], [0, 2], [0, 2]]
    assert [len(one.turns) for one in found] == [5, 2, 5]
    assert found[1].turns == (("A", TEXTS[1]), ("B", "so 1"))


def test_rules_look_at_turns_no_longer_read_where_the_bot_is_told_so(bot, monkeypatch):
    looked_at = []

    def recorded(model, params, prompts, *, contexts=None, **options):
        looked_at.append((prompts, contexts))
        return generate_many(model, params, prompts, contexts=contexts, **options)

    monkeypatch.setattr("blenderbot_jax.chatbot.generate_many", recorded)
    opening = ["I have a dog.", "so it goes on and on " * 30]
    self_chat(bot, openings=[opening], turns=3)
    told = replace(bot, generation_config=ParlaiConfig(num_beams=2, max_length=10, block_full_context=True))
    self_chat(told, openings=[opening], turns=3)
    [(plain, nothing), (prompts, contexts)] = looked_at
    assert nothing is None
    assert plain == prompts
    first = bot.checkpoint.tokenizer.encode("I have a dog.", add_special_tokens=False)
    assert list(contexts[0][: len(first)]) == first != list(prompts[0][: len(first)])
    assert len(contexts[0]) > len(prompts[0]) == 128


def test_answers_come_by_place_with_their_tokens(bot):
    tokenizer = bot.checkpoint.tokenizer
    prompts: Mapping[int, list[int]] = {7: tokenizer.encode("Hi!"), 2: tokenizer.encode("Do you like music?")}
    found = answer(bot, prompts)
    assert list(found) == [7, 2]
    assert found[7].text == bot.reply("Hi!")
    written = len(tokenizer.encode(found[7].text, add_special_tokens=False)) + 1
    assert found[7].tokens == written <= 9


def test_files_are_read_back_as_they_were(tmp_path):
    talks = [
        Dialogue((("A", "Hi!"), ("B", 'Ça va?\n"Well"')), {"B": ("i love hiking.",)}),
        Dialogue((("A", "Bye."),)),
    ]
    path = tmp_path / "sub" / "talk.jsonl"
    write_dialogues(path, talks)
    read = list(read_dialogues(path))
    assert [(one.turns, one.personas) for one in read] == [(one.turns, one.personas) for one in talks]
    assert (
        dialogue_lines(talks, "mine").splitlines()[1].startswith('{"dialogue_id": "mine-00001", "turns": [{"speaker"')
    )


def test_our_own_openings_differ():
    assert len(set(OPENINGS)) == len(OPENINGS) >= 8


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"openings": []}, "at least one opening"),
        ({"openings": [" "]}, "must not be empty"),
        ({"openings": [["Hi!", "Hello.", "How are you?"]]}, "an opening of at least 1 and at most 2, not 3"),
        ({"openings": [[]]}, "not 0"),
        ({"turns": 1}, "at most 0, not 1"),
        ({"personas": [{}, {}]}, "1 openings and 2 personas"),
        ({"personas": [{"bot": ["i am."]}]}, "not of 'bot'"),
        ({"personas": [{"B": ["i love hiking. " * 60]}]}, "the persona takes"),
        ({"key": jax.random.key(0)}, "nothing is drawn"),
    ],
)
def test_what_cannot_be_held_is_refused_before_anything_is_said(bot, monkeypatch, changes, says):
    monkeypatch.setattr(Chatbot, "answers", lambda *_, **__: pytest.fail("something was said"))
    with pytest.raises(ValueError, match=says):
        self_chat(bot, **{"openings": ["Hi!"], "turns": 3, **changes})


def test_a_bot_that_samples_needs_a_key_though_its_partner_does_not(bot, sampling_bot):
    with pytest.raises(ValueError, match="pass key="):
        self_chat(bot, sampling_bot, openings=["Hi!"], turns=3)
    found = self_chat(bot, sampling_bot, openings=["Hi!"], turns=3, key=jax.random.key(0))
    assert len(found[0].turns) == 3
