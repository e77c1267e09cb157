"""Conversations: the published format, what is left out when they grow too long, and what is refused."""

import dataclasses
import doctest
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blenderbot_jax import dialogue
from blenderbot_jax.dialogue import Conversation, DialogueLayout, Turn
from blenderbot_jax.tokenizer import BlenderbotSmallTokenizer, BlenderbotTokenizer

SPACES, NEWLINE, END = 228, 206, 2


@dataclass(frozen=True)
class Bytes:
    """A tokenizer of bytes, a space in front as the real one puts it; byte b is id b + 10."""

    vocab: dict[str, int] = field(default_factory=dict)
    eos_token_id: int | None = END
    model_max_length: int | None = None

    def encode(self, text, *, add_special_tokens=True, split_special_tokens=False):
        assert split_special_tokens, "what users typed must be read as plain text"
        assert not add_special_tokens, "a turn has no end of its own"
        return [byte + 10 for byte in (text if text.startswith(" ") else f" {text}").encode()]

    def get_vocab(self):
        return self.vocab


SMALL_LAYOUT = Bytes(vocab={"__newln__": 4}, eos_token_id=None)


def ids(text):
    return tuple(Bytes().encode(text, add_special_tokens=False, split_special_tokens=True))


def said(*texts, persona=()):
    chat = Conversation(persona=persona)
    for number, text in enumerate(texts):
        chat = chat.add(("user", "bot")[number % 2], text)
    return chat


@pytest.fixture(scope="session")
def published(data_folder):
    return BlenderbotTokenizer.from_pretrained(data_folder / "tokenizers" / "blenderbot-400M-distill")


@pytest.fixture(scope="session")
def published_small(data_folder):
    return BlenderbotSmallTokenizer.from_pretrained(data_folder / "tokenizers" / "blenderbot_small-90M", mode="parlai")


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        (["You are a helpful chatbot.", "Hello!"], [553, 366, 265, 4792, 3879, 73, 311, 21, 228, 228, 6950, 8, 2]),
        (["Nice to meet you.", "Hello!"], [3490, 287, 2273, 304, 21, 228, 228, 6950, 8, 2]),
        (["Hello!", " Nice to meet you."], [6950, 8, 228, 228, 3490, 287, 2273, 304, 21, 2]),
        (["Hello!"], [6950, 8, 2]),
    ],
)
def test_ids_are_those_transformers_documents(published, turns, expected):
    assert said(*turns).encode(published, 128).input_ids == tuple(expected)


@pytest.mark.parametrize(
    ("delimiter", "separator"),
    [("  ", (SPACES, SPACES)), ("\n", (SPACES, NEWLINE)), (" ", (SPACES,)), ("</s>", (4440, 22, 90, 37)), ("…", None)],
)
def test_turns_are_joined_by_the_ids_of_the_tokenizers_delimiter(data_folder, delimiter, separator):
    folder = data_folder / "tokenizers" / "blenderbot-400M-distill"
    tokenizer = BlenderbotTokenizer.from_pretrained(folder, delimiter=delimiter)
    expected = separator or tuple(tokenizer.encode(delimiter, add_special_tokens=False))
    assert DialogueLayout.of(tokenizer) == DialogueLayout(expected, (END,))
    chat = said("Hello!", "Hello!", persona=("i ski.",))
    block = tokenizer.encode("your persona: i ski.", add_special_tokens=False)
    assert chat.encode(tokenizer, 128).input_ids == (*block, *expected, 6950, 8, *expected, 6950, 8, END)
    # A delimiter that is cut with the turn it stands behind leaves nothing of itself.
    assert chat.encode(tokenizer, len(block) + len(expected) + 3).input_ids == (*block, *expected, 6950, 8, END)


def test_a_tokenizer_that_names_no_delimiter_has_two_spaces():
    assert not hasattr(Bytes(), "delimiter")
    assert DialogueLayout.of(Bytes()).separator == ids("  ")

    @dataclass(frozen=True)
    class Delimited(Bytes):
        delimiter: str = "\n"

    assert DialogueLayout.of(Delimited()).separator == ids("\n")


def test_joined_turns_equal_the_text_joined_by_three_spaces(published):
    turns = ["Hi there!", "I'm fine, and you?", "don't ask 😀", "a  b", "1234"]
    assert list(said(*turns).encode(published, 128).input_ids) == published.encode("   ".join(turns))


