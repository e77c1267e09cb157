"""A dialogue, and the shapes in which people keep one: JSON objects, pairs, ParlAI's conversation logs.

Each function here reads one record and knows no files. What a record lacks is a ValueError that says what was wanted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from blenderbot_jax.dialogue import PERSONA_PREFIX, Conversation

Format = Literal["dialogues", "conversations", "pairs", "tsv", "parlai"]
FORMATS: dict[Format, str] = {
    "dialogues": 'JSONL, {"turns": [{"speaker": "A", "text": "Hi!"}, ...], "personas": {"A": ["i love hiking."]}}',
    "conversations": 'JSONL of ParlAI, {"dialog": [[{"id": "A", "text": "Hi!"}, {"id": "B", "text": "Hello."}], ...]}',
    "pairs": 'JSONL, {"context": "Hi!" or ["Hi!", ...], "reply": "Hello.", "persona": ["i love hiking."]}',
    "tsv": "a context and its reply a line, with a tab between them",
    "parlai": "ParlAI's text, fields text:, labels: and episode_done:True with tabs between them",
}
USER, BOT = "user", "bot"
# What ParlAI writes where nobody has said anything yet.
SILENCE = "__SILENCE__"
PARTNER_PREFIX = "partner's persona: "
# ParlAI's speaker of personas and other context, which is nobody's turn.
_CONTEXT = "context"


@dataclass(frozen=True)
class Dialogue:
    """Who said what, and who they are.

    Args:
        turns: (speaker, text) each, oldest first; a text may be empty, and is then skipped by whoever learns.
        personas: speaker -> sentences about them in the first person.
        where: where it was read, such as "talk.jsonl:3".
        targets: places of the turns that its source marks as replies to learn; None where it marks none.

    Raises:
        ValueError: no turns, or something that is not text.

    Example:
        >>> talk = Dialogue(turns=(("A", "Hi!"), ("B", "Hello.")), personas={"B": ("i love hiking.",)})
        >>> talk.turns[1]
        ('B', 'Hello.')
    """

    turns: tuple[tuple[str, str], ...]
    personas: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    where: str = ""
    targets: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.turns, Sequence) or isinstance(self.turns, str) or not self.turns:
            raise ValueError(f"a dialogue has a list of turns, at least one, not {_short(self.turns)}")
        if not isinstance(self.personas, Mapping):
            raise ValueError(f"personas name each speaker's sentences, not {_short(self.personas)}")
        personas = {speaker: as_lines(lines) for speaker, lines in self.personas.items()}
        targets = None if self.targets is None else tuple(self.targets)
        if targets and not all(isinstance(place, int) and 0 <= place < len(self.turns) for place in targets):
            raise ValueError(f"targets are places of the {len(self.turns)} turns, from 0 on, not {targets}")
        object.__setattr__(self, "turns", tuple(_turn(turn) for turn in self.turns))
        object.__setattr__(self, "personas", personas)
        object.__setattr__(self, "targets", targets)


def to_dialogue(record: Any, where: str = "", form: Format | None = None) -> Dialogue:
    """The dialogue in one record.

    Args:
        record: a `Dialogue`; a `Conversation`; a mapping of one of the JSON shapes of `FORMATS`; or a pair of context
            and reply, of which the context may be a list of turns.
        where: what to call the record.
        form: the shape of a mapping; told by its keys if None.

    Raises:
        ValueError: a record of none of these shapes.

    Example:
        >>> to_dialogue({"context": ["Hello.", "Hi!"], "reply": "How are you?"}).turns
        (('bot', 'Hello.'), ('user', 'Hi!'), ('bot', 'How are you?'))
    """
    if isinstance(record, Dialogue):
        return record
    if isinstance(record, Conversation):
        turns = tuple((turn.speaker, turn.text) for turn in record.turns)
        return Dialogue(turns, {BOT: record.persona} if record.persona else {}, where)
    if isinstance(record, Mapping):
        return _SHAPES[_mapping_form(record, form)](record, where)
    if isinstance(record, tuple | list) and len(record) == 2:
        return pair(record[0], record[1], where=where)
    raise ValueError(f"a record is a mapping, a pair of context and reply, or a Dialogue, not {_short(record)}")


def mapping_format(record: Any) -> Format | None:
    """The shape of a JSON object, told by its keys; None if it has none of them."""
    if not isinstance(record, Mapping):
        return None
    if "turns" in record:
        return "dialogues"
    if "dialog" in record or "dialogue" in record:
        return "conversations"
    return "pairs" if "context" in record and "reply" in record else None


def pair(context: Any, reply: Any, persona: Any = (), where: str = "") -> Dialogue:
    """A context and the reply to learn: the reply is the bot's, the turn before it the user's, and so on back.

    Args:
        context: a text, or a list of turns, oldest first.
        reply: a text.
        persona: sentences about the bot.
        where: what to call it.

    Raises:
        ValueError: a context or a reply without text.
    """
    texts = [context] if isinstance(context, str) else context
    if not isinstance(texts, Sequence) or not any(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"a context is a text or a list of texts, not {_short(context)}")
    if not isinstance(reply, str) or not reply.strip():
        raise ValueError(f"a reply is a text with something in it, not {_short(reply)}")
    texts = [*texts, reply]
    speakers = [BOT if (len(texts) - place) % 2 else USER for place in range(len(texts))]
    lines = as_lines(persona)
    return Dialogue(
        tuple(zip(speakers, texts, strict=True)), {BOT: lines} if lines else {}, where, targets=(len(texts) - 1,)
    )


def split_persona(text: str) -> tuple[dict[str, tuple[str, ...]], str]:
    """Take the persona lines off the front of a text that somebody says to the bot.

    Returns:
        The lines by speaker, without their prefixes, and the rest of the text.
    """
    owners = {PERSONA_PREFIX: BOT, PARTNER_PREFIX: USER}
    personas: dict[str, tuple[str, ...]] = {}
    lines = text.split("\n")
    while lines and (prefix := next((start for start in owners if lines[0].lower().startswith(start)), "")):
        line = lines.pop(0)[len(prefix) :].strip()
        personas[owners[prefix]] = (*personas.get(owners[prefix], ()), *([line] if line else []))
    return personas, "\n".join(lines)


def as_lines(lines: Any) -> tuple[str, ...]:
    """Persona sentences as a tuple, blank ones left out; one alone may be a string.

    Raises:
        ValueError: something else.
    """
    lines = (lines,) if isinstance(lines, str) else lines
    if not isinstance(lines, Sequence):
        raise ValueError(f"a persona is a list of sentences, not {_short(lines)}")
    return tuple(text.strip() for text in (_text("a persona sentence", line) for line in lines) if text.strip())


def _mapping_form(record: Mapping[str, Any], form: Format | None) -> Format:
    found = form or mapping_format(record)
    if found in _SHAPES:
        return found
    if found:
        raise ValueError(f'"{found}" is no shape of a mapping: these are {", ".join(_SHAPES)}')
    keys = ", ".join(map(repr, record)) or "none"
    raise ValueError(f'a record has "turns", or "dialog", or "context" and "reply"; the keys of this one: {keys}')


def _dialogue(record: Mapping[str, Any], where: str) -> Dialogue:
    turns = record.get("turns")
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise ValueError(f'"turns" is a list of turns, not {_short(turns)}')
    return Dialogue(tuple(_turn(turn) for turn in turns), record.get("personas") or {}, where)


def _pair(record: Mapping[str, Any], where: str) -> Dialogue:
    return pair(record.get("context"), record.get("reply"), record.get("persona") or (), where)


def _conversation(record: Mapping[str, Any], where: str) -> Dialogue:
    acts = list(_acts(record.get("dialog", record.get("dialogue"))))
    context = list(_acts(record.get("context") or [])) + [act for act in acts if act.get("id") == _CONTEXT]
    spoken = [act for act in acts if act.get("id") != _CONTEXT and act.get("text") != SILENCE]
    names = [act.get("id") for act in spoken]
    if not all(isinstance(name, str) and name for name in names) or len(set(names)) < 2:
        # ParlAI itself tells the two sides by their places alone.
        names = [(USER, BOT)[place % 2] for place in range(len(spoken))]
    turns = tuple((str(name), act.get("text", "")) for name, act in zip(names, spoken, strict=True))
    return Dialogue(turns, _personas(context, list(dict.fromkeys(name for name, _ in turns))), where)


def _personas(context: Sequence[Mapping[str, Any]], speakers: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Whose the personas of a log are: one text each in the order of speaking; a single one is the second speaker's."""
    found = [split_persona(_text("a context", act.get("text", "")))[0].get(BOT, ()) for act in context]
    owners = speakers[1:] if len(found) == 1 else speakers
    return {speaker: lines for speaker, lines in zip(owners, found, strict=False) if lines}


