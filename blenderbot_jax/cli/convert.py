"""`blenderbot-jax convert`: any checkpoint that can be read, into a folder of safetensors, or into ParlAI's form."""

from pathlib import Path

import click
from rich.filesize import decimal
from rich.progress import DownloadColumn, TransferSpeedColumn

from blenderbot_jax.cli.options import DTYPES, hub_options, progress_bar, quantize_option
from blenderbot_jax.conversion import Conversion, convert_checkpoint
from blenderbot_jax.parlai_conversion import convert_to_parlai

_LAYOUTS = ("huggingface", "parlai")
_source = click.argument("source")
_target = click.argument("target", type=click.Path(path_type=Path))
_dtype = click.option(
    "--dtype",
    type=click.Choice(["stored", *DTYPES]),
    default="stored",
    show_default=True,
    help="Precision of the new weights; `stored` keeps what is there.",
)


@click.command(short_help="Write a checkpoint anew as safetensors.")
@_source
@_target
@_dtype
@quantize_option
@click.option(
    "--to",
    "layout",
    type=click.Choice(_LAYOUTS),
    default="huggingface",
    show_default=True,
    help="Whose layout the new folder has.",
)
@hub_options
def convert(
    source: str, target: Path, dtype: str, quantize: str | None, layout: str, revision: str | None, local_only: bool
) -> None:
    """Write the checkpoint SOURCE anew into the folder TARGET, which loads here and in transformers.

    SOURCE is a folder, a hub name, or demo: safetensors, .bin of any version of PyTorch, or Flax weights, whole or in
    shards; or a checkpoint of ParlAI: its folder, its file of weights, or its .tgz. TARGET then holds config.json,
    model.safetensors, and the files of tokenizer and generation. Nothing of a .bin is executed, neither torch nor
    transformers is needed, and no more than one tensor is in memory at a time.

    With --quantize the weights are in model_int8.safetensors, which loads here alone; --dtype is then that of the rest.
    With --to parlai TARGET holds model, model.opt, model.dict and the tokenizer's files, which ParlAI loads.

    \b
    Examples:
      blenderbot-jax convert facebook/blenderbot-400M-distill blenderbot-400m
      blenderbot-jax convert ./old-checkpoint new-checkpoint --dtype bfloat16
      blenderbot-jax convert facebook/blenderbot-3B blenderbot-3b-int8 --quantize int8
      blenderbot-jax convert BST9B.tgz blenderbot-9b
      blenderbot-jax convert my-model my-model-for-parlai --to parlai
    """
    if layout == "parlai":
        if quantize is not None:
            raise click.UsageError("--quantize has no effect with --to parlai, which knows no kernels in 8 bits")
        return _write_parlai(source, target, dtype, revision, local_only)
    with progress_bar(DownloadColumn(), TransferSpeedColumn()) as progress:
        task = progress.add_task("weights", total=None)
        done = convert_checkpoint(
            source,
            target,
            dtype=None if dtype == "stored" else dtype,
            quantize=quantize,
            on_progress=lambda written, total: progress.update(task, completed=written, total=total),
            revision=revision,
            local_files_only=local_only,
        )
    _report(done, dtype)
    if not done.tokenizer:
        click.echo("The source has no tokenizer files; the new folder has none either.", err=True)


@click.command(short_help="Write a checkpoint anew in ParlAI's form.")
@_source
@_target
@_dtype
@hub_options
def to_parlai(source: str, target: Path, dtype: str, revision: str | None, local_only: bool) -> None:
    """Write the checkpoint SOURCE anew into the folder TARGET, in the form that ParlAI loads; see `convert --to`."""
    _write_parlai(source, target, dtype, revision, local_only)


def _write_parlai(source: str, target: Path, dtype: str, revision: str | None, local_only: bool) -> None:
    with progress_bar(DownloadColumn(), TransferSpeedColumn()) as progress:
        task = progress.add_task("weights", total=None)
        done = convert_to_parlai(
            source,
            target,
            dtype=None if dtype == "stored" else dtype,
            on_progress=lambda written, total: progress.update(task, completed=written, total=total),
            revision=revision,
            local_files_only=local_only,
        )
    _report(done, dtype)


def _report(done: Conversion, dtype: str) -> None:
    kept = "as it was stored" if dtype == "stored" else f"in {dtype}"
    kept = f"in int8 and the rest {kept}" if done.int8 else kept
    click.echo(f"{done.folder}: {done.model}, {done.parameters:,} parameters {kept}, {decimal(done.nbytes)}")
