"""`blenderbot-jax plan`: the memory and the time that a run takes, before there is a run."""

import re
from typing import Any

import click
import jax.numpy as jnp
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from blenderbot_jax.cli.options import DTYPES, hub_options, output_console
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.planning import SIZES, Layout, Machine, Plan, plan_generation, plan_training

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_TOKENS = 128


class _Bytes(click.ParamType):
    """A number of bytes, such as 80GB or 16GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([\d.]+) *([KMG]i?B)?", value, re.IGNORECASE)
        try:
            return int(float(found[1]) * _UNITS[(found[2] or "").upper()]) if found else int("")
        except ValueError:
            self.fail(f"{value!r} is no number of bytes such as 80GB or 16GiB", param, ctx)


@click.command(short_help="Plan the memory and the time of a run.")
@click.option(
    "--model",
    "name",
    default="400m",
    show_default=True,
    help=f"{', '.join(SIZES)}; or a folder, hub name or demo, whose config.json is read.",
)
@click.option("--devices", type=click.IntRange(min=1), default=1, show_default=True, help="GPUs or TPU cores.")
@click.option(
    "--fsdp",
    type=click.IntRange(min=1),
    help="Parts that all parameters are kept in; without it all devices that --tensor leaves to training, none to "
    "decoding.",
)
@click.option(
    "--tensor", type=click.IntRange(min=1), default=1, show_default=True, help="Parts that each layer is computed in."
)
@click.option("--train/--generate", "training", default=True, help="An update of the weights, or decoding.  [train]")
@click.option("--batch-size", type=click.IntRange(min=1), help="Rows over all devices; 32, or 1 with --generate.")
@click.option("--beams", type=click.IntRange(min=1), default=10, show_default=True, help="With --generate.")
@click.option("--dtype", type=click.Choice(DTYPES), default="bfloat16", show_default=True, help="Of the computation.")
@click.option(
    "--optimizer",
    type=click.Choice(("adamw", "adafactor", "lora")),
    default="adamw",
    show_default=True,
    help="To train.",
)
@click.option("--remat", is_flag=True, help="Compute layers again in the backward pass instead of keeping them.")
@click.option("--source-length", type=click.IntRange(min=1), help="Tokens of a prompt; 128 if the model knows as many.")
@click.option("--target-length", type=click.IntRange(min=1), help="Tokens of a reply; likewise.")
@click.option("--device-memory", type=_Bytes(), default="80GB", show_default=True, help="Of one device.")
@click.option("--flops", type=float, default=Machine.flops, show_default="989e12", help="Of one device, per second.")
@click.option(
    "--bandwidth", type=float, default=Machine.bandwidth, show_default="3.35e12", help="Of its memory, bytes a second."
)
@click.option(
    "--link", type=float, default=Machine.link, show_default="450e9", help="To other devices, bytes a second."
)
@hub_options
def plan(
    name: str,
    devices: int,
    fsdp: int | None,
    tensor: int,
    training: bool,
    batch_size: int | None,
    beams: int,
    dtype: str,
    optimizer: Any,
    remat: bool,
    source_length: int | None,
    target_length: int | None,
    device_memory: int,
    flops: float,
    bandwidth: float,
    link: float,
    revision: str | None,
    local_only: bool,
) -> None:
    """Plan a run: what each device holds at the peak, whether that fits, and how long a step takes.

    Nothing is loaded or compiled, and no device is needed. Memory is counted; times assume that programs reach 40 % of
    what the device can do, by default an H100.

    \b
    Examples:
      blenderbot-jax plan --model 9b --devices 8 --optimizer adafactor --remat
      blenderbot-jax plan --model 3b --devices 4 --tensor 4 --generate --batch-size 8
      blenderbot-jax plan --model 400m --device-memory 16GB --optimizer lora
    """
    config = _config(name, revision, local_only)
    layout = Layout.of(devices, fsdp=fsdp if fsdp or training else 1, tensor=tensor)
    longest = min(_TOKENS, config.max_position_embeddings)
    lengths = {"source": source_length or longest, "target": target_length or longest, "dtype": jnp.dtype(dtype)}
    if training:
        made = plan_training(config, layout, batch_size=batch_size or 32, optimizer=optimizer, remat=remat, **lengths)
    else:
        made = plan_generation(config, layout, batch_size=batch_size or 1, beams=beams, **lengths)
    console = output_console()
    _show(console, name, made, device_memory)
    seconds = made.seconds(Machine(flops, bandwidth, link))
    what = "an update" if training else "a step of decoding"
    share = f"{Machine.efficiency:.0%} of {flops:.3g} operations and {bandwidth:.3g} bytes a second"
    console.print(Text(f"{what}: about {_time(seconds)} at {share}; {_rate(made, seconds, training)}"), soft_wrap=True)


def _config(name: str, revision: str | None, local_only: bool) -> BlenderbotConfig:
    if name in SIZES:
        return SIZES[name]()
    return BlenderbotConfig.from_pretrained(name, revision=revision, local_files_only=local_only)


def _show(console: Console, name: str, made: Plan, memory: int) -> None:
    layout = made.layout
    table = Table("memory of each device", f"{name}, data={layout.data} fsdp={layout.fsdp} tensor={layout.tensor}")
    for label, nbytes in made.parts.items():
        if nbytes:
            table.add_row(label, Text(decimal(nbytes), justify="right"))
    table.add_row("peak, about", Text(decimal(made.total), justify="right"))
    console.print(table)
    if made.total <= memory:
        console.print(Text(f"fits: {made.total / memory:.0%} of {decimal(memory)}"))
    else:
        ways = "more devices in --fsdp or --tensor, a smaller --batch-size"
        ways += ", --remat, --optimizer adafactor or lora" if "optimiser" in made.parts else ", fewer --beams"
        console.print(Text(f"does not fit into {decimal(memory)}, try: {ways}"), soft_wrap=True)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.2g} ms"


def _rate(made: Plan, seconds: float, training: bool) -> str:
    rate = made.tokens / seconds
    return f"{rate:,.0f} tokens a second" + ("" if training else ", one beam counted of each prompt")
