"""Conversations: turns and persona to the ids the models were trained on, within their limit of tokens.

The published format, taken from ParlAI (`parlai/core/torch_agent.py`, and the `delimiter` in the models' options):
every turn is tokenised on its own with a leading space, turns are joined by the tokenizer's `delimiter`, which is
tokenised likewise, `</s>` stands at the end, and what is too long loses its oldest part. The delimiter is two spaces
(ids [228, 228] in the published vocabulary), a newline ([228, 206]) for the 9.4B model. Persona lines,
`your persona: ...`, form a block of their own in front, one line each. The 90M model joins everything by `__newln__`,
the id of a newline, and has nothing at the end; its tokenizer should be of mode `parlai`, which reads newlines inside a
text as that id too.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self

Speaker = Literal["user", "bot"]
PERSONA_PREFIX = "your persona: "
_DELIMITER = "  "


class DialogueTokenizer(Protocol):
    """What a conversation needs of a tokenizer; one that also has a `delimiter`, a str, says by it what joins turns."""

    @property
    def eos_token_id(self) -> int | None:
        """The id that ends a text."""
        ...

    @property
    def model_max_length(self) -> int | None:
        """The most ids the model reads, if known."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool = True, split_special_tokens: bool = False) -> list[int]:
        """Ids of a text; `split_special_tokens` reads a typed `</s>` as the four characters it is."""
        ...

    def get_vocab(self) -> dict[str, int]:
        """Token to id."""
        ...


@dataclass(frozen=True)
class Turn:
    """One utterance; white space around the text is dropped.

    Raises:
        ValueError: a speaker other than "user" and "bot", or an empty text.
        TypeError: a text that is no string.
    """

    speaker: Speaker
    text: str

    def __post_init__(self) -> None:
        if self.speaker not in ("user", "bot"):
            raise ValueError(f'the speaker is "user" or "bot", not {self.speaker!r}')
        object.__setattr__(self, "text", _clean("a turn", self.text))


@dataclass(frozen=True)
class EncodedConversation:
    """A conversation as the model reads it, and what had to be left out."""

    input_ids: tuple[int, ...]
    """The ids, at most as many as asked for."""
    dropped_turns: int
    """Turns left out whole, the oldest ones."""
    dropped_tokens: int
    """Tokens cut from the front of the newest turn, which alone was too long; 0 otherwise."""
    pinned_tokens: int = 0
    """Of the ids, those of the persona in front, with the separator behind it."""
    max_tokens: int = 0
    """The most ids there could be."""


@dataclass(frozen=True)
class Conversation:
    """Turns so far, and the persona the bot is to keep.

    Args:
        turns: `Turn`s, oldest first.
        persona: sentences about the bot in the first person, such as "i love hiking."; pinned in front of every input.

    Example:
        >>> chat = Conversation(persona=("i love hiking.",)).add("user", "Hi!").add("bot", "Hello there.")
        >>> chat.turns[-1].text, len(chat.turns)
        ('Hello there.', 2)
    """

    turns: tuple[Turn, ...] = ()
    persona: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        persona = (self.persona,) if isinstance(self.persona, str) else self.persona
        for turn in self.turns:
            if not isinstance(turn, Turn):
                raise TypeError(f"turns are Turn objects, not {turn!r}: write Turn(speaker, text), or use add")
        object.__setattr__(self, "turns", tuple(self.turns))
        object.__setattr__(self, "persona", tuple(_clean("a persona line", line) for line in persona))

    def add(self, speaker: Speaker, text: str) -> Self:
        """A conversation with one more turn.

        Args:
            speaker: "user" or "bot".
            text: what was said; surrounding white space is dropped.

        Raises:
            ValueError: another speaker, or an empty text.
        """
        return dataclasses.replace(self, turns=(*self.turns, Turn(speaker, text)))

    def without_turns(self) -> Self:
        """The same persona, nothing said yet."""
        return dataclasses.replace(self, turns=())

    def encode(self, tokenizer: DialogueTokenizer, max_tokens: int | None = None) -> EncodedConversation:
        """The ids for the model's next reply.

        Persona lines stay; whole turns are dropped from the oldest on until the rest fits. If the newest turn alone is
        too long, its beginning is cut. What users typed is read as plain text: a typed `</s>` ends nothing.

        Args:
            tokenizer: the model's.
            max_tokens: the most ids, `</s>` included; None takes the tokenizer's `model_max_length`.

        Raises:
            ValueError: no turns yet, no limit known, or a persona that leaves no room for a turn.

        Example:
            >>> Conversation().add("user", "Hi").add("bot", "Hello").encode(tokenizer, 128).input_ids
            (4424, 228, 228, 6950, 2)
        """
        if not self.turns:
            raise ValueError("the conversation has no turns yet: add one with conversation.add('user', text)")
        limit, layout = token_limit(tokenizer, max_tokens), DialogueLayout.of(tokenizer)
        persona = [layout.read(tokenizer, persona_block(self.persona))] if self.persona else []
        return layout.fit(persona, [layout.read(tokenizer, turn.text) for turn in self.turns], limit)


