"""A guarded bot: what filters do to both sides of a conversation."""

import pytest

from blenderbot_jax import Chatbot, Conversation, PhraseFilter
from blenderbot_jax.chatbot import REFUSAL
from blenderbot_jax.offline import answer_rows, survey
from blenderbot_jax.offline.manifest import settings_of
from blenderbot_jax.safety import Finding
from tests.compiling import compiled_programs

ASKED = Conversation(persona=("i ski.",)).add("user", "Do you like music?")


@pytest.fixture(scope="module")
def bot():
    return Chatbot.from_pretrained("demo").configured(num_beams=3, max_length=12)


@pytest.fixture(scope="module")
def said(bot):
    """All that the search finds, best first."""
    return [one.text for one in bot.configured(num_return_sequences=3).respond(ASKED).alternatives]


class Bars:
    """A filter of whole texts, which remembers what it was shown."""

    def __init__(self, *texts):
        self.texts, self.seen = texts, []

    def __call__(self, texts):
        self.seen += texts
        return [Finding("bars", "on the list") if text in self.texts else None for text in texts]


def test_a_filter_that_finds_nothing_changes_nothing(bot):
    plain, guarded = bot.respond(ASKED), bot.guarded(Bars()).respond(ASKED)
    assert guarded == plain
    assert guarded.blocked == ()
    assert len(guarded.alternatives) == 1


def test_a_blocked_reply_gives_way_to_the_next_best_that_passes(bot, said):
    assert len(set(said)) == 3
    response = bot.guarded(Bars(said[0], said[2])).respond(ASKED)
    assert (response.text, response.conversation.turns[-1].text) == (said[1], said[1])
    assert [(one.speaker, one.text, one.finding.filter) for one in response.blocked] == [("bot", said[0], "bars")]
    assert [one.text for one in response.alternatives] == [said[1]]


def test_where_no_reply_passes_the_refusal_is_said_and_all_are_told(bot, said):
    response = bot.guarded(Bars(*said), refusal="Let us not.").respond(ASKED)
    assert (response.text, response.score, response.alternatives) == ("Let us not.", 0.0, ())
    assert [one.text for one in response.blocked] == said
    assert response.conversation.turns[-1].text == "Let us not."


def test_a_blocked_line_is_refused_and_not_read_again(bot):
    first = Conversation(persona=("i ski.",)).add("user", "Hi!").add("bot", "Hello.")
    bars = Bars("Do you like music?")
    response = bot.guarded(bars).respond(first.add("user", "Do you like music?"))
    assert (response.text, response.conversation) == (REFUSAL, first)
    assert [(one.speaker, one.text) for one in response.blocked] == [("user", "Do you like music?")]
    assert bars.seen == ["Do you like music?"]  # what was said before has been looked at then, and nothing was decoded


def test_warming_up_compiles_what_a_guarded_bot_decodes_with(bot):
    guarded = bot.configured(num_beams=4).guarded(Bars())
    with compiled_programs("decode") as warmed:
        guarded.warm_up(batch_sizes=[1], source_widths=[16])
    with compiled_programs("decode") as later:
        guarded.reply("Hi!")
    assert (len(warmed), later) == (1, [])


@pytest.mark.long
def test_many_are_filtered_each_on_its_own_and_keep_their_places(bot, said):
    texts = ["Do you like music?", "Tell me about rock bands.", "Hi!"]
    plain, counted = bot.replies(texts), []
    guarded = bot.guarded(PhraseFilter(["rock band"]), Bars(plain[0]))
    responses = guarded.responses(texts, on_progress=counted.append)
    assert responses[1].text == REFUSAL
    assert responses[2].text == plain[2]
    assert responses[0].text not in (plain[0], "")
    assert sum(counted) == 3


def test_rows_of_a_corpus_say_what_was_blocked(bot):
    rows = [{"text": "Tell me about rock bands."}, {"text": "Hi!"}]
    first, second = answer_rows(bot.guarded(PhraseFilter(["rock band"])), rows)
    assert first["reply"] == REFUSAL
    assert first["blocked"] == [
        {
            "speaker": "user",
            "text": "Tell me about rock bands.",
            "filter": "phrases",
            "reason": "holds the phrase 'rock band'",
        }
    ]
    assert "blocked" not in second


def test_a_presentable_bot_writes_capitals(bot, said):
    response = bot.presentable().configured(num_return_sequences=3).respond(ASKED)
    assert [one.text.casefold().replace(" ", "") for one in response.alternatives] == [
        text.casefold().replace(" ", "") for text in said
    ]
    assert response.text[0].isupper()


def test_parts_of_a_corpus_know_their_filters(bot, tmp_path):
    rows = tmp_path / "rows.txt"
    rows.write_text("Hi!\n")
    corpus, mark = survey([rows]), "mark"
    plain = settings_of(bot, mark, None, corpus)
    others = [
        bot.guarded(PhraseFilter(["tea"])),
        bot.guarded(PhraseFilter(["milk"])),
        bot.guarded(PhraseFilter(["tea"]), refusal="No."),
        bot.presentable(),
        bot.guarded(Bars()),
    ]
    found = [settings_of(one, mark, None, corpus) for one in others]
    assert len({str(settings) for settings in (plain, *found)}) == 6
    assert found[0] == settings_of(others[0], mark, None, corpus)
