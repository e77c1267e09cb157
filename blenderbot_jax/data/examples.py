"""Examples to learn from: what a conversation's model reads before a turn, and that turn as its labels.

The ids are those that chatting gives: the persona of whoever answers stands in front, and history is cut by whole turns
from the oldest on, by the very code of `Conversation.encode`.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from blenderbot_jax.data.records import Dialogue
from blenderbot_jax.dialogue import (
    Conversation,
    DialogueLayout,
    DialogueTokenizer,
    EncodedConversation,
    persona_block,
)

MAX_TARGET = 128
"""The most labels of a reply that the published models were trained with, all sizes alike."""


@dataclass(frozen=True, slots=True)
class Example:
    """A context and its reply as ids, without padding, and what had to be left out of them.

    Args:
        input_ids: S ids, what the encoder reads.
        labels: T ids, what the decoder is to write: the reply and `</s>`, which is missing from a reply that was cut.
        dropped_turns: turns of the history that did not fit, the oldest ones.
        dropped_tokens: tokens cut from the front of the newest turn, which alone was too long.
        dropped_labels: tokens cut from the end of the reply, `</s>` among them.
        turn: the place of the reply among the dialogue's turns.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    dropped_turns: int = 0
    dropped_tokens: int = 0
    dropped_labels: int = 0
    turn: int = 0


def dialogue_examples(
    dialogue: Dialogue,
    tokenizer: DialogueTokenizer,
    *,
    max_source: int,
    max_target: int,
    speakers: Collection[str] | str | None = None,
    persona: bool = True,
    layout: DialogueLayout | None = None,
) -> Iterator[Example]:
    """One example for each turn that is to be learned, oldest first.

    Turns without text are skipped. The ids of a context are those of `Conversation.encode`, where the turns before are
    said and the persona is that of the turn's speaker. A reply that is too long loses its end and with it `</s>`, as in
    ParlAI, so that no model learns to stop within a sentence.

    Args:
        dialogue: what was said.
        tokenizer: the model's.
        max_source: the most ids of a context, `</s>` included: 128, or 512 for the 90M model.
        max_target: the most labels, `</s>` included: 128.
        speakers: whose turns are learned; if None, those that the dialogue marks, or every one from the second on.
        persona: whether personas are pinned in front.
        layout: `DialogueLayout.of(tokenizer)`, which takes a millisecond to find out, for callers with many dialogues.

    Raises:
        ValueError: a limit below 1, a persona that leaves no room for a turn; the message says where.

    References:
        ParlAI, `parlai/core/torch_agent.py`, `_vectorize_text`: the end token is appended, then the label is truncated.

    Example:
        >>> talk = Dialogue(turns=(("A", "Hi!"), ("B", "Hello."), ("A", "How are you?")))
        >>> examples = list(dialogue_examples(talk, tokenizer, max_source=128, max_target=128))
        >>> [tokenizer.decode(example.labels) for example in examples]
        [' Hello.</s>', ' How are you?</s>']
    """
    if max_target < 1:
        raise ValueError(f"max_target must be at least 1, not {max_target}")
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no eos_token, which ends every reply")
    layout = layout or DialogueLayout.of(tokenizer)
    spoken = [(place, name, text.strip()) for place, (name, text) in enumerate(dialogue.turns) if text.strip()]
    wanted = _wanted(dialogue, (speakers,) if isinstance(speakers, str) else speakers)
    # The first turn answers nothing.
    learned = [number for number, (place, _, _) in enumerate(spoken) if number and place in wanted]
    ids = [layout.read(tokenizer, text) for _, _, text in spoken[: max(learned, default=-1) + 1]]
    names = {spoken[number][1] for number in learned} if persona else ()
    fronts = {name: _front(dialogue.personas.get(name, ()), tokenizer, layout) for name in names}
    for number in learned:
        place, name, _ = spoken[number]
        # A text that no token stands for is no reply.
        if ids[number]:
            where = f"{dialogue.where}, turns[{place}]"
            source = _fitted(layout, fronts.get(name, []), ids[:number], max_source, where)
            yield _example(source, (*ids[number], tokenizer.eos_token_id), max_target, place)


