"""`blenderbot-jax export`: decoding as a folder that runs without this package."""

from pathlib import Path
from typing import Any

import click
from rich.filesize import decimal

from blenderbot_jax.cli.options import decoding_options, load_bot, loading_options


@click.command(short_help="Write a decoding program that runs on its own.")
@click.argument("name", metavar="MODEL")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Prompts decoded together.")
@click.option(
    "--source-width",
    type=click.IntRange(min=1),
    help="Tokens of the longest prompt; the model's positions without it. Both are rounded up to a bucket.",
)
@click.option(
    "--platform",
    "platforms",
    multiple=True,
    metavar="[cpu|cuda|rocm|tpu]",
    help="Where it is to run; repeatable. The platform in use without it; none need be here.",
)
@decoding_options
@loading_options
def export(folder: Path, batch: int, source_width: int | None, platforms: tuple[str, ...], **options: Any) -> None:
    """Write into FOLDER a program that answers as `reply` does with MODEL and these options.

    The folder holds the program, its weights, the tokenizer and run.py, which needs jax, flatbuffers, numpy,
    safetensors and tokenizers, and nothing of this package. MODEL is a folder, a hub name, or demo.

    \b
    Examples:
      blenderbot-jax export demo talk
      python talk/run.py "Hello, how are you?"
      blenderbot-jax export facebook/blenderbot-400M-distill talk --batch 8 --platform cuda --platform tpu
    """
    from blenderbot_jax.export import check_export, export_decode  # noqa: PLC0415 - jax.export is slow to import

    try:
        check_export(platforms or None)  # before a model is loaded for it
    except ImportError as error:
        raise click.UsageError(str(error)) from error
    bot, _ = load_bot(**options)
    done = export_decode(
        folder,
        bot.checkpoint.model,
        bot.checkpoint.params,
        bot.checkpoint.tokenizer,
        bot.generation_config,
        batch=batch,
        source_width=source_width,
        platforms=platforms or None,
    )
    prompts = "1 prompt" if done.batch == 1 else f"{done.batch} prompts"
    click.echo(
        f"{done.folder}: up to {prompts} of {done.source_width} tokens on {', '.join(done.platforms)}; "
        f"program {decimal(done.program_bytes)}, weights {decimal(done.weight_bytes)}"
    )
