"""`blenderbot-jax reply`: answer one utterance, or one a line."""

import sys
from typing import Any, TextIO

import click
from rich.progress import MofNCompleteColumn

from blenderbot_jax.cli.options import (
    blocked_note,
    load_bot,
    model_and_decoding,
    progress_bar,
    speaking_options,
    standard_input,
)


@click.command(short_help="Answer a text, or every line of a file.")
@click.argument("text", nargs=-1)
@click.option(
    "--file", "source", type=click.File("r", encoding="utf-8-sig"), help="One utterance a line; - is standard input."
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Most lines decoded together."
)
@speaking_options
@model_and_decoding
def reply(text: tuple[str, ...], source: TextIO | None, batch_size: int, **options: Any) -> None:
    """Answer TEXT, or every line of a file or of standard input.

    Replies go to standard output, one a line in the order of the utterances; an empty line stays empty.

    \b
    Examples:
      blenderbot-jax reply "My friends are cool but they eat too many carbs."
      blenderbot-jax reply --sample --temperature 0.8 --seed 7 "Hi there!"
      blenderbot-jax reply --file questions.txt > answers.txt
      cat questions.txt | blenderbot-jax reply
      blenderbot-jax reply --model facebook/blenderbot-400M-distill "Hi there!"
    """
    utterances = _utterances(text, source)
    if not any(utterances):
        raise click.UsageError("there is nothing to answer: the input is empty")
    bot, key = load_bot(**options)
    rows = [row for row, utterance in enumerate(utterances) if utterance]
    bot = bot.prepared(min(batch_size, len(rows)), donate=True)
    with progress_bar(MofNCompleteColumn()) as progress:
        task = progress.add_task("replies (the first of each length compiles)", total=len(rows))
        answers = bot.responses(
            [utterances[row] for row in rows],
            batch_size=batch_size,
            key=key,
            on_progress=lambda count: progress.advance(task, count),
        )
    by_row = dict(zip(rows, answers, strict=True))
    for row in range(len(utterances)):
        response = by_row.get(row)
        # A model may write a line break of its own; here a line is a reply.
        click.echo(" ".join(response.text.splitlines()) if response else "")
        for one in response.blocked if response else ():
            click.echo(f"line {row + 1}: {blocked_note(one)}", err=True)


def _utterances(text: tuple[str, ...], source: TextIO | None) -> list[str]:
    if text and source:
        raise click.UsageError("give TEXT or --file, not both")
    if text:
        return [" ".join(text).strip()]
    if source is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise click.UsageError('give a TEXT, as in: blenderbot-jax reply "Hello there!"')
        source = standard_input("strict")
    try:
        return [line.strip() for line in source]
    except UnicodeDecodeError as error:
        raise click.UsageError(f"the input is not UTF-8 text: {error.reason} at byte {error.start}") from error