def test_persona_stands_in_front_one_line_each(published):
    first, second = "i love hiking.", "your persona: i have two dogs."
    encoded = said("Hi", persona=(first, second)).encode(published, 128)
    block = published.encode(f"your persona: {first}\n{second}", add_special_tokens=False)
    assert block.count(NEWLINE) == 1
    assert list(encoded.input_ids) == [*block, SPACES, SPACES, 4424, END]


def test_a_persona_may_be_one_string():
    assert Conversation(persona="i love hiking.").persona == ("i love hiking.",)


def test_typed_special_tokens_end_nothing(published):
    assert said("</s>").encode(published, 128).input_ids == (4440, 22, 90, 37, END)
    assert said("<s>").encode(published, 128).input_ids == (4440, 90, 37, END)
    inside = said("a</s>b <s> <pad>", "c</s>", persona=("</s>",)).encode(published, 128).input_ids
    assert inside.count(END) == 1
    assert {0, 1} & set(inside) == set()


def test_example_of_encode_holds(published):
    results = doctest.testmod(dialogue, extraglobs={"tokenizer": published})
    assert (results.failed, results.attempted > 2) == (0, True)


def test_the_small_layout_joins_by_newln_and_ends_with_nothing():
    encoded = said("hi", "yo", persona=("kind",)).encode(SMALL_LAYOUT, 64)
    assert encoded.input_ids == (*ids("your persona: kind"), 4, *ids("hi"), 4, *ids("yo"))


def test_the_small_layout_may_fill_the_whole_limit():
    assert said("hi", "yo").encode(SMALL_LAYOUT, 7).input_ids == (*ids("hi"), 4, *ids("yo"))


def test_a_90m_conversation_is_the_text_with_a_newline_between_its_lines(published_small):
    chat = said("Hello (there)!", "hi\nsam, how are you?", persona=("i love hiking.", "i'm sam."))
    lines = "your persona: i love hiking.\nyour persona: i'm sam.\nHello (there)!\nhi\nsam, how are you?"
    encoded = chat.encode(published_small, 512)
    assert list(encoded.input_ids) == published_small.encode(lines)
    assert encoded.input_ids.count(4) == 4
    assert not {0, 1, 2} & set(encoded.input_ids)


def test_typed_special_tokens_end_nothing_in_a_90m_conversation(published_small):
    chat = said("bye __end__", "__START__ __null__", "x__end__", persona=("__unk__",))
    encoded = chat.encode(published_small, 512)
    assert not {0, 1, 2, 3} & set(encoded.input_ids)
    assert "bye __end__" in published_small.decode(encoded.input_ids)


def test_a_90m_conversation_drops_its_oldest_turns(published_small):
    encoded = said("hello hello hello", "hi", "sam", persona=("sam",)).encode(published_small, 8)
    assert encoded.input_ids == (*published_small.encode("your persona: sam\nhi\nsam"),)
    assert (encoded.dropped_turns, encoded.dropped_tokens) == (1, 0)


def test_what_does_not_fit_goes_by_whole_turns_from_the_oldest():
    chat = said("aaaa", "bbbb", "cccc")
    whole = chat.encode(Bytes(), 20)
    assert (len(whole.input_ids), whole.dropped_turns, whole.dropped_tokens) == (20, 0, 0)
    shorter = chat.encode(Bytes(), 19)
    assert shorter.input_ids == (*ids("bbbb"), *ids("  "), *ids("cccc"), END)
    assert (shorter.dropped_turns, shorter.dropped_tokens) == (1, 0)


def test_an_old_turn_that_would_fit_does_not_outlive_a_newer_one_that_does_not():
    encoded = said("a", "b" * 50, "c").encode(Bytes(), 20)
    assert encoded.input_ids == (*ids("c"), END)
    assert encoded.dropped_turns == 2


def test_persona_outlives_the_turns():
    front = (*ids("your persona: kind"), *ids("  "))
    encoded = said("aaaa", "bbbb", persona=("kind",)).encode(Bytes(), len(front) + 6)
    assert encoded.input_ids == (*front, *ids("bbbb"), END)
    assert encoded.dropped_turns == 1


def test_a_newest_turn_too_long_loses_its_front():
    encoded = said("old", "0123456789").encode(Bytes(), 5)
    assert encoded.input_ids == (*ids("0123456789")[-4:], END)
    assert (encoded.dropped_turns, encoded.dropped_tokens) == (1, 7)


