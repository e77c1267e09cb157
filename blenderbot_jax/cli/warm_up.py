"""`blenderbot-jax warm-up`: compile ahead of time what later commands will need."""

from functools import partial
from typing import Any

import click
from rich.progress import MofNCompleteColumn, Progress, TaskID

from blenderbot_jax.cli.options import load_bot, model_and_decoding, progress_bar, speaking_options
from blenderbot_jax.cli.programs import jax_folder


@click.command("warm-up", short_help="Compile ahead of time, for commands to come.")
@click.option(
    "--batch-size",
    "batch_sizes",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1,),
    show_default=True,
    help="Prompts decoded together; repeatable. chat decodes 1 and reply up to its own --batch-size.",
)
@click.option(
    "--source-width",
    "source_widths",
    type=click.IntRange(min=1),
    multiple=True,
    help="Tokens of a prompt, rounded up to a bucket; repeatable. All buckets without it.",
)
@speaking_options
@model_and_decoding
def warm_up(batch_sizes: tuple[int, ...], source_widths: tuple[int, ...], **options: Any) -> None:
    """Compile the programs that decode with these options, and keep them, so that no later chat or reply waits.

    Nothing is decoded. What is kept serves this machine and this version of JAX.

    \b
    Examples:
      blenderbot-jax warm-up
      blenderbot-jax warm-up --model facebook/blenderbot-400M-distill --dtype bfloat16
      blenderbot-jax warm-up --batch-size 1 --batch-size 8 --source-width 32
    """
    kept = jax_folder()
    if kept is None:
        raise click.UsageError("programs are kept nowhere, so there is nothing to gain: name a --program-cache")
    bot, _ = load_bot(**options)
    programs = []
    with progress_bar(MofNCompleteColumn()) as progress:
        for size in dict.fromkeys(batch_sizes):
            task = progress.add_task(f"programs for {size} prompts", total=None)
            # The form of the weights is part of a program, and chat and reply prepare theirs.
            programs += bot.prepared(size).warm_up(
                batch_sizes=(size,),
                source_widths=source_widths or None,
                on_progress=partial(_show, progress, task),
            )
    sizes = ", ".join(f"{rows} x {width} tokens" for rows, width in programs)
    click.echo(f"{options['name']}: programs for {sizes} are kept in {kept}")


def _show(progress: Progress, task: TaskID, done: int, total: int) -> None:
    progress.update(task, completed=done, total=total)
