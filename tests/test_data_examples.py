"""Examples: what is trained is what is chatted, id for id, and what was cut is counted."""

import json
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blenderbot_jax.data import (
    Dialogue,
    Example,
    ExampleStats,
    PackedExamples,
    corpus_examples,
    dialogue_examples,
    read_dialogues,
)
from blenderbot_jax.dialogue import Conversation
from blenderbot_jax.tokenizer import BlenderbotSmallTokenizer, BlenderbotTokenizer, load_tokenizer

END = 2


@dataclass(frozen=True)
class Bytes:
    """A tokenizer of bytes; byte b is id b + 10, and tabs are no tokens."""

    vocab: dict[str, int] = field(default_factory=dict)
    eos_token_id: int | None = END
    model_max_length: int | None = None
    read: list[str] = field(default_factory=list)

    def encode(self, text, *, add_special_tokens=True, split_special_tokens=False):
        assert split_special_tokens, "what users typed must be read as plain text"
        assert not add_special_tokens, "a turn has no end of its own"
        self.read.append(text)
        return [byte + 10 for byte in text.replace("\t", "").replace("@", "").encode()]

    def get_vocab(self):
        return self.vocab


SMALL = {"__newln__": 4}


def ids(text):
    return tuple(byte + 10 for byte in text.encode())


def talk(*texts, speakers="AB", **others):
    turns = tuple((speakers[number % len(speakers)], text) for number, text in enumerate(texts))
    return Dialogue(turns, **others)


def made(dialogue, tokenizer=None, *, max_source=1000, max_target=1000, **options):
    found = dialogue_examples(dialogue, tokenizer or Bytes(), max_source=max_source, max_target=max_target, **options)
    return list(found)


def learned(dialogue, **options):
    return [example.turn for example in made(dialogue, **options)]


def chatted(dialogue, turn, tokenizer, max_source):
    """What a bot reads that answers as the speaker of a turn."""
    speaker = dialogue.turns[turn][0]
    chat = Conversation(persona=dialogue.personas.get(speaker, ()))
    for name, text in dialogue.turns[:turn]:
        if text.strip():
            chat = chat.add("bot" if name == speaker else "user", text)
    return chat.encode(tokenizer, max_source)


def test_every_turn_from_the_second_on_is_learned_with_its_speakers_persona():
    dialogue = talk("Hi!", "Hello.", "Who?", personas={"A": ("tall",), "B": ("short", "old")})
    first, second = made(dialogue)
    front = "your persona: short\nyour persona: old"
    assert first == Example((*ids(f"{front}  Hi!"), END), (*ids("Hello."), END), turn=1)
    assert second == Example((*ids("your persona: tall  Hi!  Hello."), END), (*ids("Who?"), END), turn=2)
    assert made(dialogue, persona=False)[0].input_ids == (*ids("Hi!"), END)
    assert made(talk("Hi!", "Hello.", personas={"B": ()}))[0].input_ids == (*ids("Hi!"), END)


def test_the_90m_layout_ends_replies_and_no_contexts():
    [example] = made(talk("Hi!", "Hello.", personas={"B": ("tall",)}), Bytes(SMALL))
    assert example.input_ids == (*ids("your persona: tall"), 4, *ids("Hi!"))
    assert example.labels == (*ids("Hello."), END)


def test_speakers_limit_what_is_learned_and_outweigh_what_the_source_marks():
    texts = ("a", "b", "c", "d")
    assert learned(talk(*texts)) == [1, 2, 3]
    assert learned(talk(*texts), speakers="A") == [2]
    assert learned(talk(*texts), speakers=["A", "B"]) == [1, 2, 3]
    assert learned(talk(*texts), speakers=()) == []
    assert learned(talk(*texts, targets=(3, 1))) == [1, 3]
    assert learned(talk(*texts, targets=())) == []
    assert learned(talk(*texts, targets=(3,)), speakers="A") == [2]
    assert learned(talk("a", targets=(0,))) == []


