"""Chatbot: text in, text out, with the bundled model; nothing here depends on the words it says."""

import jax
import numpy as np
import pytest

from blenderbot_jax import (
    BlenderbotForConditionalGeneration,
    BlenderbotSmallConfig,
    Chatbot,
    Conversation,
    save_pretrained,
)
from blenderbot_jax.tokenizer import BlenderbotSmallTokenizer
from tests.test_tokenizer_small import MERGES, VOCAB

# Three that fit 16 places and four that do not, so that four decoded together are always 32 wide.
TEXTS = [
    "The summer I spent by the sea with my two sisters and our old dog was the best of my whole life, I think.",
    "Hi!",
    "My friends are cool but they eat too many carbs, and they drink far too much coffee in the evening as well.",
    "Do you like music?",
    "I went to the market and bought apples, pears, plums, bread, butter, cheese, and a bottle of red wine for us.",
    "Yes.",
    "When I was younger I used to play football with my brother every Sunday, rain or shine, and we always lost.",
]
SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")


@pytest.fixture(scope="module")
def bot():
    return Chatbot.from_pretrained("demo").configured(num_beams=1, max_length=12)


@pytest.fixture(scope="module")
def beam_bot(bot):
    return bot.configured(num_beams=3, num_return_sequences=3)


@pytest.fixture(scope="module")
def sampling_bot(bot):
    return bot.configured(do_sample=True)


def test_a_reply_is_text_without_special_tokens(bot):
    reply = bot.reply("Hello, how are you?")
    assert isinstance(reply, str)
    assert reply == reply.strip() != ""
    assert not any(token in reply for token in SPECIALS)


def test_the_bundled_model_brings_its_own_decoding():
    bot = Chatbot.from_pretrained("demo")
    assert bot.generation_config == bot.checkpoint.generation_config
    assert bot.generation_config.num_beams > 1


@pytest.mark.long
@pytest.mark.parametrize("kind", [pytest.param("bot", marks=pytest.mark.slow), "beam_bot"])
def test_replies_are_in_order_and_equal_to_one_by_one(kind, request):
    bot = request.getfixturevalue(kind)
    counts = []
    together = bot.replies(TEXTS, batch_size=4, on_progress=counts.append)
    assert together == [bot.reply(text) for text in TEXTS]
    assert len(set(together)) > 1
    assert counts == [4, 3]


def test_replies_of_nothing_is_nothing(bot):
    assert bot.replies([]) == []


def test_wrong_arguments_of_replies_are_refused(bot):
    with pytest.raises(TypeError, match="list of texts"):
        bot.replies("Hi!")
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        bot.replies(["Hi!"], batch_size=0)


def test_inputs_that_cannot_be_answered_are_refused_by_place_before_anything_is_decoded(bot):
    counts = []
    with pytest.raises(ValueError, match=r"2 of 3 inputs .* inputs\[1\]: .* empty; inputs\[2\]: .* string, not int"):
        bot.replies(["Hi!", " ", 7], on_progress=counts.append)
    assert counts == []
    with pytest.raises(ValueError, match=r"inputs\[4\]: .* empty; and 15 more"):
        bot.replies([""] * 20)


def test_refused_inputs_leave_the_others_in_their_places(bot):
    refused, counts = {}, []
    inputs = ["Hi!", " ", TEXTS[0], Conversation()]
    replies = bot.replies(inputs, on_refused=refused.__setitem__, on_progress=counts.append)
    assert replies == [bot.reply("Hi!"), "", bot.reply(TEXTS[0]), ""]
    assert list(refused) == [1, 3]
    assert "must not be empty" in str(refused[1])
    assert "no turns yet" in str(refused[3])
    assert sum(counts) == 2


def test_conversations_are_answered_together_as_one_by_one(bot):
    chats = [Conversation().add("user", TEXTS[0]).add("bot", "Oh?").add("user", text) for text in TEXTS[1:4]]
    chats.append(Conversation(persona="i love hiking.").add("user", "Hi!"))
    for one, chat in zip(bot.responses(chats), chats, strict=True):
        alone = bot.respond(chat)
        assert (one.text, one.conversation) == (alone.text, alone.conversation)
        assert one.score == pytest.approx(alone.score, rel=1e-4)


def test_respond_adds_the_reply_as_a_turn(bot):
    chat = Conversation().add("user", "Hi!")
    response = bot.respond(chat)
    assert response.conversation == chat.add("bot", response.text)
    assert (response.dropped_turns, response.dropped_tokens) == (0, 0)
    assert [found.text for found in response.alternatives] == [response.text]


def test_alternatives_come_best_first_as_many_as_asked_for(beam_bot):
    response = beam_bot.respond(Conversation().add("user", "Hi!"))
    scores = [found.score for found in response.alternatives]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert all(np.isfinite(scores))
    assert (response.text, response.score) == (response.alternatives[0].text, scores[0])
    assert len({found.text for found in response.alternatives}) > 1


def test_what_was_said_before_changes_the_reply(beam_bot):
    after = Conversation().add("user", "I have two dogs.").add("bot", "Hi!")
    assert beam_bot.respond(after).score != beam_bot.respond(Conversation().add("bot", "Hi!")).score


