"""Conversations longer than a model reads: in words, what it reads of them and what it does not.

`Conversation.encode` leaves out what does not fit and counts it. Here the counts become sentences, for somebody who
wonders why the bot has forgotten what was said: which lines of the persona take how much of the room, and which
sentences of a turn that alone was too long are lost.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence

from blenderbot_jax.dialogue import (
    PERSONA_PREFIX,
    Conversation,
    DialogueLayout,
    DialogueTokenizer,
    EncodedConversation,
    persona_block,
    token_limit,
)

_BREAK = re.compile(r"(?<=[.!?…])\s+|\n+")
_QUOTED = 40  # characters
_NAMED = 3


def summary(conversation: Conversation, encoded: EncodedConversation) -> str:
    """How much of a conversation the model reads.

    Args:
        conversation: with at least one turn.
        encoded: what `Conversation.encode` or `Checkpoint.encode` has made of it.

    Example:
        >>> talk = Conversation().add("user", "Hi!").add("bot", "Hello there.")
        >>> summary(talk, talk.encode(tokenizer, 128)).split(",")[0]
        'the model reads all 2 turns'
    """
    turns = len(conversation.turns)
    kept = turns - encoded.dropped_turns
    last = "the only turn" if turns == 1 else f"the last of {turns} turns"
    read = last if kept == 1 else f"the last {kept} of {turns} turns" if kept < turns else f"all {turns} turns"
    if encoded.dropped_tokens:
        read += f" without its first {_counted(encoded.dropped_tokens, 'token')}"
    persona = f", {encoded.pinned_tokens} of them the persona's" if encoded.pinned_tokens else ""
    return f"the model reads {read}, {len(encoded.input_ids)} of {encoded.max_tokens} tokens{persona}"


def persona_tokens(conversation: Conversation, tokenizer: DialogueTokenizer) -> tuple[int, ...]:
    """How many tokens each persona line takes, what separates it from the others included.

    Args:
        conversation: with or without turns.
        tokenizer: the model's.

    Example:
        >>> chat = Conversation(persona=("i love hiking.", "i have two dogs."))
        >>> encoded = chat.add("user", "Hi!").encode(tokenizer, 128)
        >>> sum(persona_tokens(chat, tokenizer)) == encoded.pinned_tokens
        True
    """
    layout, lines = DialogueLayout.of(tokenizer), conversation.persona
    ends = [len(layout.read(tokenizer, persona_block(lines[: i + 1]))) for i in range(len(lines))]
    # The first line bears the separator behind the block, and every other one the newline before it.
    starts = [-len(layout.separator), *ends[:-1]]
    return tuple(end - start for start, end in zip(starts, ends, strict=False))


def room_for_turns(conversation: Conversation, tokenizer: DialogueTokenizer, max_tokens: int | None = None) -> int:
    """The tokens that the persona leaves for what is said; below 1, the conversation cannot be encoded.

    Args:
        conversation: with or without turns.
        tokenizer: the model's.
        max_tokens: as for `Conversation.encode`.

    Raises:
        ValueError: no limit known.

    Example:
        >>> room_for_turns(Conversation(), tokenizer, 128)
        127
    """
    limit = token_limit(tokenizer, max_tokens)
    return limit - sum(persona_tokens(conversation, tokenizer)) - len(DialogueLayout.of(tokenizer).end)


def explain_persona(conversation: Conversation, tokenizer: DialogueTokenizer, max_tokens: int | None = None) -> str:
    """What a persona costs, line by line; empty if there is none.

    Args:
        conversation, tokenizer, max_tokens: as for `room_for_turns`.

    Raises:
        ValueError: no limit known.
    """
    costs, limit = persona_tokens(conversation, tokenizer), token_limit(tokenizer, max_tokens)
    room = room_for_turns(conversation, tokenizer, limit)
    left = "no room for a turn" if room < 1 else f"{room} for what is said"
    lines = (line.removeprefix(PERSONA_PREFIX) for line in conversation.persona)
    named = ", ".join(f"{_quote(line)} {cost}" for line, cost in zip(lines, costs, strict=True))
    return f"the persona takes {sum(costs)} of {limit} tokens and leaves {left}: {named}" if costs else ""


def explain_cut(
    conversation: Conversation, tokenizer: DialogueTokenizer, max_tokens: int | None = None
) -> tuple[str, ...]:
    """What the model does not read of a conversation, and what takes the room.

    No line counts turns, which `summary` does: as long as a conversation merely grows, the lines stay the same, and
    whoever has shown them need not show them again.

    Args:
        conversation: with or without turns.
        tokenizer: the model's.
        max_tokens: as for `Conversation.encode`.

    Returns:
        A line on the persona, one on older turns and one on the newest turn, those that apply; none if all is read.

    Raises:
        ValueError: no limit known.

    Example:
        >>> talk = Conversation().add("user", "I went out. It was fun. How are you?")
        >>> explain_cut(talk, tokenizer, 128)
        ()
        >>> explain_cut(talk, tokenizer, 9)
        ('the newest turn alone is too long and loses its first 4 tokens: "I went out."',)
    """
    limit = token_limit(tokenizer, max_tokens)
    persona = explain_persona(conversation, tokenizer, limit)
    if persona and room_for_turns(conversation, tokenizer, limit) < 1:
        return (persona,)
    if not conversation.turns:
        return ()
    encoded, lines = conversation.encode(tokenizer, limit), []
    if encoded.dropped_turns:
        lines.append(f"older turns do not fit into {limit} tokens and are not read")
    if encoded.dropped_tokens:
        lost = _lost(conversation.turns[-1].text, encoded.dropped_tokens, tokenizer)
        count = _counted(encoded.dropped_tokens, "token")
        lines.append(f"the newest turn alone is too long and loses its first {count}: {lost}")
    return (persona, *lines) if persona and lines else tuple(lines)


def _lost(text: str, tokens: int, tokenizer: DialogueTokenizer) -> str:
    """The sentences that the first tokens of a text belong to."""
    layout, sentences = DialogueLayout.of(tokenizer), _sentences(text)

    def before(place: int) -> int:
        return len(layout.read(tokenizer, text[:place])) if place else 0

    # A long text has thousands of sentences, of which a search looks at a dozen.
    whole = bisect_right(sentences, tokens, key=lambda span: before(span[1]))
    lost = [_quote(text[start:end]) for start, end in sentences[: min(whole, _NAMED)]]
    if whole > _NAMED:
        lost.append(_counted(whole - _NAMED, "more sentence"))
    if whole < len(sentences):
        start, end = sentences[whole]
        # The space before a word is part of its first token.
        if before(len(text[:start].rstrip(" "))) < tokens:
            lost.append(f"the beginning of {_quote(text[start:end])}")
    return _listed(lost)


def _sentences(text: str) -> list[tuple[int, int]]:
    """Where the sentences of a text begin and end."""
    breaks = [found.span() for found in _BREAK.finditer(text)]
    spans = zip([0, *(end for _, end in breaks)], [*(start for start, _ in breaks), len(text)], strict=True)
    return [(start, end) for start, end in spans if text[start:end].strip()]


def _quote(text: str) -> str:
    """The beginning of a text, on one line and in quotes."""
    line = " ".join(text[: 4 * _QUOTED].split())
    return f'"{line}"' if len(line) <= _QUOTED else f'"{line[: _QUOTED - 1].rstrip()}…"'


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
