"""Lines of text files, numbered and decoded, and what is said of those that are no dialogue."""

import glob
import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, cast

# Of a folder, files with these endings are read, packed or not.
_SUFFIXES = (".jsonl", ".ndjson", ".json", ".txt", ".tsv")
_GZIP, _BOM = b"\x1f\x8b", b"\xef\xbb\xbf"

PathLike = str | os.PathLike[str]
Problem = tuple[str, str]


class BadLineError(ValueError):
    """Lines that are no dialogue.

    Attributes:
        problems: (file:line, reason) of the first few.
        count: how many there are in all.
    """

    def __init__(self, problems: tuple[Problem, ...], count: int = 1) -> None:
        super().__init__(problems, count)
        self.problems, self.count = problems, count

    def __str__(self) -> str:
        named = "; ".join(f"{where}: {reason}" for where, reason in self.problems)
        if self.count == 1:
            return named
        rest = self.count - len(self.problems)
        more = f"; and {rest} more" if rest else ""
        return f"{self.count} lines cannot be read: {named}{more}. Mend them, or leave them out with skip_bad=True"


class Line(NamedTuple):
    """A line of a file that is not blank."""

    where: str
    text: str
    fault: str = ""
    """Why it is no text; empty if it is."""

    def sound(self) -> str:
        """The text.

        Raises:
            ValueError: the fault.
        """
        if self.fault:
            raise ValueError(self.fault)
        return self.text


def data_files(source: PathLike) -> list[Path]:
    """The files that a path, a folder or a pattern stands for, in the order of their names.

    Raises:
        FileNotFoundError: there are none.
    """
    name, path = os.fspath(source), Path(source)
    if path.is_dir():
        found = [file for file in sorted(path.iterdir()) if file.name.removesuffix(".gz").endswith(_SUFFIXES)]
        if not found:
            raise FileNotFoundError(f"the folder {name} has no {', '.join(_SUFFIXES)} files, packed with gzip or not")
        return found
    if path.exists():
        return [path]
    found = [Path(file) for file in sorted(glob.glob(name, recursive=True)) if not os.path.isdir(file)]
    if not found:
        raise FileNotFoundError(f"there is no file or folder {name!r}, and as a pattern it fits none")
    return found


def read_lines(path: Path) -> Iterator[Line]:
    """The lines that are not blank, numbered from 1."""
    with _opened(path) as file:
        number = 0
        try:
            for number, raw in enumerate(file, 1):
                line = _decoded(f"{path}:{number}", raw.removeprefix(_BOM) if number == 1 else raw)
                if line.text.strip():
                    yield line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            yield Line(f"{path}:{number + 1}", "", f"the packed file is damaged from here on: {error}")


def _decoded(where: str, raw: bytes) -> Line:
    raw = raw.rstrip(b"\r\n")
    try:
        return Line(where, raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        fault = f"not UTF-8 text: {error.reason} at byte {error.start + 1}"
        return Line(where, raw.decode("utf-8", errors="replace"), fault)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with open(path, "rb") as file:
        if file.peek(len(_GZIP)).startswith(_GZIP):
            with gzip.open(file) as unpacked:
                yield cast(IO[bytes], unpacked)
        else:
            yield file
