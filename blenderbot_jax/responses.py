"""What comes of a conversation: a reply with its alternatives, and what filters had to say."""

from collections.abc import Sequence
from dataclasses import dataclass

from blenderbot_jax.dialogue import Conversation, EncodedConversation, Speaker
from blenderbot_jax.safety import Finding


@dataclass(frozen=True)
class Prompt:
    """A conversation, and what the model reads of it."""

    conversation: Conversation
    encoded: EncodedConversation


@dataclass(frozen=True)
class Alternative:
    """One of the replies a search found."""

    text: str
    score: float


@dataclass(frozen=True)
class Response:
    """A reply, and what led to it."""

    text: str
    """The best reply that filters let pass; empty if the model ended it at once."""
    score: float
    """Log-probability in nats, over generated tokens ** length_penalty under beams; 0 for words not the model's own."""
    conversation: Conversation
    """The conversation with the reply as its last turn (without one, if the reply is empty). A user's line that was
    blocked is not in it, nor what was said to that."""
    dropped_turns: int
    """Turns that did not fit and were not read, the oldest ones."""
    dropped_tokens: int
    """Tokens cut from the front of the newest turn, which alone was too long; 0 otherwise."""
    alternatives: tuple[Alternative, ...]
    """All `num_return_sequences` replies that filters let pass, best first, this one included."""
    blocked: tuple["Blocked", ...] = ()
    """What filters held back: the user's line, or the replies that the model liked better, best first."""


@dataclass(frozen=True)
class Blocked:
    """A text that was held back, and why."""

    speaker: Speaker
    text: str
    finding: Finding


def refused(prompt: Prompt, finding: Finding, words: str) -> Response:
    """The response to a user's line that is not answered.

    Args:
        prompt: with the line as its last turn.
        finding: why.
        words: what is said instead.
    """
    chat = prompt.conversation
    before, line = Conversation(chat.turns[:-1], chat.persona), chat.turns[-1]
    blocked = (Blocked(line.speaker, line.text, finding),)
    return Response(words, 0.0, before, 0, 0, (), blocked)


def responded(
    prompt: Prompt, found: Sequence[Alternative], findings: Sequence[Finding | None], limit: int, words: str
) -> Response:
    """The response of a search: the best of its replies that passes.

    Args:
        prompt: what was answered.
        found: all replies, best first.
        findings: of each of them.
        limit: R, the most alternatives wanted.
        words: what is said if none passes.
    """
    pairs = list(zip(found, findings, strict=True))
    passing = tuple(one for one, finding in pairs if finding is None)[:limit]
    best = passing[0] if passing else Alternative(words, 0.0)
    better = pairs[: found.index(best)] if passing else pairs
    chat, encoded = prompt.conversation, prompt.encoded
    return Response(
        text=best.text,
        score=best.score,
        conversation=chat.add("bot", best.text) if best.text else chat,
        dropped_turns=encoded.dropped_turns,
        dropped_tokens=encoded.dropped_tokens,
        alternatives=passing,
        blocked=tuple(Blocked("bot", one.text, finding) for one, finding in better if finding is not None),
    )
