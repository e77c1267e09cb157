"""`blenderbot-jax warm-up`: compile ahead of time what later commands will need."""

from typing import Any

import click
from rich.progress import MofNCompleteColumn

from blenderbot_jax import warm
from blenderbot_jax.cli.options import load_bot, model_and_decoding, progress_bar
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
    with progress_bar(MofNCompleteColumn()) as progress:
        task = progress.add_task("programs", total=None)
        programs = warm.warm_up(
            bot.checkpoint.model,
            bot.checkpoint.params,
            bot.generation_config,
            batch_sizes=batch_sizes,
            source_widths=source_widths or None,
            draft=bot.draft,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    sizes = ", ".join(f"{rows} x {width} tokens" for rows, width in programs)
    click.echo(f"{options['name']}: programs for {sizes} are kept in {kept}")