def test_sampling_repeats_with_its_key_and_varies_with_another(sampling_bot):
    first = sampling_bot.reply("Hi!", key=jax.random.key(0))
    assert first == sampling_bot.reply("Hi!", key=jax.random.key(0))
    assert len({sampling_bot.reply("Hi!", key=jax.random.key(seed)) for seed in range(8)}) > 1


@pytest.mark.long
def test_equal_utterances_draw_differently_and_the_same_however_they_are_packed(sampling_bot):
    key = jax.random.key(0)
    replies = sampling_bot.replies(["Hi!"] * 8, batch_size=1, key=key)
    assert len(set(replies)) > 1
    assert sampling_bot.replies(["Hi!"] * 8, batch_size=4, key=key) == replies
    # Nor does it matter what else is in the list.
    others = ["Hi!", *TEXTS, "Hi!"]
    assert sampling_bot.replies(others, batch_size=4, key=key)[0] == replies[0] == sampling_bot.reply("Hi!", key=key)
    refused = [" ", *["Hi!"] * 7]
    assert sampling_bot.replies(refused, batch_size=4, key=key, on_refused=lambda *_: None)[1:] == replies[1:]


def test_a_key_goes_with_sampling_and_only_with_it(bot, sampling_bot):
    with pytest.raises(ValueError, match="pass key"):
        sampling_bot.reply("Hi!")
    with pytest.raises(ValueError, match="nothing is drawn"):
        bot.reply("Hi!", key=jax.random.key(0))


def test_a_long_history_says_how_many_turns_were_dropped(bot):
    chat = Conversation()
    for _ in range(6):
        for text in TEXTS:
            chat = chat.add("user", text)
    response = bot.respond(chat)
    assert 0 < response.dropped_turns < len(chat.turns)
    assert len(response.conversation.turns) == len(chat.turns) + bool(response.text)


def test_a_turn_longer_than_the_model_reads_loses_its_front(bot):
    response = bot.respond(Conversation().add("user", " ".join(TEXTS * 4)))
    assert response.dropped_turns == 0
    assert response.dropped_tokens > 0


# The 90M family


def small_bot(folder, tokenizer, rows):
    """A random post-norm model that says the tokens `rows` and no others, saved with its tokenizer and loaded."""
    config = BlenderbotSmallConfig(
        vocab_size=len(tokenizer), max_position_embeddings=48, d_model=8, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8, dropout=0.0,
    )  # fmt: skip
    params = BlenderbotForConditionalGeneration(config).init_params(jax.random.key(0))
    bias = np.full((1, len(tokenizer)), -1e4, np.float32)
    bias[0, rows] = 1e3
    save_pretrained(folder, config, params | {"final_logits_bias": bias}, tokenizer=tokenizer)
    return Chatbot.from_pretrained(folder).configured(num_beams=1, max_length=6, no_repeat_ngram_size=2)


@pytest.fixture(scope="module")
def toy_small_bot(tmp_path_factory):
    tokenizer = BlenderbotSmallTokenizer(VOCAB, MERGES, mode="parlai")
    return small_bot(tmp_path_factory.mktemp("small"), tokenizer, [VOCAB[token] for token in ("hi", "'", "act")])


def test_a_90m_folder_talks_in_plain_strings(toy_small_bot):
    reply = toy_small_bot.reply("Hi, act!")
    assert set(reply) <= set("hi'act ")
    assert reply == reply.strip() != ""
    # The tokens know no spaces; those around an apostrophe are closed up.
    assert "' " not in reply.rstrip("' ")
    assert " '" not in reply.rstrip("' ")
    assert toy_small_bot.replies(["Hi, act!", "hi"]) == [reply, toy_small_bot.reply("hi")]


def test_a_90m_conversation_goes_on_with_the_reply(toy_small_bot):
    chat = Conversation(persona=("i act.",)).add("user", "Hi! __end__ (really)")
    response = toy_small_bot.respond(chat)
    assert response.conversation == chat.add("bot", response.text)
    assert toy_small_bot.respond(response.conversation.add("user", "adapt")).dropped_turns == 0


def test_a_90m_model_reads_as_many_tokens_as_it_has_positions(toy_small_bot):
    assert toy_small_bot.respond(Conversation().add("user", "hi " * 48)).dropped_tokens == 0
    assert toy_small_bot.respond(Conversation().add("user", "hi " * 50)).dropped_tokens == 2


def test_the_published_90m_vocabulary_serves_a_chatbot(data_folder, tmp_path):
    tokenizer = BlenderbotSmallTokenizer.from_pretrained(
        data_folder / "tokenizers" / "blenderbot_small-90M", mode="parlai"
    )
    bot = small_bot(tmp_path, tokenizer, tokenizer.encode("i don't know."))
    assert bot.checkpoint.tokenizer == BlenderbotSmallTokenizer.from_pretrained(tmp_path, model_max_length=48)
    response = bot.respond(Conversation(persona="i love hiking.").add("user", "Hello (there), __end__ you?\nsam"))
    assert response.text
    assert not any(special in response.text for special in tokenizer.all_special_tokens)
    assert " ." not in response.text
