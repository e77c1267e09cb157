"""`blenderbot-jax info`: what a checkpoint is, and the memory it takes."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import click
import jax
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from blenderbot_jax.checkpoint import CheckpointError
from blenderbot_jax.checkpoint.folder import tensor_entries, weights_in
from blenderbot_jax.cli.options import DTYPES, hub_options, output_console
from blenderbot_jax.cli.programs import ENVIRONMENT, program_cache
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.conversion import expected_tree, model_class, model_name, parameter_count, read_config
from blenderbot_jax.generation import GenerationConfig
from blenderbot_jax.hub import SMALL_FILES, locate
from blenderbot_jax.model import BlenderbotForCausalLM, BlenderbotForConditionalGeneration

_BATCHES = (1, 8, 32)
_CAPACITIES = (32, 64, 128)
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@click.command(short_help="Show what a checkpoint is and the memory it takes.")
@click.argument("name", default="demo")
@click.option(
    "--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Precision of the cache shown."
)
@hub_options
def info(name: str, dtype: str, revision: str | None, local_only: bool) -> None:
    """Show the architecture of the checkpoint NAME, its size, its weight files, the cache it decodes with, and
    where compiled programs are kept.

    A config.json is enough: no weights are read, and of a name on the hub none are fetched. Of weight files that are
    there, the table of contents is read.

    \b
    Examples:
      blenderbot-jax info demo
      blenderbot-jax info facebook/blenderbot-3B --dtype bfloat16
    """
    folder = locate(name, SMALL_FILES, revision=revision, local_files_only=local_only)
    config = read_config(folder)
    beams = GenerationConfig.from_pretrained(folder).num_beams or 1
    console = output_console()
    console.print(_model(name, folder, config))
    prompt = f", prompts of {config.max_position_embeddings} tokens" if config.is_encoder_decoder else ""
    console.print(Text(f"memory of the decoder's cache, num_beams {beams}{prompt}, {dtype}"))
    console.print(_cache(config, beams, dtype))
    console.print(_devices())
    # Text alone is never broken, so that the folder can be copied.
    console.print(Text(f"compiled programs: {program_cache(os.environ.get(ENVIRONMENT))}"), soft_wrap=True)


def _model(name: str, folder: Path, config: BlenderbotConfig) -> Table:
    kind = _kind(folder, config)
    parameters = parameter_count(expected_tree(kind, config))
    rows = {
        "family": f"{config.model_type} ({'pre-norm' if config.normalize_before else 'post-norm'})",
        "model": model_name(kind, config),
        "vocabulary": f"{config.vocab_size:,} tokens",
        "positions": f"{config.max_position_embeddings} tokens",
        "width": f"{config.d_model:,}",
        "encoder": _side(config.encoder_layers, config.encoder_attention_heads, config.encoder_ffn_dim),
        "decoder": _side(config.decoder_layers, config.decoder_attention_heads, config.decoder_ffn_dim),
        "embeddings": "one for all" if config.tie_word_embeddings else "separate ones, and a head of its own",
        "parameters": f"{parameters:,}",
        "weights in memory": f"{decimal(parameters * 4)} in float32, {decimal(parameters * 2)} in bfloat16 or float16",
        "weights on disk": _weights(folder),
    }
    if kind is BlenderbotForCausalLM:
        del rows["encoder"]
    table = Table("checkpoint")
    table.add_column(Text(name))
    for label, value in rows.items():
        table.add_row(label, Text(value))
    return table


def _side(layers: int, heads: int, width: int) -> str:
    return f"{layers} layers, {heads} heads, feed-forward {width:,}"


def _kind(folder: Path, config: BlenderbotConfig) -> type:
    """The class of the model: by its weights where they can be read, else by its configuration."""
    if weights_in(folder):
        try:
            return model_class(folder, config)
        except CheckpointError:
            pass  # what is wrong with them is shown in their own row
    return BlenderbotForConditionalGeneration if config.is_encoder_decoder else BlenderbotForCausalLM


def _weights(folder: Path) -> str:
    found = weights_in(folder)
    if found is None:
        return "none here"
    try:
        entries = tensor_entries(folder).values()
    except CheckpointError as error:
        return f"{found[1].name} cannot be read: {error}"
    files = {entry.path for entry in entries}
    shards = f" ({len(files)} shards)" if found[1].name != found[0].name else ""
    size = sum(path.stat().st_size for path in files)
    dtypes = _counted(str(entry.dtype) for entry in entries)
    return f"{found[0].name}{shards}: {decimal(size)}, {len(entries)} tensors, {dtypes}"


def _counted(names: Iterable[str]) -> str:
    counts = Counter(names)
    return ", ".join(counts) if len(counts) < 2 else ", ".join(f"{count} of {name}" for name, count in counts.items())


def _cache(config: BlenderbotConfig, beams: int, dtype: str) -> Table:
    """Self-attention keeps keys and values [B, K, C, D] in each of L layers, cross-attention [B, S, D]."""
    table = Table("batch")
    capacities = [capacity for capacity in _CAPACITIES if capacity <= config.max_position_embeddings]
    capacities = capacities or [config.max_position_embeddings]
    for capacity in capacities:
        table.add_column(f"{capacity} tokens", justify="right")
    for batch in _BATCHES:
        sizes = (cache_numbers(config, batch, beams, capacity) * _BYTES[dtype] for capacity in capacities)
        table.add_row(str(batch), *map(decimal, sizes))
    return table


def cache_numbers(config: BlenderbotConfig, batch: int, beams: int, capacity: int) -> int:
    """The numbers in the keys and values of a decoder's cache, its prompts as long as the model allows.

    Args:
        config: the architecture.
        batch: B.
        beams: K.
        capacity: C, the most tokens of a reply.
    """
    source = config.max_position_embeddings if config.is_encoder_decoder else 0
    return 2 * config.decoder_layers * batch * config.d_model * (beams * capacity + source)


def _devices() -> Table:
    table = Table("device", "kind", "memory")
    for device in jax.devices():
        limit = (device.memory_stats() or {}).get("bytes_limit")
        table.add_row(str(device), device.device_kind, decimal(int(limit)) if limit else "not stated")
    return table