def test_the_limit_is_the_tokenizers_unless_given():
    chat = said("0123456789")
    assert len(chat.encode(Bytes(model_max_length=5)).input_ids) == 5
    assert len(chat.encode(Bytes(model_max_length=5), 7).input_ids) == 7


def test_a_persona_too_long_is_refused_with_its_numbers():
    with pytest.raises(ValueError, match="the persona takes 20 tokens and the model reads 21"):
        said("hi", persona=("kin",)).encode(Bytes(), 21)
    assert said("hi", persona=("kin",)).encode(Bytes(), 22).dropped_tokens == 2


@pytest.mark.parametrize("limit", [-1, 0, 1])
def test_a_limit_without_room_is_refused(limit):
    with pytest.raises(ValueError, match=f"max_tokens={limit} leaves no room"):
        said("hi").encode(Bytes(model_max_length=128), limit)


def test_what_cannot_be_encoded_is_refused():
    with pytest.raises(ValueError, match="no turns yet"):
        Conversation(persona=("kind",)).encode(Bytes(), 10)
    with pytest.raises(ValueError, match="pass max_tokens"):
        said("hi").encode(Bytes())
    with pytest.raises(ValueError, match="no eos_token"):
        said("hi").encode(Bytes(eos_token_id=None), 10)


@pytest.mark.parametrize("text", ["", "  ", "\n\t"])
def test_empty_texts_are_refused(text):
    with pytest.raises(ValueError, match="a turn must not be empty"):
        Conversation().add("user", text)
    with pytest.raises(ValueError, match="a turn must not be empty"):
        Turn("user", text)
    with pytest.raises(ValueError, match="a persona line must not be empty"):
        Conversation(persona=("kind", text))


def test_other_speakers_and_types_are_refused():
    with pytest.raises(ValueError, match='"user" or "bot", not \'system\''):
        Conversation().add("system", "hi")
    with pytest.raises(TypeError, match="a turn is a string, not int"):
        Conversation().add("user", 7)
    with pytest.raises(TypeError, match="turns are Turn objects"):
        Conversation(turns=(("user", "hi"),))


def test_a_conversation_never_changes():
    chat = Conversation(turns=[Turn("user", "hi")], persona=["kind"])
    longer = chat.add("bot", "  hello \n")
    assert chat.turns == (Turn("user", "hi"),)
    assert longer.turns == (Turn("user", "hi"), Turn("bot", "hello"))
    assert longer.without_turns() == Conversation(persona=("kind",))
    assert hash(longer) == hash(chat.add("bot", "hello"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        chat.turns = ()


TEXTS = st.text("ab .", min_size=1, max_size=12).filter(str.strip)


@settings(deadline=None, max_examples=300)
@given(turns=st.lists(TEXTS, min_size=1, max_size=6), persona=st.lists(TEXTS, max_size=2), spare=st.integers(2, 90))
def test_any_conversation_keeps_its_persona_its_end_and_as_many_of_the_newest_turns_as_fit(turns, persona, spare):
    tokenizer, chat = Bytes(), said(*turns, persona=persona)
    whole = chat.encode(tokenizer, 10_000)
    assert (whole.dropped_turns, whole.dropped_tokens) == (0, 0)
    last = chat.turns[-1].text
    front = len(whole.input_ids) - len(said(*turns).encode(tokenizer, 10_000).input_ids)
    limit = front + spare
    encoded = chat.encode(tokenizer, limit)
    assert (encoded.pinned_tokens, encoded.max_tokens) == (front, limit)
    body = encoded.input_ids[front:]
    assert len(encoded.input_ids) <= limit
    assert encoded.input_ids[:front] == whole.input_ids[:front]
    assert body[-1] == END
    assert body == whole.input_ids[-len(body) :]
    if encoded.dropped_tokens:
        assert encoded.dropped_turns == len(turns) - 1
        assert body == (*ids(last)[encoded.dropped_tokens :], END)
        assert len(encoded.input_ids) == limit
    else:
        kept = said(*turns[encoded.dropped_turns :])
        assert body == kept.encode(tokenizer, 10_000).input_ids
    if encoded.dropped_turns and not encoded.dropped_tokens:
        one_more = said(*turns[encoded.dropped_turns - 1 :]).encode(tokenizer, 10_000)
        assert len(one_more.input_ids) > spare
