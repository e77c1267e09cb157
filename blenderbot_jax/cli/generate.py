"""`blenderbot-jax generate`: replies to a large corpus, in parts, by any number of processes."""

import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
from rich.progress import MofNCompleteColumn, ProgressColumn, Task
from rich.text import Text

from blenderbot_jax.cli.options import load_bot, model_and_decoding, progress_bar, speaking_options
from blenderbot_jax.generation import Packing
from blenderbot_jax.offline import Corpus, Report, fingerprint, generate_corpus, merge, prepared, survey
from blenderbot_jax.offline.rows import FORMATS, PART_SIZE, Format

_STANDARD_INPUT = "-"
# Where there is no terminal for a bar, a line tells how far things are, this often.
_LOG_SECONDS = 60.0


class _Shard(click.ParamType):
    """i/n, which click shows and reads as it is typed."""

    name = "i/n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d+)/(\d+)", value)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            self.fail(f"{value!r} is no shard: say which of how many, from 1/4 to 4/4", param, ctx)
        return int(found[1]), int(found[2])


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} rows/s" if task.speed else "")


@click.command(short_help="Answer every row of a large corpus, in parts.")
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Folder of the parts.")
@click.option(
    "--shard", type=_Shard(), default="1/1", show_default=True, help="Make every n-th part, from the i-th on."
)
@click.option("--part-size", type=click.IntRange(min=1), default=PART_SIZE, show_default=True, help="Rows of a part.")
@click.option(
    "--format", "form", type=click.Choice(FORMATS), help="Of the input; without it the endings .jsonl and .txt say it."
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Most rows decoded together; what suits the machine if not given."
)
@click.option("--overwrite", is_flag=True, help="Make parts anew where the folder holds those of other settings.")
@click.option(
    "--merge", "joined", type=click.Path(dir_okay=False, path_type=Path), help="Join the parts of the folder INPUT."
)
@speaking_options
@model_and_decoding
def generate(
    inputs: tuple[str, ...],
    output: Path | None,
    shard: tuple[int, int],
    part_size: int,
    form: Format | None,
    batch_size: int | None,
    overwrite: bool,
    joined: Path | None,
    **options: Any,
) -> None:
    """Answer every row of the INPUT files: JSON objects with text, turns or context, or plain lines.

    Parts are written whole or not at all. Run the same command again to go on after an interruption: parts that are
    finished are kept. Shards may run at the same time, on any machines that share the folder. Each row keeps its fields
    and gets reply and score, or error.

    \b
    Examples:
      blenderbot-jax generate questions.jsonl --output answers
      blenderbot-jax generate "logs/*.jsonl" --output answers --shard 1/4
      blenderbot-jax generate lines.txt --output drawn --sample --seed 7 --part-size 256
      blenderbot-jax generate answers --merge answers.jsonl
    """
    if joined is not None:
        _merge(inputs, output, joined)
        return
    if output is None:
        raise click.UsageError("say where replies go, as in: blenderbot-jax generate questions.jsonl --output answers")
    with _files(inputs, shard, form) as sources:
        corpus = survey(sources, format=form, part_size=part_size)
        bot, key = load_bot(**options)
        bot = replace(bot, packing=Packing(batch_size))
        # As loaded: what weights are packed into depends on the machine.
        mark = fingerprint(bot.checkpoint)
        bot = prepared(bot, donate=True)
        common = {"shard": shard, "key": key, "overwrite": overwrite, "mark": mark, "model_name": options["name"]}
        with _signals() as received, _progress(output) as show:
            started = time.monotonic()
            report = generate_corpus(
                bot, corpus, output, on_progress=show, should_stop=lambda: bool(received), **common
            )
        click.echo(_summary(report, corpus, output, shard, time.monotonic() - started))
    if not report.finished:
        raise click.exceptions.Exit(128 + received[0])


def _merge(inputs: tuple[str, ...], output: Path | None, joined: Path) -> None:
    if output is not None or len(inputs) != 1:
        raise click.UsageError("--merge joins one folder, as in: blenderbot-jax generate answers --merge answers.jsonl")
    report = merge(inputs[0], joined)
    click.echo(f"{joined}: {report.rows} rows, {report.errors} of them with an error, from {report.parts} parts")


@contextmanager
def _files(inputs: tuple[str, ...], shard: tuple[int, int], form: Format | None) -> Iterator[list[str]]:
    """The inputs as files: standard input is read to its end first, since rows are numbered before any is answered."""
    if _STANDARD_INPUT not in inputs:
        yield list(inputs)
        return
    if shard != (1, 1):
        raise click.UsageError("standard input can be read by one process only: give --shard a file")
    if form is None:
        raise click.UsageError("standard input has no ending that says what it holds: add --format jsonl or text")
    if inputs.count(_STANDARD_INPUT) > 1:
        raise click.UsageError("standard input can be read once only")
    if sys.stdin is None or sys.stdin.isatty():
        raise click.UsageError("there is no standard input: pipe the rows in, or give a file")
    with tempfile.NamedTemporaryFile() as spooled:
        shutil.copyfileobj(sys.stdin.buffer, spooled)
        spooled.flush()
        yield [spooled.name if name == _STANDARD_INPUT else name for name in inputs]


@contextmanager
def _progress(output: Path) -> Iterator[Callable[[int, int], None]]:
    """A bar with rows, their rate and the time left; lines now and then where there is no terminal."""
    with progress_bar(MofNCompleteColumn(), _RateColumn()) as bar:
        if bar.disable:
            yield _log(output)
        else:
            task = bar.add_task(f"{output} (the first of each length compiles)", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)


def _log(output: Path) -> Callable[[int, int], None]:
    started = last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done and now - last >= _LOG_SECONDS:
            last, rate = now, done / (now - started)
            left = timedelta(seconds=round((total - done) / rate))
            click.echo(f"{output}: {done} of {total} rows, {rate:.1f} rows/s, {left} left", err=True)

    return tell


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals received that ask to end; the first is only noted, a second one interrupts at once."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        # Not by a buffered stream, in the middle of which this may run.
        with suppress(OSError, ValueError):
            os.write(2, b"\nStopping after this batch; once more to stop at once.\n")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _summary(report: Report, corpus: Corpus, output: Path, shard: tuple[int, int], seconds: float) -> str:
    """One line of what was done, and what there is to do."""
    part = "" if shard == (1, 1) else f" of shard {shard[0]}/{shard[1]}"
    line = (
        f"{output}: {report.kept + report.made} of {report.parts} parts{part} are finished, {report.made} of them now "
        f"in {seconds:.1f} s; {report.rows} rows, {report.errors} of them with an error"
    )
    if report.first_error:
        line += f" ({report.first_error})"
    return line if report.finished else f"{line}; stopped: run the same command again to go on"