def test_turns_without_text_or_tokens_are_passed_over():
    dialogue = talk("", "Hi!", " \n", "Hello.", "\t@", "Bye.")
    assert learned(dialogue) == [3, 5]
    assert made(dialogue)[0].input_ids == (*ids("Hi!"), END)
    assert made(dialogue)[1].input_ids == (*ids("Hi!  Hello.  "), END)
    assert made(talk("  Hi! ", "\nHello. "))[0] == made(talk("Hi!", "Hello."))[0]


def test_history_is_cut_by_whole_turns_and_what_is_cut_is_told():
    long, newest = made(talk("aaaa", "bbbb", "cccc"), max_source=7)
    assert (long.input_ids, long.dropped_turns, long.dropped_tokens) == ((*ids("aaaa"), END), 0, 0)
    assert (newest.input_ids, newest.dropped_turns) == ((*ids("bbbb"), END), 1)
    [cut] = made(talk("0123456789", "b"), max_source=5)
    assert (cut.input_ids, cut.dropped_tokens) == ((*ids("6789"), END), 6)


def test_a_reply_that_is_too_long_loses_its_end_and_its_end_token():
    assert made(talk("a", "bbbb"), max_target=5)[0].labels == (*ids("bbbb"), END)
    cut = made(talk("a", "bbbb"), max_target=4)[0]
    assert (cut.labels, cut.dropped_labels) == (ids("bbbb"), 1)
    shorter = made(talk("a", "bbbb"), max_target=1)[0]
    assert (shorter.labels, shorter.dropped_labels) == (ids("b"), 4)


def test_limits_without_room_are_refused_by_place():
    dialogue = talk("Hi!", "Hello.", personas={"B": ("tall",)}, where="talk.jsonl:7")
    with pytest.raises(
        ValueError, match=r"talk\.jsonl:7, turns\[1\]: the persona takes 20 tokens and the model reads 21"
    ):
        made(dialogue, max_source=21)
    assert made(dialogue, max_source=22)[0].dropped_tokens == 2
    with pytest.raises(ValueError, match=r"^turns\[1\]: max_tokens=1 leaves no room"):
        made(talk("Hi!", "Hello."), max_source=1)
    with pytest.raises(ValueError, match="max_target must be at least 1, not 0"):
        made(dialogue, max_target=0)
    with pytest.raises(ValueError, match="no eos_token, which ends every reply"):
        made(dialogue, Bytes(SMALL, eos_token_id=None))


def test_every_turn_is_tokenised_once_and_none_in_vain():
    tokenizer = Bytes()
    dialogue = talk("a", "b", "c", "d", "e", personas={"A": ("tall",), "B": ("short",)})
    made(dialogue, tokenizer, speakers="A")
    assert tokenizer.read == ["  ", "a", "b", "c", "d", "e", "your persona: tall"]
    other = Bytes()
    made(dialogue, other, speakers="C")
    assert other.read == ["  "]


def test_the_layout_of_a_corpus_is_found_once():
    tokenizer = Bytes()
    dialogues = [talk("a", "b"), talk("c", "d", "e")]
    found = list(corpus_examples(dialogues, tokenizer, max_source=20, max_target=20, speakers="B"))
    assert found == [example for dialogue in dialogues for example in made(dialogue, speakers="B")]
    assert tokenizer.read.count("  ") == 1


TEXTS = st.text("ab .\n", max_size=12)
LINES = st.lists(st.text("ab .", min_size=1, max_size=8).filter(str.strip), max_size=2).map(tuple)


@settings(deadline=None, max_examples=200)
@given(
    turns=st.lists(st.tuples(st.sampled_from("AB"), TEXTS), min_size=1, max_size=7),
    personas=st.dictionaries(st.sampled_from("AB"), LINES),
    spare=st.integers(2, 60),
    vocab=st.sampled_from(({}, SMALL)),
)
def test_any_example_is_the_context_that_is_chatted_and_the_reply_that_was_said(turns, personas, spare, vocab):
    dialogue, tokenizer = Dialogue(tuple(turns), personas), Bytes(vocab)
    max_source = 60 + spare
    examples = made(dialogue, tokenizer, max_source=max_source)
    spoken = [place for place, (_, text) in enumerate(turns) if text.strip()]
    assert [example.turn for example in examples] == spoken[1:]
    for example in examples:
        encoded = chatted(dialogue, example.turn, tokenizer, max_source)
        assert example.input_ids == encoded.input_ids
        assert (example.dropped_turns, example.dropped_tokens) == (encoded.dropped_turns, encoded.dropped_tokens)
        assert example.labels == (*ids(turns[example.turn][1].strip()), END)


