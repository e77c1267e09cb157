"""From starting a process to its first reply, with nothing compiled before and with a warm compilation cache.

    python -m benchmarks.first_reply --size 400m
    python -m benchmarks.first_reply --size 400m --buckets         # what each shape takes to compile

Every measurement is a fresh process. A program of JAX is started twice with one new compilation cache: what the first
start compiled, the second finds there. The file with the weights is in the system's cache of files either way.
"""

import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from benchmarks import records
from benchmarks.calls import Call
from benchmarks.options import Setup, shared
from benchmarks.pool import Pool, RefusedError, Variant, Worker
from benchmarks.shapes import checkpoint_folder
from benchmarks.workloads import Workload, calls

_JAX = ("ours", "flax")
_HEAD = (
    "| program | cache | import and load, s | first reply, s | next, s | from start to first reply, s | peak, GB |",
    "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
)
_BUCKETS = {"batch": (1, 8), "beams": (1, 10), "width": (32, 64, 128)}


def start(variant: Variant, workload: Workload, pool: Pool, **environment: str) -> dict[str, Any]:
    """One fresh process, until its second reply.

    Args:
        variant: the program.
        workload: whose first call is made, twice.
        pool: for its workspace and settings; the process is none of its own.
        environment: variables for the process.

    Raises:
        RefusedError: it is not there, or failed.
    """
    folder, call = checkpoint_folder(workload.size, pool.workspace), calls(workload)[0].to_dict()
    began = time.perf_counter()
    variables = {**pool.environment, **environment}
    worker = Worker.start(variant, workload.size, pool.workspace, pool.timeout, **variables)
    try:
        facts = worker.ask("load", folder=str(folder), workspace=str(pool.workspace))
        loaded = time.perf_counter() - began
        first = worker.ask("run", calls=[call])["seconds"][0]
        until_first = time.perf_counter() - began
        following = worker.ask("run", calls=[call])["seconds"][0]
        peak = worker.ask("memory")["peak"]
    finally:
        worker.stop()
    seconds = {"load": loaded, "first": first, "next": following, "until_first": until_first}
    return {**seconds, "peak": peak, "versions": facts["versions"]}


def starts(variant: Variant, workload: Workload, pool: Pool) -> Iterator[tuple[str, dict[str, Any]]]:
    """The starts of a program that tell something: with an empty and a warm cache, or one where nothing is compiled."""
    if variant.definition.kind not in _JAX:
        yield "none", start(variant, workload, pool)
        return
    with tempfile.TemporaryDirectory() as folder:
        kept = {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        yield "empty", start(variant, workload, pool, **kept)
        yield "warm", start(variant, workload, pool, **kept)


def buckets(variant: Variant, size: str, pool: Pool) -> Iterator[tuple[str, float, float]]:
    """What each shape takes to compile: its first call less its second; replies end after two tokens.

    Yields:
        A workload's name, and the seconds of both calls.
    """
    worker = pool.ready([variant], size, lambda text: click.echo(text, err=True))[0]
    for batch, beams, width in itertools.product(*_BUCKETS.values()):
        workload = Workload(size, batch, beams, prompt_tokens=width)
        rows = calls(workload)[0].input_ids
        request = Call(rows, beams, min_length=2, max_length=60, stop=2).to_dict()
        first, second = (worker.ask("run", calls=[request])["seconds"][0] for _ in range(2))
        yield workload.name, first, second


def row(label: str, cache: str, found: dict[str, Any]) -> str:
    """One line of the table."""
    cells = [f"{found[name]:.2f}" for name in ("load", "first", "next", "until_first")]
    return f"| {label} | {cache} | {' | '.join(cells)} | {found['peak'] / 1e9:.2f} |"


@click.command()
@click.option("--size", default="400m", show_default=True)
@click.option("--beams", type=click.IntRange(1), default=10, show_default=True)
@click.option("--buckets", "by_bucket", is_flag=True, help="Compile time by shape instead.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Default: results/first_reply.json.")
@shared
def main(setup: Setup, size: str, beams: int, by_bucket: bool, out: Path | None) -> None:
    """Measure the time to the first reply."""
    target = out or records.RESULTS / "first_reply.json"
    with setup.pool() as pool:
        if by_bucket:
            for variant in setup.variants(default=["ours"]):
                _print_buckets(variant, size, pool, target)
            return
        workload, found = Workload(size, 1, beams, real=True), {}
        click.echo("\n".join(_HEAD))
        for variant in setup.variants():
            try:
                for cache, result in starts(variant, workload, pool):
                    found[f"{variant.label}, cache {cache}"] = result
                    click.echo(row(variant.label, cache, result))
                    records.add(target, workload.name, {**records.provenance(), "results": found})
            except RefusedError as reason:
                click.echo(f"{variant.label} is left out: {reason}", err=True)


def _print_buckets(variant: Variant, size: str, pool: Pool, target: Path) -> None:
    found = {}
    click.echo(f"{variant.label}\n\n| shape | first call, s | second, s | compiling, s |\n| --- | ---: | ---: | ---: |")
    for name, first, second in buckets(variant, size, pool):
        found[name] = {"first": first, "second": second}
        click.echo(f"| {name} | {first:.2f} | {second:.2f} | {first - second:.2f} |")
    records.add(target, f"{size}-buckets-{variant.label}", {**records.provenance(), "results": found})


if __name__ == "__main__":
    main()
