"""A corpus: files of rows, read once from end to end to be numbered, then once more, part by part.

A row is a line. What it is known by is its number, counted through all files, and its content: the digest of a part
says which rows stand at its numbers, so that a file which changed is noticed.
"""

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from itertools import islice
from pathlib import Path
from typing import Any, Literal

Format = Literal["jsonl", "text"]
FORMATS: tuple[Format, ...] = ("jsonl", "text")
PART_SIZE = 1024
_BY_ENDING: dict[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "text"}
_BYTE_ORDER_MARK, _GZIP = b"\xef\xbb\xbf", b"\x1f\x8b"

Sources = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class Part:
    """Rows that are answered and written together."""

    number: int
    """From 1."""
    first: int
    """The number of its first row, from 0."""
    rows: int
    """How many there are."""
    digest: str
    """Of its rows' content."""


@dataclass(frozen=True)
class Corpus:
    """Files whose rows are numbered and divided into parts; `survey` makes one."""

    sources: tuple[Path, ...]
    format: Format
    part_size: int
    parts: tuple[Part, ...]
    digest: str
    """Of all rows' content."""

    @property
    def rows(self) -> int:
        """How many there are in all parts."""
        return sum(part.rows for part in self.parts)

    def read(self, parts: Sequence[Part]) -> Iterator[tuple[Part, list[dict[str, Any]]]]:
        """Some parts and their rows, as `parse` gives them.

        Args:
            parts: in the order of their numbers.

        Raises:
            ValueError: the files have changed since they were surveyed.
        """
        lines, at = _lines(self.sources, self.format), 0
        for part in parts:
            skipped = part.first - at
            contents = list(islice(lines, skipped, skipped + part.rows))
            at = part.first + part.rows
            if digest_of(_joined(contents)) != part.digest:
                raise ValueError(
                    f"{', '.join(map(str, self.sources))}: from row {part.first} on, rows are others than when they "
                    "were counted at the start: run again, into another folder if the change is to stay"
                )
            yield part, [parse(content, self.format) for content in contents]


def survey(sources: Sources, *, format: Format | None = None, part_size: int = PART_SIZE) -> Corpus:
    """Number the rows of some files and divide them into parts; every file is read once.

    Args:
        sources: a file or several, packed with gzip or not, in the order that numbers their rows; a name with `*`, `?`
            or `[` that is no file stands for those it matches, sorted.
        format: "jsonl", a JSON object a line, where blank lines are no rows; or "text", an utterance a line, where
            every line is a row. None goes by the ending: .jsonl, .ndjson, .txt.
        part_size: rows of a part; the last may have fewer.

    Raises:
        FileNotFoundError: a file that is not there.
        ValueError: no rows at all, an ending that says nothing, endings that disagree, a part size below 1.

    Example:
        >>> _ = Path("rows.txt").write_text("Hi!\\nDo you like music?\\nYes.\\n")
        >>> [(part.number, part.first, part.rows) for part in survey("rows.txt", part_size=2).parts]
        [(1, 0, 2), (2, 2, 1)]
    """
    if part_size < 1:
        raise ValueError(f"part_size counts the rows of a part, so it is at least 1, not {part_size}")
    paths = _located(sources)
    form = _format(paths) if format is None else format
    if form not in FORMATS:
        raise ValueError(f"the format is one of {', '.join(FORMATS)}, not {form!r}")
    whole, parts, first = hashlib.blake2b(digest_size=16), list[Part](), 0
    lines = _lines(paths, form)
    while block := list(islice(lines, part_size)):
        joined = _joined(block)
        whole.update(joined)
        parts.append(Part(len(parts) + 1, first, len(block), digest_of(joined)))
        first += len(block)
    if not parts:
        raise ValueError(f"there is nothing to answer: no rows in {', '.join(map(str, paths))}")
    return Corpus(paths, form, part_size, tuple(parts), whole.hexdigest())


def parse(content: bytes, form: Format) -> dict[str, Any]:
    """A row from its line: an object's fields, or `text`.

    What is no JSON object or no UTF-8 becomes `line`, what could be read of it, and `error`, why it is no row.

    Example:
        >>> parse(b'{"id": 7, "text": "Hi!"}', "jsonl"), parse(b"Hi!", "text")
        ({'id': 7, 'text': 'Hi!'}, {'text': 'Hi!'})
    """
    try:
        text = content.decode("utf-8")
        row = {"text": text} if form == "text" else json.loads(text)
    except UnicodeDecodeError as error:
        return _unread(content, f"the line is not UTF-8 text: {error.reason} at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return _unread(content, f"the line is not JSON: {error}")
    if isinstance(row, dict):
        return row
    return _unread(content, f"a row is a JSON object, not {type(row).__name__}")


def dump(row: Mapping[str, Any]) -> bytes:
    """A row as a line of JSON in UTF-8, its end included."""
    try:
        return json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can write
        return json.dumps(row).encode("utf-8") + b"\n"


def digest_of(data: bytes) -> str:
    """BLAKE2b of 128 bits, which is quick on machines without instructions for a hash."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _unread(content: bytes, reason: str) -> dict[str, Any]:
    return {"line": content.decode("utf-8", "replace"), "error": reason}


def _joined(contents: Iterable[bytes]) -> bytes:
    return b"".join(content + b"\n" for content in contents)


def _lines(paths: Sequence[Path], form: Format) -> Iterator[bytes]:
    """The content of all rows: lines without their ends."""
    for path in paths:
        try:
            with gzip.open(path) if _is_packed(path) else path.open("rb") as file:
                for number, line in enumerate(file):
                    content = line if number else line.removeprefix(_BYTE_ORDER_MARK)
                    content = content.removesuffix(b"\n").removesuffix(b"\r")
                    if form == "text" or content.strip():
                        yield content
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is no whole gzip file: {error}") from error


def _is_packed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_GZIP)) == _GZIP


def _located(sources: Sources) -> tuple[Path, ...]:
    names = [sources] if isinstance(sources, str | os.PathLike) else sources
    paths = [path for name in names for path in _matches(os.fspath(name))]
    if not paths:
        raise ValueError("there is nothing to answer: no files were given")
    for path in paths:
        if path.is_dir():
            raise ValueError(f"{path} is a folder: give its files, as in '{path / '*.jsonl'}'")
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {str(path)!r}")
    return tuple(paths)


def _matches(name: str) -> list[Path]:
    if Path(name).exists() or not has_magic(name):
        return [Path(name)]
    found = sorted(glob(name, recursive=True))
    if not found:
        raise FileNotFoundError(f"no file matches {name!r}")
    return [Path(path) for path in found]


def _format(paths: Sequence[Path]) -> Format:
    found = {Path(path.name.removesuffix(".gz")).suffix.lower(): path for path in paths}
    for ending, path in found.items():
        if ending not in _BY_ENDING:
            raise ValueError(
                f"the ending of {path.name!r} does not say what it holds: say whether the format is jsonl, an object a "
                "line, or text, an utterance a line"
            )
    formats: set[Format] = {_BY_ENDING[ending] for ending in found}
    if len(formats) > 1:
        raise ValueError("some files end as JSONL and some as text: the files of a corpus have one format")
    return formats.pop()
