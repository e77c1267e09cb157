"""Step times of this library, of its variants and of its peer, as a table; what a GPU machine is asked for.

    python -m benchmarks.gpu_report --seconds 300

Every side is a process of its own, for one shape and all its batches, so that XLA's flags can differ and one side's
failure is one row. Sides are taken in order of weight until the time is spent; those left out are named.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.gpu_kernels import FLAGS
from benchmarks.gpu_steps import floor_ms, shape
from blenderbot_jax.files import write_text

# How the loop is launched; the first is the way the documentation advises.
VARIANTS: dict[str, tuple[str, ...]] = {
    "one graph": FLAGS,
    "XLA's defaults": (),
    "no graphs": ("--xla_gpu_enable_command_buffer=",),
    "one graph, no split K": (*FLAGS, "--xla_gpu_experimental_force_split_k=1"),
    "one graph, concurrent regions": (*FLAGS, "--xla_gpu_command_buffer_scheduling_mode=CONCURRENT_REGIONS"),
    "one graph, no dependent launch": (*FLAGS, "--xla_gpu_enable_pdl=false"),
}
CASES = ("beam:1", "greedy:1", "beam:32", "beam:128", "greedy:512")


@dataclass(frozen=True)
class Side:
    """One process."""

    shape: str
    side: str
    variant: str
    cases: tuple[str, ...]


def sides(shapes: tuple[str, ...], cases: tuple[str, ...]) -> list[Side]:
    """What to run, the weightiest first."""
    first, *others = shapes
    small = cases[:2]
    advised, *variants = VARIANTS
    return [
        Side(first, "ours", advised, cases),
        Side(first, "eager", "", cases),
        Side(first, "ours", variants[0], small),
        *(Side(name, "ours", advised, cases) for name in others),
        *(Side(first, "ours", variant, small) for variant in variants[1:]),
        Side(first, "compiled", "", small),
        *(Side(name, "eager", "", small) for name in others),
    ]


def run(side: Side, device: str, rounds: int, seconds: float) -> tuple[list[dict[str, Any]], str]:
    """The lines a side printed, and why there are no more of them, if so."""
    flags = " ".join((os.environ.get("XLA_FLAGS", ""), *VARIANTS.get(side.variant, ()))).strip()
    command = [sys.executable, "-m", "benchmarks.gpu_steps", "--side", side.side, "--shape", side.shape]
    command += ["--device", device, "--rounds", str(rounds)]
    for case in side.cases:
        command += ["--case", case]
    environment = {**os.environ, "XLA_FLAGS": flags}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=max(seconds, 1), check=False
        )
        output, problem = done.stdout, done.stderr.strip().splitlines()[-1:] if done.returncode else []
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout.decode() if isinstance(expired.stdout, bytes) else expired.stdout or ""
        problem = [f"stopped after {seconds:.0f} s"]
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")], "".join(problem)[:200]


def rows(side: Side, lines: list[dict[str, Any]], bandwidth: float) -> list[dict[str, Any]]:
    """One row per case that was measured or failed."""
    config = shape(side.shape)
    found = []
    for line in lines:
        if "case" not in line:
            continue
        mode, batch = line["case"].split(":")
        floor = floor_ms(config, mode, int(batch), bandwidth)
        found.append({"shape": side.shape, "side": side.side, "variant": side.variant, **line, "floor_ms": floor})
    return found


def table(measured: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| shape | case | side | ms a step | over the memory floor | ms a reply of 60 tokens |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row in sorted(measured, key=lambda row: (row["shape"], row["case"])):
        side = f"{row['side']}, {row['variant']}" if row["variant"] else f"transformers, {row['side']}"
        if "failed" in row:
            lines.append(f"| {row['shape']} | {row['case']} | {side} | failed: {row['failed']} | | |")
        else:
            lines.append(
                f"| {row['shape']} | {row['case']} | {side} | {row['ms_per_step']:.3f} | "
                f"{row['ms_per_step'] / row['floor_ms']:.1f} x {row['floor_ms']:.3f} | {row['ms_per_reply']:.1f} |"
            )
    return "\n".join(lines) + "\n"


@click.command(help=__doc__)
@click.option("--shape", "shapes", multiple=True, default=["400m", "1b", "3b"], show_default=True, help="Or tiny.")
@click.option("--case", "cases", multiple=True, default=list(CASES), show_default=True, help="MODE:BATCH.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True)
@click.option("--seconds", type=float, default=300, show_default=True, help="When to stop starting sides.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results"), show_default=True)
def main(shapes: tuple[str, ...], cases: tuple[str, ...], device: str, rounds: int, seconds: float, out: Path) -> None:
    """Measure, and write gpu.json and gpu.md, anew after every side."""
    end = time.monotonic() + seconds
    record: dict[str, Any] = {"device": None, "bandwidth": None, "rows": [], "problems": [], "left_out": []}
    out.mkdir(parents=True, exist_ok=True)
    for side in sides(shapes, cases):
        label = f"{side.shape} {side.side} {side.variant}".strip()
        if device == "cpu" and side.variant not in ("", next(iter(VARIANTS))):
            continue  # the flags are a GPU's
        if time.monotonic() > end:
            record["left_out"].append(label)
            continue
        lines, problem = run(side, device, rounds, end - time.monotonic())
        for line in lines:
            record.update({key: line[key] for key in ("device", "bandwidth") if key in line and not record[key]})
        record["rows"] += rows(side, lines, record["bandwidth"] or 1e12)
        if problem:
            record["problems"].append(f"{label}: {problem}")
        click.echo(f"{label}: {len(lines)} lines{', ' + problem if problem else ''}", err=True)
        write_text(out / "gpu.json", json.dumps(record, indent=1))
        write_text(out / "gpu.md", f"{record['device']}\n\n{table(record['rows'])}")
    click.echo(table(record["rows"]))
    for name in ("problems", "left_out"):
        for entry in record[name]:
            click.echo(f"{name.replace('_', ' ')}: {entry}")


if __name__ == "__main__":
    main()
