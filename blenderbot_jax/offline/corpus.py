"""Replies to a whole corpus, part by part into a folder, by one process or by many."""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import jax

import blenderbot_jax
from blenderbot_jax.chatbot import Chatbot
from blenderbot_jax.files import replacing
from blenderbot_jax.generation.inputs import check_key
from blenderbot_jax.offline.answers import answer_rows, prepared
from blenderbot_jax.offline.manifest import (
    Stamp,
    check_claim,
    claim,
    count_of,
    fingerprint,
    part_path,
    read_settings,
    settings_of,
    stamp_for,
    stamp_of,
    write_part,
)
from blenderbot_jax.offline.rows import PART_SIZE, Corpus, Format, Part, Sources, dump, survey

# Streams of a key are numbered in 31 bits.
_STREAMS = 2**31
_NAMED = 10


@dataclass(frozen=True)
class Report:
    """What a run found of its shard, and what it did."""

    parts: int
    """Parts of the shard."""
    kept: int
    """Parts that were finished before."""
    made: int
    """Parts that were finished now."""
    rows: int
    """Rows of all finished parts of the shard."""
    errors: int
    """Rows of these that could not be answered."""
    first_error: str = ""
    """Which row could not be answered first in this run, and why."""

    @property
    def finished(self) -> bool:
        """Whether the shard is; it is not if the run was told to stop."""
        return self.kept + self.made == self.parts


class _StopError(Exception):
    """Raised between two batches."""


@dataclass(frozen=True)
class _Run:
    """What all parts of a run share."""

    bot: Chatbot
    corpus: Corpus
    folder: Path
    settings: Mapping[str, Any]
    key: jax.Array | None

    def path(self, part: Part) -> Path:
        """Where a part is written."""
        return part_path(self.folder, part.number, len(self.corpus.parts))

    def make(
        self, part: Part, rows: Sequence[Mapping[str, Any]], on_progress: Callable[[int], object]
    ) -> tuple[Stamp, str]:
        """Answer a part and write it: its stamp, and its first error."""
        check_claim(self.folder, self.settings)
        answers = answer_rows(self.bot, rows, key=self.key, first=part.first, on_progress=on_progress)
        reasons = {number: row.get("error") for number, row in enumerate(answers, part.first)}
        errors = [f"row {number}: {reason}" for number, reason in reasons.items() if reason is not None]
        data = b"".join(map(dump, answers))
        stamp = stamp_for(data, self.settings, len(answers), len(errors))
        write_part(self.path(part), data, stamp)
        return stamp, errors[0] if errors else ""