def _acts(nested: Any) -> Iterator[Mapping[str, Any]]:
    """The utterances of a log, which come singly or in the pairs that ParlAI exchanges."""
    if not isinstance(nested, Sequence) or isinstance(nested, str):
        raise ValueError(f'"dialog" is a list of utterances or of pairs of them, not {_short(nested)}')
    for one in nested:
        for act in [one] if isinstance(one, Mapping | str) or not isinstance(one, Sequence) else one:
            if not isinstance(act, Mapping | str):
                raise ValueError(f"an utterance is a text, or an object with an id and a text, not {_short(act)}")
            yield {"text": act} if isinstance(act, str) else act


_SHAPES = {"dialogues": _dialogue, "conversations": _conversation, "pairs": _pair}


def _turn(turn: Any) -> tuple[str, str]:
    if isinstance(turn, Mapping):
        turn = (turn.get("speaker"), turn.get("text"))
    if not isinstance(turn, Sequence) or isinstance(turn, str) or len(turn) != 2:
        raise ValueError(f"a turn has a speaker and a text; this one is {_short(turn)}")
    speaker, text = turn
    if not isinstance(speaker, str) or not speaker:
        raise ValueError(f"a turn's speaker is a name, not {_short(speaker)}")
    return speaker, _text("a turn's text", text)


def _text(what: str, text: Any) -> str:
    if not isinstance(text, str):
        raise ValueError(f"{what} is a string, not {_short(text)}")
    # JSON can spell half of a pair, \ud83d, which no tokenizer can read.
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{what} holds half of a surrogate pair, which is no character: {_short(text)}")
    return text


def _short(value: Any) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
