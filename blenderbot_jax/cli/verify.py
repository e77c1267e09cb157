"""`blenderbot-jax verify`: the same checkpoint here and in transformers."""

from typing import TextIO

import click
from rich.progress import MofNCompleteColumn
from rich.table import Table
from rich.text import Text

from blenderbot_jax.cli.options import hub_options, output_console, progress_bar
from blenderbot_jax.verification import UTTERANCES, Comparison, verify_checkpoint


@click.command(short_help="Compare a checkpoint here and in transformers.")
@click.argument("name", default="demo")
@click.option(
    "--utterances",
    type=click.File("r", encoding="utf-8-sig"),
    help=f"One a line, - is standard input; without it, {len(UTTERANCES)} of our own.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True),
    default=1e-4,
    show_default=True,
    help="Most that logits may differ, as a part of the largest where that is above 1.",
)
@hub_options
def verify(name: str, utterances: TextIO | None, tolerance: float, revision: str | None, local_only: bool) -> None:
    """Load the checkpoint NAME here and in transformers, and compare logits and replies under its own recipe.

    The exit code is 0 if all agree, 1 if something differs, and 2 if there is nothing to compare. It needs PyTorch and
    transformers (pip install torch 'transformers>=5.8'), which nothing else here does.

    \b
    Examples:
      blenderbot-jax verify demo
      blenderbot-jax verify ./converted --utterances questions.txt
    """
    texts = UTTERANCES if utterances is None else _lines(utterances)
    try:
        with progress_bar(MofNCompleteColumn()) as progress:
            task = progress.add_task("replies in both libraries", total=len(texts))
            compared = verify_checkpoint(
                name,
                texts,
                on_progress=lambda done, total: progress.update(task, completed=done, total=total),
                revision=revision,
                local_files_only=local_only,
            )
    except ImportError as error:
        raise click.UsageError(str(error)) from error
    output_console().print(_table(compared, tolerance))
    failed = sum(not one.passes(tolerance) for one in compared)
    largest = max(one.difference for one in compared)
    ties = sum(one.tie for one in compared)
    verdict = f"{failed} of {len(compared)} differ" if failed else f"all {len(compared)} agree"
    click.echo(f"{name}: {verdict}; max |difference| of logits {largest:.1e}; ties: {ties}")
    if failed:
        raise click.exceptions.Exit(1)


def _lines(file: TextIO) -> list[str]:
    try:
        texts = [line.strip() for line in file if line.strip()]
    except UnicodeDecodeError as error:
        raise click.UsageError(f"the utterances are not UTF-8 text: {error.reason} at byte {error.start}") from error
    if not texts:
        raise click.UsageError("there is nothing to compare: the file of utterances is empty")
    return texts


def _table(compared: list[Comparison], tolerance: float) -> Table:
    table = Table("utterance", "max |difference| of logits", "max |logit|", "replies", "reply")
    for one in compared:
        replies = "equal" if one.equal else "a tie" if one.tie else "DIFFER"
        said = one.ours if one.equal else f"{one.ours}\n{one.theirs} (transformers)"
        numbers = (f"{one.difference:.1e}", f"{one.largest:.1f}", replies)
        style = "" if one.passes(tolerance) else "red"
        table.add_row(*(Text(cell, style) for cell in (one.utterance, *numbers, said)))
    return table