def agree(dialogues, tokenizer, max_source):
    count = 0
    for dialogue in dialogues:
        for example in made(dialogue, tokenizer, max_source=max_source, max_target=128):
            assert example.input_ids == chatted(dialogue, example.turn, tokenizer, max_source).input_ids
            text = dialogue.turns[example.turn][1].strip()
            reply = [*tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True), END]
            assert list(example.labels) == reply[:128]
            count += 1
    return count


def test_examples_of_the_bundled_tokenizer_are_what_is_chatted():
    tokenizer = load_tokenizer("demo")
    dialogue = talk("Hi!", "Hello </s> there.", "How are\nyou?", "Fine.", personas={"A": ("i love hiking.",)})
    assert agree([dialogue], tokenizer, 40) == 3
    assert made(dialogue, tokenizer)[0].labels.count(tokenizer.eos_token_id) == 1


def test_examples_of_the_published_tokenizers_are_what_is_chatted(data_folder):
    tokenizers = data_folder / "tokenizers"
    large = BlenderbotTokenizer.from_pretrained(tokenizers / "blenderbot-400M-distill")
    small = BlenderbotSmallTokenizer.from_pretrained(tokenizers / "blenderbot_small-90M", mode="parlai")
    dialogues = list(read_dialogues(data_folder / "dialogues" / "synthetic_persona_chat.valid.jsonl"))[:8]
    assert agree(dialogues, large, 128) > 100
    assert agree(dialogues, small, 128) > 100
    [example] = made(talk("Hi", "Hello world"), large)
    assert example == Example((4424, END), (6950, 1085, END), turn=1)


@pytest.mark.slow
def test_all_published_dialogues_are_read_and_give_an_example_for_every_turn_but_the_first(data_folder):
    tokenizer = BlenderbotTokenizer.from_pretrained(data_folder / "tokenizers" / "blenderbot-400M-distill")
    for path in sorted((data_folder / "dialogues").glob("*.jsonl")):
        dialogues = list(read_dialogues(path))
        assert len(dialogues) == len(path.read_text(encoding="utf-8").splitlines())
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert [len(one.turns) for one in dialogues] == [len(record["turns"]) for record in records]
        packed = PackedExamples.of(corpus_examples(dialogues, tokenizer, max_source=128, max_target=128))
        spoken = [sum(bool(text.strip()) for _, text in one.turns) for one in dialogues]
        assert len(packed) == sum(max(count - 1, 0) for count in spoken)
        assert packed.sources.lengths.max() <= 128


EXAMPLES = st.lists(
    st.builds(
        Example,
        st.lists(st.integers(0, 99), min_size=1, max_size=6).map(tuple),
        st.lists(st.integers(0, 99), min_size=1, max_size=6).map(tuple),
        dropped_turns=st.integers(0, 2),
        dropped_tokens=st.integers(0, 2),
        dropped_labels=st.integers(0, 2),
    ),
    max_size=8,
)


@given(examples=EXAMPLES, cut=st.integers(0, 8))
def test_counts_of_parts_add_up_to_those_of_the_whole(examples, cut):
    whole = ExampleStats.of(iter(examples))
    assert ExampleStats.of(examples[:cut]) + ExampleStats.of(examples[cut:]) == whole
    assert whole.examples == len(examples)
    assert whole.source_tokens == sum(len(example.input_ids) for example in examples)
    assert whole.longest_target == max((len(example.labels) for example in examples), default=0)
    assert whole.cut_histories == sum(example.dropped_turns + example.dropped_tokens > 0 for example in examples)
    assert whole.cut_replies == sum(example.dropped_labels > 0 for example in examples)
