"""`blenderbot-jax info`: what a checkpoint is, and the memory it takes."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import jax
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from blenderbot_jax import native
from blenderbot_jax.checkpoint import CheckpointError
from blenderbot_jax.checkpoint.folder import INT8_FILE, tensor_entries, weights_in
from blenderbot_jax.cli.options import DTYPES, hub_options, output_console, quantize_option
from blenderbot_jax.cli.programs import ENVIRONMENT, program_cache
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.conversion import expected_tree, model_class, model_name, parameter_count, read_config
from blenderbot_jax.generation import GenerationConfig
from blenderbot_jax.generation.plan import LENGTH_BUCKETS, round_up
from blenderbot_jax.hub import SMALL_FILES, locate
from blenderbot_jax.memory import cache_numbers, decoding_memory, weight_bytes
from blenderbot_jax.model import BlenderbotForCausalLM, BlenderbotForConditionalGeneration

_BATCHES = (1, 8, 32)
_CAPACITIES = (32, 64, 128)
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class _Loading:
    """How weights are held."""

    dtype: str
    int8: bool

    def __str__(self) -> str:
        return f"kernels in int8, the rest in {self.dtype}" if self.int8 else self.dtype


@dataclass(frozen=True)
class _Recipe:
    """B prompts, K beams, replies of up to C tokens."""

    batch: int
    beams: int
    capacity: int


@click.command(short_help="Show what a checkpoint is and the memory it takes.")
@click.argument("name", default="demo")
@click.option(
    "--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Precision of weights and cache."
)
@quantize_option
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=1, show_default=True, help="Prompts decoded together."
)
@click.option("--beams", type=click.IntRange(min=1), help="Width of the beam search; that of its recipe without it.")
@click.option(
    "--max-length", type=click.IntRange(min=1), help="Most tokens of a reply; those of its recipe without it."
)
@hub_options
def info(
    name: str,
    dtype: str,
    quantize: str | None,
    batch_size: int,
    beams: int | None,
    max_length: int | None,
    revision: str | None,
    local_only: bool,
) -> None:
    """Show the architecture of the checkpoint NAME, its size, its weight files, the cache it decodes with, the memory
    that decoding takes, and where compiled programs are kept.

    A config.json is enough: no weights are read, and of a name on the hub none are fetched. Of weight files that are
    there, the table of contents is read.

    \b
    Examples:
      blenderbot-jax info demo
      blenderbot-jax info facebook/blenderbot-3B --dtype bfloat16
      blenderbot-jax info facebook/blenderbot-3B --quantize int8 --batch-size 8 --beams 10 --max-length 60
    """
    folder = locate(name, SMALL_FILES, revision=revision, local_files_only=local_only)
    config = read_config(folder)
    recipe = GenerationConfig.from_pretrained(folder)
    beams = beams or recipe.num_beams or 1
    console = output_console()
    console.print(_model(name, folder, config))
    prompt = f", prompts of {config.max_position_embeddings} tokens" if config.is_encoder_decoder else ""
    console.print(Text(f"memory of the decoder's cache, num_beams {beams}{prompt}, {dtype}"))
    console.print(_cache(config, beams, dtype))
    longest = round_up(max_length or recipe.max_length or _CAPACITIES[0], LENGTH_BUCKETS)
    capacity = min(longest, config.max_position_embeddings)
    loading = _Loading(dtype, quantize is not None or _is_int8(folder))
    tree = expected_tree(_kind(folder, config), config)
    console.print(_peak(tree, config, loading, _Recipe(batch_size, beams, capacity)))
    console.print(_devices())
    console.print(Text(f"native CPU kernels: {_native()}"), soft_wrap=True)
    # Text alone is never broken, so that the folder can be copied.
    console.print(Text(f"compiled programs: {program_cache(os.environ.get(ENVIRONMENT))}"), soft_wrap=True)


def _native() -> str:
    if jax.default_backend() != "cpu":
        return "not used, decoding is not on the CPU"
    needs = "no, they need x86-64 Linux, AVX-512 VNNI, and a C++ compiler when the package is installed"
    return "yes" if native.available() else needs


def _model(name: str, folder: Path, config: BlenderbotConfig) -> Table:
    kind = _kind(folder, config)
    tree = expected_tree(kind, config)
    parameters = parameter_count(tree)
    in_float32 = f"{decimal(parameters * 4)} in float32"
    in_int8 = f"{decimal(weight_bytes(tree, int8=True))} with int8 kernels"
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
        "weights in memory": f"{in_float32}, {decimal(parameters * 2)} in bfloat16 or float16, {in_int8}",
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
    table = Table("batch")
    capacities = [capacity for capacity in _CAPACITIES if capacity <= config.max_position_embeddings]
    capacities = capacities or [config.max_position_embeddings]
    for capacity in capacities:
        table.add_column(f"{capacity} tokens", justify="right")
    for batch in _BATCHES:
        sizes = (cache_numbers(config, batch, beams, capacity) * _BYTES[dtype] for capacity in capacities)
        table.add_row(str(batch), *map(decimal, sizes))
    return table


def _is_int8(folder: Path) -> bool:
    found = weights_in(folder)
    return found is not None and found[0].name == INT8_FILE


def _peak(tree: dict[str, Any], config: BlenderbotConfig, loading: _Loading, recipe: _Recipe) -> Table:
    """The peak of decoding in its parts."""
    weights = weight_bytes(tree, _BYTES[loading.dtype], int8=loading.int8)
    peak = decoding_memory(
        config,
        weights,
        batch=recipe.batch,
        beams=recipe.beams,
        capacity=recipe.capacity,
        itemsize=_BYTES[loading.dtype],
        int8=loading.int8,
    )
    B, K, C = recipe.batch, recipe.beams, recipe.capacity
    L, D, V = config.decoder_layers, config.d_model, config.vocab_size
    N, F = config.encoder_attention_heads, config.encoder_ffn_dim
    size, copies = _BYTES[loading.dtype], " x 2" if loading.int8 else ""
    S = config.max_position_embeddings if config.is_encoder_decoder else 0
    rows = {
        "weights": (f"{loading}", peak.weights),
        "cache": (f"2 L B (K C + S) D x {size} = 2 x {L} x {B} x ({K} x {C} + {S}) x {D} x {size}", peak.cache),
        "logits": (f"B K V x 4{copies} = {B} x {K} x {V} x 4{copies}", peak.logits),
        "encoder": (
            f"B N S S x 4 + B S F x {size}{copies} = {B} x {N} x {S} x {S} x 4 + {B} x {S} x {F} x {size}{copies}",
            peak.encoder,
        ),
        "peak, about": ("their sum", peak.total),
    }
    if not config.is_encoder_decoder:
        del rows["encoder"]
    table = Table("memory", f"batch {B}, num_beams {K}, replies of {C} tokens")
    table.add_column("bytes", justify="right")
    for label, (formula, nbytes) in rows.items():
        table.add_row(label, Text(formula), decimal(nbytes))
    return table


def _devices() -> Table:
    table = Table("device", "kind", "memory")
    for device in jax.devices():
        limit = (device.memory_stats() or {}).get("bytes_limit")
        table.add_row(str(device), device.device_kind, decimal(int(limit)) if limit else "not stated")
    return table
