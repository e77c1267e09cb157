"""`blenderbot-jax self-chat`: a model talks with itself or with another one, in many dialogues at once."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import click
from rich import box
from rich.progress import MofNCompleteColumn
from rich.table import Table

from blenderbot_jax.chatbot import Chatbot
from blenderbot_jax.cli.evaluate import check_writable, shown
from blenderbot_jax.cli.options import load_bot, model_and_decoding, output_console, progress_bar, speaking_options
from blenderbot_jax.evaluation.dialogues import dialogue_metrics
from blenderbot_jax.evaluation.self_chat import OPENINGS, Personas, self_chat, write_dialogues
from blenderbot_jax.generation import Packing

_TEXT = click.File("r", encoding="utf-8-sig")
_FILE = click.Path(dir_okay=False, path_type=Path)
_COUNT = click.IntRange(min=1)


@click.command("self-chat", short_help="Let models talk with each other, in many dialogues at once.")
@click.option("--partner", metavar="NAME", help="The model that speaks second; the same one if not said.")
@click.option("--openings", type=_TEXT, help=f"First turns, one a line; without it, {len(OPENINGS)} of our own.")
@click.option("--personas", type=_TEXT, help="One persona a line, its sentences with tabs between; A and B take turns.")
@click.option("--dialogues", type=_COUNT, help="How many; as many as there are openings if not said.")
@click.option(
    "--turns", type=click.IntRange(min=2), default=6, show_default=True, help="Of a dialogue, the first included."
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Most dialogues answered together; fit to the machine if not given.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="Write the dialogues here, as JSON lines.",
)
@speaking_options
@model_and_decoding
def self_chat_command(
    partner: str | None,
    openings: TextIO | None,
    personas: TextIO | None,
    dialogues: int | None,
    turns: int,
    batch_size: int | None,
    output: Path,
    **options: Any,
) -> None:
    """Let a model talk with itself, or with a partner, and write what was said.

    All dialogues go on together, a turn at a time. With --sample they differ by chance, the same for the same --seed;
    without it each needs an opening of its own. The file is one that `eval` and training read.

    \b
    Examples:
      blenderbot-jax self-chat --output talk.jsonl
      blenderbot-jax self-chat --sample --top-p 0.9 --dialogues 1000 --turns 8 --output talk.jsonl
      blenderbot-jax self-chat --model ./mine --partner facebook/blenderbot-400M-distill --output talk.jsonl
    """
    check_writable(output)
    texts = OPENINGS if openings is None else tuple(_lines(openings, "--openings"))
    traits = [line.split("\t") for line in _lines(personas, "--personas")] if personas else []
    count = dialogues or len(texts)
    opened = [texts[i % len(texts)] for i in range(count)]
    assigned = [_assigned(traits, i) for i in range(count)] if traits else None
    bot, key = load_bot(**options)
    other, key = _partner(partner, bot, key, options)
    if key is None and _copies(opened, assigned):
        raise click.UsageError(
            f"{count} dialogues of {len(texts)} openings would hold the same ones twice, for nothing is drawn at "
            "random: add --sample, or more --openings"
        )
    with progress_bar(MofNCompleteColumn()) as progress:
        task = progress.add_task("turns", total=count * (turns - 1))
        found = self_chat(
            _ready(bot, batch_size, count),
            None if other is None else _ready(other, batch_size, count),
            openings=opened,
            turns=turns,
            personas=assigned,
            key=key,
            on_progress=lambda said: progress.advance(task, said),
        )
    write_dialogues(output, found)
    output_console().print(_table(dialogue_metrics(found, given=1)))
    click.echo(f"{len(found)} dialogues in {output}")


def _lines(file: TextIO, flag: str) -> list[str]:
    try:
        lines = [line.strip() for line in file if line.strip()]
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{flag} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    if not lines:
        raise click.UsageError(f"the file of {flag} is empty")
    return lines


def _assigned(traits: Sequence[Sequence[str]], i: int) -> Personas:
    """Personas of dialogue i: the next two of the file, which begins anew at its end."""
    return {"A": traits[2 * i % len(traits)], "B": traits[(2 * i + 1) % len(traits)]}


def _partner(name: str | None, bot: Chatbot, key: Any, options: dict[str, Any]) -> tuple[Chatbot | None, Any]:
    """The partner, if there is one, and the key of whoever draws."""
    if name is None:
        return None, key
    # A revision is of the model that it was given for.
    other, drawn = load_bot(**{**options, "name": name, "revision": None})
    return other, key if key is not None else drawn


def _copies(openings: Sequence[str], personas: Sequence[Personas] | None) -> bool:
    """Whether two dialogues begin alike in all."""
    begun = [(text, str(personas[i]) if personas else "") for i, text in enumerate(openings)]
    return len(set(begun)) < len(begun)


def _ready(bot: Chatbot, batch_size: int | None, count: int) -> Chatbot:
    """The bot with its weights packed for as many dialogues as it answers together."""
    packed = dataclasses.replace(bot, packing=Packing(batch_size=batch_size))
    return packed.prepared(min(count, batch_size or count), donate=True)


def _table(figures: dict[str, float]) -> Table:
    table = Table("of the turns that models said", "", box=box.SIMPLE_HEAD)
    table.columns[1].justify = "right"
    for name, value in figures.items():
        table.add_row(name, shown(value))
    return table
