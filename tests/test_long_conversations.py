"""Long conversations: what is read of them and what is lost, in words and numbers that agree with the ids."""

import doctest
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blenderbot_jax import Checkpoint, long_conversations
from blenderbot_jax.dialogue import Conversation
from blenderbot_jax.long_conversations import (
    explain_cut,
    explain_persona,
    persona_tokens,
    room_for_turns,
    summary,
)
from tests.test_dialogue import SMALL_LAYOUT, Bytes, said

QUOTE = re.compile(r'"([^"]*?)…?"')


def test_the_examples_hold():
    tokenizer = Checkpoint.from_pretrained("demo").tokenizer
    results = doctest.testmod(long_conversations, extraglobs={"tokenizer": tokenizer})
    assert (results.failed, results.attempted > 5) == (0, True)


@pytest.mark.parametrize(
    ("chat", "limit", "expected"),
    [
        (said("hi"), 9, "the model reads the only turn, 4 of 9 tokens"),
        (said("hi", "yo"), 9, "the model reads all 2 turns, 9 of 9 tokens"),
        (said("a", "hi", "yo"), 9, "the model reads the last 2 of 3 turns, 9 of 9 tokens"),
        (said("hi", "yo"), 8, "the model reads the last of 2 turns, 4 of 8 tokens"),
        (said("a", "0123456789"), 5,
         "the model reads the last of 2 turns without its first 7 tokens, 5 of 5 tokens"),
        (said("01234"), 6, "the model reads the only turn without its first 1 token, 6 of 6 tokens"),
        (said("hi", persona=("kind",)), 40, "the model reads the only turn, 25 of 40 tokens, 21 of them the persona's"),
    ],
)  # fmt: skip
def test_the_summary_counts_turns_and_tokens(chat, limit, expected):
    assert summary(chat, chat.encode(Bytes(), limit)) == expected


def test_a_persona_costs_its_lines_and_what_separates_them():
    chat = Conversation(persona=("kind", "your persona: i ski."))
    assert persona_tokens(chat, Bytes()) == (len(" your persona: kind") + 2, len("\nyour persona: i ski."))
    assert explain_persona(chat, Bytes(), 100) == (
        'the persona takes 42 of 100 tokens and leaves 57 for what is said: "kind" 21, "i ski." 21'
    )
    assert room_for_turns(chat, Bytes(), 100) == 57
    assert persona_tokens(Conversation(), Bytes()) == ()
    assert explain_persona(Conversation(), Bytes(), 100) == ""


def test_a_persona_without_room_for_a_turn_is_explained_before_it_is_refused():
    chat = said("hi", persona=("kind",))
    for limit in (5, 22):
        with pytest.raises(ValueError, match="shorten it"):
            chat.encode(Bytes(), limit)
        for asked in (chat, chat.without_turns()):
            [line] = explain_cut(asked, Bytes(), limit)
            assert line == f'the persona takes 21 of {limit} tokens and leaves no room for a turn: "kind" 21'
    chat.encode(Bytes(), 23)


@pytest.mark.parametrize("tokenizer", [Bytes(), SMALL_LAYOUT])
def test_nothing_is_said_where_all_is_read(tokenizer):
    assert explain_cut(said("hi", "yo", persona=("kind",)), tokenizer, 64) == ()
    assert explain_cut(Conversation(), tokenizer, 64) == ()


def test_older_turns_are_told_without_their_number():
    chat = said(*["aaaa"] * 9, persona=("kind",))
    persona, turns = explain_cut(chat, Bytes(), 40)
    assert persona.startswith("the persona takes 21 of 40 tokens and leaves 18 for what is said:")
    assert turns == "older turns do not fit into 40 tokens and are not read"
    assert explain_cut(chat.add("bot", "b"), Bytes(), 40) == (persona, turns)


@pytest.mark.parametrize(
    ("limit", "lost"),
    [
        (20, '1 token: the beginning of "One."'),
        (16, '5 tokens: "One."'),
        (15, '6 tokens: "One." and the beginning of "Two?"'),
        (10, '11 tokens: "One.", "Two?" and the beginning of "Three!"'),
        (5, '16 tokens: "One.", "Two?" and the beginning of "Three!"'),
        (4, '17 tokens: "One.", "Two?" and "Three!"'),
        (3, '18 tokens: "One.", "Two?" and "Three!"'),
        (2, '19 tokens: "One.", "Two?", "Three!" and the beginning of "Fo"'),
    ],
)  # fmt: skip
def test_the_sentences_that_are_lost_are_named(limit, lost):
    # Their ends are at 5, 10, 17 and 20 of 20 bytes, one of them a newline, and an end token follows.
    [line] = explain_cut(said("One. Two? Three!\nFo"), Bytes(), limit)
    assert line == f"the newest turn alone is too long and loses its first {lost}"


def test_many_and_long_sentences_are_named_briefly():
    text = "A sentence that goes on and on, far beyond what anybody quotes. " + "Yes. " * 50
    [line] = explain_cut(said(text), Bytes(), 30)
    assert (
        '"A sentence that goes on and on, far bey…", "Yes.", "Yes.", 42 more sentences and the beginning of "Yes."'
        in line
    )
    [line] = explain_cut(said("x" * 500), Bytes(), 30)
    assert line.endswith(f'the beginning of "{"x" * 39}…"')


def test_a_very_long_turn_is_explained_by_few_looks():
    asked = []

    class Counting(Bytes):
        def encode(self, text, **options):
            asked.append(len(text))
            return super().encode(text, **options)

    explain_cut(said("Yes. " * 20_000), Counting(), 128)
    assert len(asked) < 40


def test_without_a_limit_nothing_can_be_told():
    with pytest.raises(ValueError, match="pass max_tokens"):
        explain_cut(said("hi"), Bytes())
    assert explain_cut(said("hi"), Bytes(model_max_length=9)) == ()


TEXTS = st.text("ab. !\n", min_size=1, max_size=30).filter(str.strip)


@settings(deadline=None, max_examples=200)
@given(turns=st.lists(TEXTS, min_size=1, max_size=4), persona=st.lists(TEXTS, max_size=2), spare=st.integers(2, 40))
def test_what_is_told_agrees_with_the_ids(turns, persona, spare):
    chat, tokenizer = said(*turns, persona=persona), Bytes()
    limit = sum(persona_tokens(chat, tokenizer)) + spare
    encoded = chat.encode(tokenizer, limit)
    assert encoded.pinned_tokens == sum(persona_tokens(chat, tokenizer))
    lines = explain_cut(chat, tokenizer, limit)
    assert any("older turns" in line for line in lines) == (encoded.dropped_turns > 0)
    newest = [line for line in lines if "the newest turn" in line]
    assert len(newest) == (encoded.dropped_tokens > 0)
    assert any(line.startswith("the persona") for line in lines) == bool(persona and len(lines) > 0)
    for line in newest:
        # What is named begins within what was cut, byte for byte; white space is shown as one space.
        cut = " ".join(bytes(i - 10 for i in Bytes().encode(
            chat.turns[-1].text, add_special_tokens=False, split_special_tokens=True
        )[: encoded.dropped_tokens]).decode().split())  # fmt: skip
        first = QUOTE.search(line)
        assert first is None or cut[:1] in ("", first[1][:1])