def corpus_examples(
    dialogues: Iterable[Dialogue], tokenizer: DialogueTokenizer, *, max_source: int, max_target: int, **options: Any
) -> Iterator[Example]:
    """The examples of many dialogues, one after another.

    Args:
        dialogues: such as `read_dialogues` gives.
        tokenizer, max_source, max_target: as for `dialogue_examples`.
        options: `speakers` and `persona`, likewise.

    Example:
        >>> talks = [Dialogue((("A", "Hi!"), ("B", "Hello."))), Dialogue((("A", "Bye."), ("B", "See you!")))]
        >>> len(list(corpus_examples(talks, tokenizer, max_source=128, max_target=128)))
        2
    """
    layout = DialogueLayout.of(tokenizer)
    for dialogue in dialogues:
        yield from dialogue_examples(
            dialogue, tokenizer, max_source=max_source, max_target=max_target, layout=layout, **options
        )


@dataclass(frozen=True)
class ExampleStats:
    """What examples hold and lack; sums of parts are the whole's.

    Example:
        >>> first = ExampleStats.of([Example((5, 2), (6, 7, 2))])
        >>> both = first + ExampleStats.of([Example((5, 8, 9, 2), (6, 2), dropped_turns=3)])
        >>> both.examples, both.source_tokens, both.longest_source, both.cut_histories
        (2, 6, 4, 1)
    """

    examples: int = 0
    source_tokens: int = 0
    target_tokens: int = 0
    longest_source: int = 0
    longest_target: int = 0
    cut_histories: int = 0
    """Examples whose history lost turns, or the front of the newest."""
    cut_replies: int = 0
    """Examples whose reply lost its end."""

    @classmethod
    def of(cls, examples: Iterable[Example]) -> "ExampleStats":
        """The counts of some examples."""
        rows = list(examples)
        S, T = [len(row.input_ids) for row in rows], [len(row.labels) for row in rows]
        return cls(
            examples=len(rows),
            source_tokens=sum(S),
            target_tokens=sum(T),
            longest_source=max(S, default=0),
            longest_target=max(T, default=0),
            cut_histories=sum(bool(row.dropped_turns or row.dropped_tokens) for row in rows),
            cut_replies=sum(bool(row.dropped_labels) for row in rows),
        )

    def __add__(self, other: "ExampleStats") -> "ExampleStats":
        pairs = ((field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return ExampleStats(**{name: max(a, b) if name.startswith("longest") else a + b for name, a, b in pairs})


def _wanted(dialogue: Dialogue, speakers: Collection[str] | None) -> frozenset[int]:
    """Places of the turns to learn."""
    if speakers is not None:
        return frozenset(place for place, (name, _) in enumerate(dialogue.turns) if name in speakers)
    return frozenset(range(len(dialogue.turns)) if dialogue.targets is None else dialogue.targets)


def _front(persona: Sequence[str], tokenizer: DialogueTokenizer, layout: DialogueLayout) -> list[list[int]]:
    """What is pinned in front of a speaker's contexts, as `Conversation.encode` has it."""
    lines = Conversation(persona=tuple(persona)).persona
    return [layout.read(tokenizer, persona_block(lines))] if lines else []


def _fitted(
    layout: DialogueLayout, front: list[list[int]], history: list[list[int]], max_source: int, where: str
) -> EncodedConversation:
    try:
        return layout.fit(front, history, max_source)
    except ValueError as error:
        raise ValueError(f"{where.removeprefix(', ')}: {error}") from error


def _example(source: EncodedConversation, labels: tuple[int, ...], max_target: int, turn: int) -> Example:
    return Example(
        input_ids=source.input_ids,
        labels=labels[:max_target],
        dropped_turns=source.dropped_turns,
        dropped_tokens=source.dropped_tokens,
        dropped_labels=max(len(labels) - max_target, 0),
        turn=turn,
    )