def generate_corpus(
    bot: Chatbot,
    sources: Sources | Corpus,
    folder: str | os.PathLike[str],
    *,
    shard: tuple[int, int] = (1, 1),
    part_size: int = PART_SIZE,
    format: Format | None = None,
    key: jax.Array | None = None,
    overwrite: bool = False,
    mark: str | None = None,
    model_name: str = "",
    on_progress: Callable[[int, int], object] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Report:
    """Answer every row of some files, into a folder of parts in their order.

    Parts `part-00001-of-00010.jsonl` are each there whole or not at all. A part that is finished is not made again, so
    a run that ended half-way, however it ended, goes on when it is called again. Shard i of n makes parts i, i + n, i +
    2n, ...: n processes together make all, at the same time or not, and each part is, byte for byte, the one that a
    single process makes on the same kind of machine.

    Args:
        bot: who answers, as loaded: its weights are packed here.
        sources: files, or patterns of names; or a `Corpus`, whose parts and format then count.
        folder: made if it is missing. Its `manifest.json` holds the settings, which all runs must share.
        shard: (i, n), counted from 1.
        part_size: rows of a part: what is lost when a process ends, and what is packed into batches together.
        format: "jsonl" or "text"; None goes by the endings. `survey` says more, and `conversation` what a row holds.
        key: a `jax.random.key`, needed if the bot samples; row i draws from `jax.random.fold_in(key, i)`.
        overwrite: whether a folder of other settings is made anew; without it, it is refused.
        mark: `fingerprint(bot.checkpoint)`, of a bot that is prepared already.
        model_name: what the manifest calls the model; it is not compared, fingerprints are.
        on_progress: called with the rows done and those to do in this run, before the first batch and after each.
        should_stop: asked between batches; the part in work is left out then.

    Returns:
        What was done. Rows that cannot be answered stop nothing: they have an `error`, and are counted.

    Raises:
        ValueError: no such shard, nothing to answer, a key too many or too few, a folder of other settings, files that
            change meanwhile.
        FileNotFoundError: a file that is not there.

    Example:
        >>> bot = Chatbot.from_pretrained("demo").configured(num_beams=1, max_length=12)
        >>> _ = Path("questions.txt").write_text("Hi!\\n\\nDo you like music?\\n")
        >>> report = generate_corpus(bot, "questions.txt", "answers", part_size=2)
        >>> report.made, report.rows, report.errors, report.first_error
        (2, 3, 1, 'row 1: a turn must not be empty')
        >>> generate_corpus(bot, "questions.txt", "answers", part_size=2).kept
        2
    """
    index, shards = shard
    if not 1 <= index <= shards:
        raise ValueError(f"a shard is (i, n) with i from 1 to n, not ({index}, {shards})")
    check_key(bot.generation_config, key)
    corpus = sources if isinstance(sources, Corpus) else survey(sources, format=format, part_size=part_size)
    if key is not None and corpus.rows > _STREAMS:
        raise ValueError(f"{corpus.rows} rows are more than the {_STREAMS} that one key has streams for: divide them")
    if mark is None:
        mark, bot = fingerprint(bot.checkpoint), prepared(bot)
    run = _Run(bot, corpus, Path(folder), settings_of(bot, mark, key, corpus), key)
    about = {"model": model_name, "version": blenderbot_jax.__version__}
    claim(run.folder, run.settings, about, overwrite=overwrite)

    own = corpus.parts[index - 1 :: shards]
    kept = {part: stamp for part in own if (stamp := stamp_of(run.path(part), run.settings))}
    left = [part for part in own if part not in kept]
    progress = _progress(left, on_progress, should_stop)
    made, first_error = list[Stamp](), ""
    with suppress(_StopError):
        for part, rows in corpus.read(left):
            progress(0)
            stamp, error = run.make(part, rows, progress)
            made.append(stamp)
            first_error = first_error or error
    return _report([*kept.values(), *made], parts=len(own), kept=len(kept), first_error=first_error)


def merge(folder: str | os.PathLike[str], path: str | os.PathLike[str]) -> Report:
    """Join the parts of a folder into one file, in the order of the rows.

    Args:
        folder: all parts of which are finished.
        path: the file, which is there whole or not at all.

    Raises:
        FileNotFoundError: nothing was generated into the folder.
        ValueError: parts are missing, or are not what was written: which.

    Example:
        >>> bot = Chatbot.from_pretrained("demo").configured(num_beams=1, max_length=12)
        >>> _ = Path("more.txt").write_text("Hi!\\nYes.\\n")
        >>> for number in (1, 2):
        ...     _ = generate_corpus(bot, "more.txt", "replies", part_size=1, shard=(number, 2))
        >>> merge("replies", "replies.jsonl").rows
        2
    """
    folder = Path(folder)
    settings = read_settings(folder)
    count = count_of(settings)
    paths = {number: part_path(folder, number, count) for number in range(1, count + 1)}
    stamps = {number: stamp for number, place in paths.items() if (stamp := stamp_of(place, settings))}
    missing = [number for number in paths if number not in stamps]
    if missing:
        raise ValueError(
            f"{len(missing)} of the {count} parts of {folder} are not finished, or not as they were written: "
            f"{_spans(missing)}. Run their shards again, or all as one shard: what is finished is kept"
        )
    with replacing(Path(path)) as temporary, temporary.open("wb") as joined:
        for place in paths.values():
            with place.open("rb") as part:
                shutil.copyfileobj(part, joined)
    return _report(stamps.values(), parts=count, kept=count)


def _progress(
    parts: Sequence[Part], on_progress: Callable[[int, int], object], should_stop: Callable[[], bool]
) -> Callable[[int], None]:
    """Of a count of rows just done, tells how many are in all; stops if it should, unless that ends a part."""
    ends = list(accumulate((part.rows for part in parts), initial=0))
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        on_progress(done, ends[-1])
        if should_stop() and (count == 0 or done not in ends):
            raise _StopError

    return progress


def _report(stamps: Iterable[Stamp], *, parts: int, kept: int, first_error: str = "") -> Report:
    found = list(stamps)
    rows, errors = sum(stamp.rows for stamp in found), sum(stamp.errors for stamp in found)
    return Report(parts, kept, len(found) - kept, rows, errors, first_error)


def _spans(numbers: list[int]) -> str:
    """Ascending numbers, those in a row by the first and the last of them."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    named = [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs[:_NAMED]]
    return ", ".join(named + ["..."] * (len(runs) > _NAMED))
