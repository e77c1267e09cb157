"""Reranking by a reverse model, against scores had one pair at a time; and the pairs it is made of."""

import math
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from blenderbot_jax import Chatbot, Checkpoint, Conversation, Packing
from blenderbot_jax.evaluation.pairs import reply_log_probs
from blenderbot_jax.evaluation.rerank import rerank as rerank_in_batches
from blenderbot_jax.responses import Alternative, Response
from blenderbot_jax.scoring import token_log_probs
from blenderbot_jax.tokenizer import BlenderbotSmallTokenizer
from tests.test_chatbot import small_bot
from tests.test_tokenizer_small import MERGES, VOCAB

# Every batch of four: few programs.
rerank = partial(rerank_in_batches, batch_size=4)


@pytest.fixture(scope="module")
def bot():
    # One width: few programs.
    bot = Chatbot.from_pretrained("demo").configured(num_beams=3, num_return_sequences=3, max_length=10)
    return replace(bot, packing=Packing(widths=(64,)))


@pytest.fixture(scope="module")
def reverse():
    """Another model of the same size: the bundled one with its weights shifted."""
    demo = Checkpoint.from_pretrained("demo")
    params = jax.tree.map(lambda leaf: leaf * 0.9, demo.params)
    return Checkpoint(demo.model, params, demo.tokenizer, demo.generation_config)


CHATS = [
    "Do you like music?",
    Conversation(persona=("i love hiking.",)).add("user", "Hi!").add("bot", "Hello.").add("user", "What do you do?"),
]


def log_prob(checkpoint, chat, text, per_token):
    """log p of a text as the reply to a conversation, by itself."""
    tokenizer = checkpoint.tokenizer
    labels = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    found = scored_alone(checkpoint, checkpoint.encode(chat).input_ids, labels)
    return float(found.astype(np.float64).sum()) / (len(labels) if per_token else 1)


def scored_alone(checkpoint, source, labels, width=48):
    """log p of each label, by a batch of one; padded, so that one program serves all."""
    ids = np.pad(np.array([source]), ((0, 0), (0, width - len(source))))
    mask = np.arange(width)[None] < len(source)
    target = np.pad(np.array([labels]), ((0, 0), (0, width - len(labels))), constant_values=-100)
    found = token_log_probs(checkpoint.model, checkpoint.params, ids, mask.astype(np.int32), target)
    return np.asarray(found)[0, : len(labels)]


def plainly_ranked(bot, reverse, given, weight, per_token):
    chat = given if isinstance(given, Conversation) else Conversation().add("user", given)
    scored = []
    for one in bot.respond(chat).alternatives:
        fits = log_prob(bot.checkpoint, chat, one.text, per_token)
        tells = log_prob(reverse, Conversation().add("user", one.text), chat.turns[-1].text, per_token)
        scored.append((fits + weight * tells, one.text))
    return sorted(scored, reverse=True)


@pytest.mark.long
@pytest.mark.parametrize(("weight", "per_token"), [(0.0, False), (0.5, False), (0.5, True), (50.0, False)])
def test_replies_are_ranked_as_one_by_one(bot, reverse, weight, per_token):
    found = rerank(bot, reverse, CHATS, weight=weight, per_token=per_token)
    for response, chat in zip(found, CHATS, strict=True):
        wanted = plainly_ranked(bot, reverse, chat, weight, per_token)
        assert [one.text for one in response.alternatives] == [text for _, text in wanted]
        assert [one.score for one in response.alternatives] == pytest.approx([score for score, _ in wanted], rel=1e-4)
        assert (response.text, response.score) == (wanted[0][1], response.alternatives[0].score)
        assert response.conversation.turns[-1].text == response.text


def test_a_heavy_weight_changes_the_order(bot, reverse):
    plain, heavy = (rerank(bot, reverse, CHATS, weight=weight) for weight in (0.0, 50.0))
    assert [one.text for one in plain] != [one.text for one in heavy]


def test_a_reverse_model_may_have_a_tokenizer_of_its_own(bot, tmp_path):
    tokenizer = BlenderbotSmallTokenizer(VOCAB, MERGES, mode="parlai")
    reverse = small_bot(tmp_path, tokenizer, [VOCAB["hi"]]).checkpoint
    [response] = rerank(bot, reverse, CHATS[:1])
    wanted = plainly_ranked(bot, reverse, CHATS[0], 0.5, False)
    assert [one.text for one in response.alternatives] == [text for _, text in wanted]


def scripted(monkeypatch, *texts):
    def responses(bot, chats, **options):
        found = tuple(Alternative(text, 0.0) for text in texts)
        return [Response(texts[0], 0.0, chat, 0, 0, found) for chat in chats]

    monkeypatch.setattr(Chatbot, "responses", responses)


def test_an_empty_reply_comes_last_and_equal_ones_stay_together(bot, reverse, monkeypatch):
    scripted(monkeypatch, "", "Yes.", "Yes.")
    [response] = rerank(bot, reverse, ["Do you like music?"])
    assert [one.text for one in response.alternatives] == ["Yes.", "Yes.", ""]
    assert response.alternatives[0].score == response.alternatives[1].score
    assert response.alternatives[2].score == -math.inf
    assert response.conversation.turns[-1].text == response.text == "Yes."


def test_nothing_but_empty_replies_leaves_the_conversation_as_it_was(bot, reverse, monkeypatch):
    scripted(monkeypatch, "", "")
    [response] = rerank(bot, reverse, ["Hi!"])
    assert (response.text, len(response.conversation.turns)) == ("", 1)


def test_texts_that_are_too_long_lose_their_end(bot, reverse, monkeypatch):
    scripted(monkeypatch, "so " * 300, "Yes.")
    [response] = rerank(bot, reverse, ["Do you like music? " * 60])
    assert all(math.isfinite(one.score) for one in response.alternatives)


def test_of_nothing_is_nothing(bot, reverse):
    assert rerank(bot, reverse, []) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"weight": -1.0}, "weight is a finite number of at least 0, not -1.0"),
        ({"weight": math.nan}, "not nan"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"key": jax.random.key(0)}, "nothing is drawn"),
        ({"inputs": [" "]}, "must not be empty"),
    ],
)
def test_what_cannot_be_reranked_is_refused(bot, reverse, changes, says):
    with pytest.raises(ValueError, match=says):
        rerank(bot, reverse, **{"inputs": ["Hi!"], **changes})


def test_a_bot_of_one_reply_is_refused(bot, reverse):
    with pytest.raises(ValueError, match=r"bot.configured\(num_beams=10, num_return_sequences=10\)"):
        rerank(bot.configured(num_return_sequences=1), reverse, ["Hi!"])


def test_pairs_are_scored_together_as_one_by_one(bot):
    checkpoint, chance = bot.checkpoint, np.random.default_rng(0)
    lengths = [(3, 2), (4, 2), (128, 128), (5, 16), (3, 3), (16, 4), (2, 2)]
    pairs = [tuple(chance.integers(5, 4000, size).tolist() for size in both) for both in lengths]
    found = reply_log_probs(checkpoint, pairs, batch_size=4)
    for (source, target), one in zip(pairs, found, strict=True):
        assert one == pytest.approx(scored_alone(checkpoint, source, target, width=128), abs=1e-3)
    with pytest.raises(ValueError, match="knows positions for 128"):
        reply_log_probs(checkpoint, [([5] * 129, [2])])
