"""Time against batch, beams, prompt, reply, depth and width: one picture of what a reply costs.

python -m benchmarks.cost_curves --out docs/cost.svg
python -m benchmarks.cost_curves --program ours --program ctranslate2 --precision int8
python -m benchmarks.cost_curves --draw                        # the picture again, from its record
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks import records
from benchmarks.options import Setup, shared
from benchmarks.pool import Pool, RefusedError, Variant
from benchmarks.workloads import Workload, calls
from blenderbot_jax.files import replacing

NEW = 20  # tokens of a reply, where the reply is not what changes


@dataclass(frozen=True)
class Sweep:
    """One panel: what changes, and the workload at each of its values."""

    title: str
    points: tuple[tuple[int, Workload], ...]


def sweeps(size: str, sizes_by_depth: Sequence[str], sizes_by_width: Sequence[str]) -> list[Sweep]:
    """The six panels.

    Args:
        size: of the first four.
        sizes_by_depth: `6x1280` and others that differ in the first number.
        sizes_by_width: others that differ in the second.
    """
    return [
        Sweep("prompts in a batch, greedy", tuple((n, Workload(size, n, 1, new_tokens=NEW)) for n in (1, 2, 4, 8, 16))),
        Sweep("beams", tuple((n, Workload(size, 1, n, new_tokens=NEW)) for n in (1, 2, 5, 10, 20))),
        Sweep("tokens of the prompt", tuple((n, Workload(size, 1, 10, n, NEW)) for n in (16, 32, 64, 128))),
        Sweep("tokens of the reply", tuple((n, Workload(size, 1, 10, new_tokens=n)) for n in (10, 20, 40, 80, 120))),
        Sweep("decoder layers", tuple(_named(name, 0) for name in sizes_by_depth)),
        Sweep("width", tuple(_named(name, 1) for name in sizes_by_width)),
    ]


def _named(size: str, number: int) -> tuple[int, Workload]:
    return int(size.split("x")[number]), Workload(size, 1, 10, new_tokens=NEW)


def measure(
    found: Sequence[Sweep],
    variants: Sequence[Variant],
    pool: Pool,
    rounds: int,
    done: Sequence[tuple[str, int, str]] = (),
) -> Iterator[dict[str, Any]]:
    """The points, size by size, so that weights are loaded once.

    Args:
        found: what to measure.
        variants: the programs.
        pool: for their processes.
        rounds: calls of each point, after one that warms up.
        done: sweep, value and program of the points to leave out.

    Yields:
        For each sweep, value and program: the median milliseconds of a call, and all of them.
    """
    places = [(sweep.title, value, workload) for sweep in found for value, workload in sweep.points]
    timed: dict[tuple[str, Workload], list[float]] = {}
    for size in dict.fromkeys(workload.size for _, _, workload in places):
        for variant in variants:
            of_size = [place for place in places if place[2].size == size]
            wanted = [place for place in of_size if (*place[:2], variant.label) not in done]
            workers = pool.ready([variant], size, lambda text: click.echo(text, err=True)) if wanted else []
            for title, value, workload in wanted if workers else []:
                if (variant.label, workload) not in timed:
                    timed[variant.label, workload] = _times(pool, workers[0], workload, rounds)
                times = timed[variant.label, workload]
                if times:
                    said = {"sweep": title, "value": value, "program": variant.label, "workload": workload.name}
                    yield {**said, "ms": statistics.median(times), "all": times}


def _times(pool: Pool, worker: Any, workload: Workload, rounds: int) -> list[float]:
    requests = [call.to_dict() for call in calls(workload)]
    try:
        pool.take_turn(worker, "warm", requests)
        turns = [pool.take_turn(worker, "run", requests) for _ in range(rounds)]
    except RefusedError as reason:
        click.echo(f"{worker.variant.label} has no {workload.name}: {reason}", err=True)
        return []
    return [1000 * turn["seconds"][0] for turn in turns]


def draw(points: Sequence[dict[str, Any]], out: Path) -> None:
    """Six panels, both axes logarithmic, one line a program.

    Args:
        points: as `measure` yields them.
        out: a file whose ending names its format.
    """
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, ScalarFormatter

    mpl.rcParams.update({"svg.hashsalt": "cost", "svg.fonttype": "none", "font.size": 8})
    figure, axes = plt.subplots(2, 3, figsize=(9, 5), layout="constrained")
    titles, programs = (list(dict.fromkeys(point[key] for point in points)) for key in ("sweep", "program"))
    for axis, title in zip(axes.flat, titles, strict=False):
        for program in programs:
            line = sorted((p["value"], p["ms"]) for p in points if (p["sweep"], p["program"]) == (title, program))
            axis.plot(*zip(*line, strict=True), marker="o", markersize=3, label=program)
        values = sorted({point["value"] for point in points if point["sweep"] == title})
        axis.set(xscale="log", yscale="log", xlabel=title, xticks=values, xticklabels=values, ylabel="ms a call")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes.flat[0].legend()
    metadata = {"Date": None} if out.suffix == ".svg" else None
    with replacing(out) as temporary:
        figure.savefig(temporary, format=out.suffix.lstrip("."), metadata=metadata)
    plt.close(figure)


@click.command()
@click.option("--size", default="400m", show_default=True)
@click.option("--depths", default="3x1280,6x1280,12x1280,24x1280", show_default=True)
@click.option("--widths", default="12x320,12x640,12x1280,12x2560", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default="docs/cost.svg", show_default=True)
@click.option("--record", type=click.Path(dir_okay=False, path_type=Path), help="Default: results/cost.json.")
@click.option("--resume", is_flag=True, help="Leave out the points that the record holds already.")
@click.option("--draw", "only_draw", is_flag=True, help="Measure nothing: draw what the record holds.")
@shared
def main(
    setup: Setup,
    size: str,
    depths: str,
    widths: str,
    rounds: int,
    out: Path,
    record: Path | None,
    resume: bool,
    only_draw: bool,
) -> None:
    """Measure and draw what a reply costs."""
    target = record or records.RESULTS / "cost.json"
    if not only_draw:
        found, precisions = sweeps(size, depths.split(","), widths.split(",")), setup.precisions or ("f32",)
        points = records.read(target)["cost"]["points"] if resume and records.read(target) else []
        done = [(point["sweep"], point["value"], point["program"]) for point in points]
        with setup.pool() as pool:
            for point in measure(found, setup.variants(precisions, ["ours"]), pool, rounds, done):
                points.append(point)
                click.echo(f"{point['program']}, {point['sweep']} {point['value']}: {point['ms']:.0f} ms")
                records.add(target, "cost", {**records.provenance(), "rounds": rounds, "points": points})
    draw(records.read(target)["cost"]["points"], out)


if __name__ == "__main__":
    main()
