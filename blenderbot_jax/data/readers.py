"""Dialogues from files or objects, one by one: in which format, and what is done about lines that are no dialogue."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from blenderbot_jax.data.lines import BadLineError, Line, PathLike, data_files, read_lines
from blenderbot_jax.data.parlai import episodes, is_parlai
from blenderbot_jax.data.records import FORMATS, Dialogue, Format, mapping_format, pair, to_dialogue

# Lines that are looked at to tell a format, and bad lines that are named.
_LOOKED_AT, _NAMED = 10, 5

Found = Iterator[Dialogue | BadLineError]


def read_dialogues(
    source: PathLike | Iterable[Any],
    *,
    format: Format | None = None,
    skip_bad: bool = False,
    on_bad: Callable[[BadLineError], None] | None = None,
) -> Iterator[Dialogue]:
    """Dialogues of files or of Python objects, one at a time; no file is ever held whole in memory.

    Text is UTF-8, with or without a mark at its start; lines end in LF or CRLF; blank ones are passed over. Files may
    be packed with gzip. Without `skip_bad` the first bad line ends the reading: what is left of the files is looked
    through, and one error names the first bad lines and counts them all.

    Args:
        source: a file, a folder (its .jsonl, .ndjson, .json, .txt and .tsv files, packed or not, by name), or a pattern
            such as "talk/**/*.jsonl"; or an iterable of these, or of what `to_dialogue` takes: dicts, pairs,
            `Dialogue`s, `Conversation`s; or one dict or `Dialogue`.
        format: a name of `FORMATS`; told by the first lines of each file, or by the keys of a dict, if None.
        skip_bad: leave out what cannot be read; of ParlAI's text, the whole episode.
        on_bad: called with an error for each bad line that is skipped.

    Raises:
        FileNotFoundError: naming what is not there; before anything is read.
        BadLineError: lines that cannot be read, by file and line.
        ValueError: a format that there is not, or that cannot be told.

    References:
        ParlAI, `parlai/core/teachers.py` (`ConversationTeacher`) and `parlai/utils/conversations.py`; `parlai` for its
        text.

    Example:
        >>> [talk] = read_dialogues([("Hi!", "Hello.")])
        >>> talk.turns
        (('user', 'Hi!'), ('bot', 'Hello.'))
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"format is one of {', '.join(FORMATS)}, not {format!r}")
    if on_bad is not None and not skip_bad:
        raise ValueError("on_bad is called for lines that are skipped: pass skip_bad=True with it")
    if isinstance(source, str | os.PathLike | Mapping | Dialogue):
        source = [source]
    if isinstance(source, list | tuple) and all(isinstance(one, str | os.PathLike) for one in source):
        source = [path for one in source for path in data_files(one)]
        return _checked(chain.from_iterable(_read_file(path, format) for path in source), skip_bad, on_bad, True)
    # An iterable may be without end, so it is not looked through for more bad records.
    return _checked(_read_objects(source, format), skip_bad, on_bad, False)


def _checked(
    found: Found, skip_bad: bool, on_bad: Callable[[BadLineError], None] | None, look_on: bool
) -> Iterator[Dialogue]:
    for one in found:
        if isinstance(one, Dialogue):
            yield one
        elif not skip_bad:
            raise _gathered(one, found if look_on else ())
        elif on_bad is not None:
            on_bad(one)


def _gathered(first: BadLineError, rest: Iterable[Dialogue | BadLineError]) -> BadLineError:
    """One error for a bad line and all that follow it."""
    problems, count = first.problems, first.count
    for one in rest:
        if isinstance(one, BadLineError):
            problems, count = (*problems, *one.problems)[:_NAMED], count + one.count
    return BadLineError(problems, count)


def _read_objects(records: Iterable[Any], form: Format | None) -> Found:
    for number, record in enumerate(records):
        if isinstance(record, str | os.PathLike):
            for path in data_files(record):
                yield from _read_file(path, form)
        else:
            where = f"record {number}"
            yield _parsed(where, partial(to_dialogue, record, where, form))


def _read_file(path: Path, form: Format | None) -> Found:
    lines = read_lines(path)
    if form is None:
        ahead = list(islice(lines, _LOOKED_AT))
        if not ahead:
            return
        form, lines = _told(path, ahead), chain(ahead, lines)
    if form == "parlai":
        yield from episodes(lines)
        return
    for line in lines:
        yield _parsed(line.where, partial(_dialogue_in, line, form))


def _parsed(where: str, parse: Callable[[], Dialogue]) -> Dialogue | BadLineError:
    try:
        return parse()
    except ValueError as error:
        return BadLineError(((where, str(error)),))
    except RecursionError:
        return BadLineError(((where, "lists within lists, too deep to be a dialogue"),))


def _dialogue_in(line: Line, form: Format) -> Dialogue:
    """The dialogue of a line of any format but ParlAI's text, where it takes several."""
    text = line.sound()
    if form != "tsv":
        return to_dialogue(_json(text), line.where, form)
    columns = text.split("\t")
    if len(columns) != 2:
        raise ValueError(f"a line has two columns, a context and its reply; this one has {len(columns)}")
    return pair(*columns, where=line.where)


def _json(text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"a line is one JSON object: {error.msg} at character {error.pos + 1}") from error
    if not isinstance(record, dict):
        raise ValueError(f"a line is one JSON object, not a {type(record).__name__}")
    return record


# ---- which format ----------------------------------------------------------------------------------------------------


def _told(path: Path, ahead: list[Line]) -> Format:
    """The format that the first lines tell; a bad one or two among them do no harm."""
    for line in ahead:
        form = None if line.fault else _line_format(line.text)
        if form is not None:
            return form
    faults = [f"its first line: {line.fault}" for line in ahead[:1] if line.fault]
    begins = faults or [f"its first line begins {ahead[0].text[:40]!a}"]
    known = "; ".join(f"{name} ({shape})" for name, shape in FORMATS.items())
    raise ValueError(f"{path}: the format cannot be told, {begins[0]}. Name one of these: {known}")


def _line_format(text: str) -> Format | None:
    if text.lstrip().startswith("{"):
        try:
            return mapping_format(_json(text))
        except (ValueError, RecursionError):
            return None
    if is_parlai(text):
        return "parlai"
    columns = text.split("\t")
    return "tsv" if len(columns) == 2 and all(column.strip() for column in columns) else None
