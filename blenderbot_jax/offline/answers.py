"""From rows to rows with replies: what one block of a corpus needs, whoever runs it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import jax

from blenderbot_jax.chatbot import Chatbot
from blenderbot_jax.data.records import as_lines
from blenderbot_jax.dialogue import Conversation, Turn
from blenderbot_jax.generation.plan import compile_config
from blenderbot_jax.responses import Prompt, Response

ADDED = ("reply", "score", "dropped_turns", "dropped_tokens", "alternatives", "blocked")
"""What an answered row has beside its own fields; `alternatives` where several replies are asked for, `blocked` where
filters held something back."""
_SAID = ("text", "turns", "context")
# What float32 holds.
_DIGITS = 6

Row = Mapping[str, Any]


def answer_rows(
    bot: Chatbot,
    rows: Sequence[Row] | Mapping[int, Row],
    *,
    key: jax.Array | None = None,
    first: int = 0,
    on_progress: Callable[[int], object] = lambda count: None,
) -> list[dict[str, Any]]:
    """Answer each row on its own; those of about the same length are decoded together.

    A row's reply is the one that it gets alone: it draws from `jax.random.fold_in(key, number of the row)`, whatever
    stands beside it.

    Args:
        bot: who answers; `prepared(bot)` is faster, if there are many blocks.
        rows: fields by name, such as `conversation` reads; a mapping gives their numbers.
        key: a `jax.random.key`, needed if the bot samples.
        first: the number of the first row of a sequence.
        on_progress: called with the number of rows just answered, or found to have no answer.

    Returns:
        The rows in their order, each with its own fields and `reply`, `score` (in nats, as `Response.score`, to six
        digits), `dropped_turns` and `dropped_tokens` (what did not fit and was not read), and, if the bot gives several
        replies, `alternatives` [{"text", "score"}], best first; what filters held back is in `blocked` [{"speaker",
        "text", "filter", "reason"}]. A row that cannot be answered has `error`, the reason,
        instead; one that has an `error` already is left as it is.

    Raises:
        ValueError: a key too many or too few.

    Example:
        >>> bot = Chatbot.from_pretrained("demo").configured(num_beams=1, max_length=12)
        >>> for row in answer_rows(bot, [{"id": "a", "text": "Hi!"}, {"id": "b", "text": " "}]):
        ...     print(list(row), row.get("error"))
        ['id', 'text', 'reply', 'score', 'dropped_turns', 'dropped_tokens'] None
        ['id', 'text', 'error'] a turn must not be empty
    """
    numbered = rows if isinstance(rows, Mapping) else dict(enumerate(rows, first))
    prompts, errors = _read(bot, numbered)
    if errors:
        on_progress(len(errors))
    added = {number: {"error": reason} for number, reason in errors.items()}
    for found in bot.answers(prompts, key=key):
        added |= {number: _answer(response) for number, response in found.items()}
        on_progress(len(found))
    return [{**row, **added[number]} for number, row in numbered.items()]


def conversation(row: Row) -> Conversation:
    """What was said in a row.

    It has one of `text`, an utterance, and `turns` or `context`, a list of utterances, oldest first. A turn is a text
    (then speakers alternate, and the last is the user's), an object with `text` and `speaker`, or a pair of speaker and
    text. The bot answers the last turn, whoever spoke it. It may have one of `persona`, a line or a list of lines about
    the bot; and `personas`, those of each speaker by name, of which the bot has those of "bot", or of the one speaker
    who did not speak last. A field that is null counts as absent.

    Args:
        row: fields by name; others may be there.

    Raises:
        ValueError, TypeError: which of this does not hold.

    Example:
        >>> chat = conversation({"turns": ["Hi!", "Hello.", "Do you ski?"], "persona": "i ski."})
        >>> [turn.speaker for turn in chat.turns], chat.persona
        (['user', 'bot', 'user'], ('i ski.',))
    """
    name = _only(row, _SAID)
    if name is None:
        raise ValueError("a row has text, turns or context to be answered, and this one has none of them")
    said = row[name]
    spoken = [(None, said)] if name == "text" or (name == "context" and isinstance(said, str)) else _spoken(name, said)
    speakers = [speaker for speaker, _ in spoken]
    if None in speakers:
        speakers = ["user" if (len(spoken) - place) % 2 else "bot" for place in range(len(spoken))]
    turns = [
        Turn("user" if speaker == speakers[-1] else "bot", text)
        for speaker, (_, text) in zip(speakers, spoken, strict=True)
    ]
    return Conversation(tuple(turns), _persona(row, spoken[-1][0]))


def prepared(bot: Chatbot, *, donate: bool = False) -> Chatbot:
    """The bot with weights packed for the batches that it answers many rows in; `donate` as for `Chatbot.prepared`."""
    plan, _ = compile_config(bot.generation_config, bot.checkpoint.model.config, 1)
    return bot.prepared(bot.packing.most(plan), donate=donate)


def _read(bot: Chatbot, rows: Mapping[int, Row]) -> tuple[dict[int, Prompt], dict[int, Any]]:
    """Each row as ids, or why it cannot be answered; both by number."""
    prompts = dict[int, Prompt]()
    errors = {number: row["error"] for number, row in rows.items() if row.get("error") is not None}
    for number, row in rows.items():
        if number not in errors:
            try:
                prompts[number] = _prompt(bot, row)
            except (ValueError, TypeError) as error:
                errors[number] = str(error)
    return prompts, errors


def _prompt(bot: Chatbot, row: Row) -> Prompt:
    taken = [name for name in ADDED if row.get(name) is not None]
    if taken:
        raise ValueError(f"the row has {', '.join(taken)} already, which the answer would write over: rename it")
    chat = conversation(row)
    encoded = bot.checkpoint.encode(chat)
    if not encoded.input_ids:
        raise ValueError("the tokenizer finds nothing in the text")
    return Prompt(chat, encoded)


def _answer(response: Response) -> dict[str, Any]:
    """The fields that a response adds to a row."""
    found = [{"text": one.text, "score": _rounded(one.score)} for one in response.alternatives]
    said = {"reply": response.text, "score": _rounded(response.score)}
    dropped = {"dropped_turns": response.dropped_turns, "dropped_tokens": response.dropped_tokens}
    blocked = [{"speaker": one.speaker, "text": one.text, **asdict(one.finding)} for one in response.blocked]
    more = {"alternatives": found if len(found) > 1 else [], "blocked": blocked}
    return {**said, **dropped, **{name: value for name, value in more.items() if value}}


def _rounded(score: float) -> float:
    return float(f"{score:.{_DIGITS}g}")


def _only(row: Row, names: Sequence[str]) -> str | None:
    """Which of some names a row has, at most one."""
    there = [name for name in names if row.get(name) is not None]
    if len(there) > 1:
        raise ValueError(f"a row has one of {', '.join(names)}, and this one has {' and '.join(there)}")
    return there[0] if there else None


def _spoken(name: str, turns: Any) -> list[tuple[str | None, Any]]:
    """Speaker, if named, and text of each turn."""
    if isinstance(turns, str | Mapping) or not isinstance(turns, Sequence):
        raise TypeError(f"{name} is a list of turns, not {type(turns).__name__}")
    if not turns:
        raise ValueError(f"{name} is empty: there is no turn to answer")
    return [_turn(turn) for turn in turns]


def _turn(turn: Any) -> tuple[str | None, Any]:
    if isinstance(turn, str):
        return None, turn
    if isinstance(turn, Mapping) and "text" in turn:
        return turn.get("speaker"), turn["text"]
    if isinstance(turn, Sequence) and len(turn) == 2:
        return turn[0], turn[1]
    raise ValueError("a turn is a text, an object with text and speaker, or a pair of speaker and text")


def _persona(row: Row, last_speaker: str | None) -> tuple[str, ...]:
    name = _only(row, ("persona", "personas"))
    if name is None:
        return ()
    lines = row[name]
    if name == "personas":
        if not isinstance(lines, Mapping):
            raise TypeError(f"personas are an object, lines by speaker, not {type(lines).__name__}; one is a persona")
        lines = _of_the_bot({speaker: said for speaker, said in lines.items() if said is not None}, last_speaker)
    return as_lines(lines)


def _of_the_bot(personas: Mapping[str, Any], last_speaker: str | None) -> Any:
    if "bot" in personas and last_speaker != "bot":
        return personas["bot"]
    others = [lines for speaker, lines in personas.items() if speaker != last_speaker]
    if len(others) > 1:
        raise ValueError(
            f"personas are of {', '.join(personas)}, and the row does not say which of them answers: name one of them "
            "bot, or name the speakers of the turns"
        )
    return others[0] if others else ()