@dataclass(frozen=True)
class DialogueLayout:
    """How turns become one sequence: what stands between them, and what ends it."""

    separator: tuple[int, ...]
    end: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: DialogueTokenizer) -> "DialogueLayout":
        """The layout a tokenizer's model was trained with, told by its vocabulary and its `delimiter`."""
        newline = tokenizer.get_vocab().get("__newln__")
        if newline is not None:
            return cls((newline,), ())
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no eos_token, which ends every input of a Blenderbot model")
        # A protocol has no optional members, and a tokenizer of the published models needs to say nothing.
        delimiter = getattr(tokenizer, "delimiter", _DELIMITER)
        separator = tokenizer.encode(delimiter, add_special_tokens=False, split_special_tokens=True)
        return cls(tuple(separator), (tokenizer.eos_token_id,))

    def read(self, tokenizer: DialogueTokenizer, text: str) -> list[int]:
        """One turn's ids, without separator or end."""
        return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def fit(
        self, pinned: Sequence[Sequence[int]], turns: Sequence[Sequence[int]], max_tokens: int
    ) -> EncodedConversation:
        """Join pinned blocks and as many of the newest turns as fit.

        Args:
            pinned: ids of blocks that are never dropped.
            turns: ids of each turn, oldest first; at least one.
            max_tokens: the most ids in all.

        Raises:
            ValueError: the pinned blocks leave no room for a single token of a turn.
        """
        front = [token for block in pinned for token in (*block, *self.separator)]
        room = max_tokens - len(front) - len(self.end)
        if room < 1:
            if not front:
                raise ValueError(f"max_tokens={max_tokens} leaves no room for a turn")
            raise ValueError(f"the persona takes {len(front)} tokens and the model reads {max_tokens}: shorten it")
        newest = list(turns[-1])
        body = newest[-room:]
        kept = 1
        for turn in reversed(turns[:-1]):
            longer = [*turn, *self.separator, *body]
            if len(newest) > room or len(longer) > room:
                break
            body, kept = longer, kept + 1
        ids, dropped_tokens = (*front, *body, *self.end), max(len(newest) - room, 0)
        return EncodedConversation(ids, len(turns) - kept, dropped_tokens, len(front), max_tokens)


def persona_block(lines: Sequence[str]) -> str:
    """The text that pins a persona: one `your persona: ...` line each."""
    return "\n".join(line if line.startswith(PERSONA_PREFIX) else PERSONA_PREFIX + line for line in lines)


def token_limit(tokenizer: DialogueTokenizer, max_tokens: int | None = None) -> int:
    """The most ids of a conversation: `max_tokens`, or else what the tokenizer says.

    Raises:
        ValueError: neither is known.
    """
    limit = tokenizer.model_max_length if max_tokens is None else max_tokens
    if limit is None:
        raise ValueError("the tokenizer names no model_max_length: pass max_tokens (128, or 512 for the 90M model)")
    return limit


def _clean(what: str, text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{what} is a string, not {type(text).__name__}")
    if not text.strip():
        raise ValueError(f"{what} must not be empty")
    return text.strip()
