"""`chat` and long conversations: what /history shows of them, and what is told when something no longer fits."""

import io
import re

import pytest
from rich.console import Console

from blenderbot_jax.chatbot import Chatbot
from blenderbot_jax.cli import chat as module
from blenderbot_jax.dialogue import Conversation
from blenderbot_jax.responses import Alternative, Response
from tests.test_cli import talk

LONG = "I went to the lake with my two dogs and my brother. " * 14 + "It was fun."
OLDER = "older turns do not fit into 128 tokens and are not read"


@pytest.fixture(autouse=True)
def echo(monkeypatch):
    """Bots that count what they do not read and say it again; weights and tokenizer are the bundled ones."""

    def respond(bot, conversation, *, key=None):
        encoded, text = bot.checkpoint.encode(conversation), conversation.turns[-1].text[:60]
        dropped = encoded.dropped_turns, encoded.dropped_tokens
        return Response(text, 0.0, conversation.add("bot", text), *dropped, (Alternative(text, 0.0),))

    monkeypatch.setattr(Chatbot, "respond", respond)


def history(said):
    """The lines of the last /history."""
    return said.rpartition("you: /history\n")[2].splitlines()


def test_history_says_how_much_the_model_reads():
    *turns, count = history(talk("Hi!", "/history"))
    assert turns == ["user: Hi!", "bot: Hi!"]
    assert re.fullmatch(r"the model reads all 2 turns, \d+ of 128 tokens", count)


def test_history_marks_the_turns_that_are_no_longer_read():
    lines = [f"This is the sentence of number {number}, and there are more of them to come." for number in range(8)]
    *turns, count = history(talk(*lines, "/history", arguments=("--persona", "i ski.")))
    pattern = r"the model reads the last (\d+) of (\d+) turns, (\d+) of 128 tokens, (\d+) of them the persona's"
    [found] = re.findall(pattern, count)
    kept, of, tokens, pinned = map(int, found)
    assert (len(turns), of) == (16, 16)
    assert 0 < pinned < tokens <= 128
    assert 0 < kept < 16
    assert [turn.endswith(" (no longer read)") for turn in turns] == [True] * (16 - kept) + [False] * kept


def test_history_says_how_much_of_the_newest_turn_is_lost(monkeypatch):
    monkeypatch.setattr(Chatbot, "respond", lambda bot, asked, **_: Response("", 0.0, asked, 0, 0, ()))
    first, second, count = history(talk("Hi!", LONG, "/history"))
    assert first == "user: Hi! (no longer read)"
    [cut] = map(int, re.findall(r" \(its first (\d+) tokens are not read\)$", second))
    assert count == f"the model reads the last of 2 turns without its first {cut} tokens, 128 of 128 tokens"


def test_only_what_is_not_read_is_dim():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="standard", width=400, highlight=False)
    long = Conversation().add("user", "one").add("bot", LONG).add("user", "three")
    module._show_history(long, Chatbot.from_pretrained("demo"), console)
    one, two, three, count = out.getvalue().splitlines()[0], *out.getvalue().splitlines()[-3:]
    assert "\x1b[2mone" in one
    assert "\x1b[2m" in two
    assert "\x1b[2m" not in three
    assert "\x1b[2mthe model reads" in count


def test_history_is_shown_although_the_persona_leaves_no_room():
    *turns, refusal = history(talk("Hi!", f"/persona {LONG}", "/history"))
    assert turns == ["user: Hi!", "bot: Hi!"]
    assert re.search(r"the persona takes \d+ tokens and the model reads 128: shorten it", refusal)


def test_what_is_cut_is_told_once_and_again_only_when_it_is_another():
    said = talk("Hi!", LONG, LONG, "Hi!", LONG.upper(), "Hi!", "/reset", "Hi!", LONG)
    before = said.split("you: ")
    told = [[line for line in part.splitlines() if re.match("older turns|the newest turn", line)] for part in before]
    # Loading, "Hi!", a long turn, itself again, "Hi!", another long one, "Hi!", /reset, "Hi!", the first long one.
    assert [len(lines) for lines in told] == [0, 0, 2, 0, 0, 1, 0, 0, 0, 2]
    older, newest = told[2]
    assert older == OLDER
    assert re.fullmatch(
        r"the newest turn alone is too long and loses its first \d+ tokens: "
        r'"I went to the lake with my two dogs and…",.* more sentences.*',
        newest,
    )
    assert told[9] == told[2]
    assert told[5][0] != newest


def test_a_refused_turn_tells_nothing():
    said = talk("Hi!", arguments=("--persona", LONG))
    assert "leaves no room for a turn" in said
    assert said.count("the persona takes") == 2


@pytest.mark.parametrize(("traits", "told"), [(1, False), (2, False), (9, True)])
def test_a_trait_that_leaves_little_room_is_told(traits, told):
    said = talk(*["/persona i love hiking with my dogs."] * traits, "/persona")
    costs = re.findall(r"the persona takes (\d+) of 128 tokens and leaves (\d+) for what is said", said)
    assert bool(costs) is told
    assert all(int(left) < 64 <= int(cost) for cost, left in costs)


def test_showing_or_clearing_traits_warns_of_nothing():
    traits = ("--persona", "i love hiking with my dogs. " * 10)
    said = talk("/persona", "/persona clear", "/persona", arguments=traits)
    assert said.count("the persona takes") == 1
    assert said.index("the persona takes") < said.index("you: ")
