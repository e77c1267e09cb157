"""From recorded seconds to medians, spreads, ratios and Markdown."""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks import records

_HEAD = (
    "| program | ms | spread | ms a step | floor | from floor | times ours | replies as ours | first, s | peak, GB |",
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
)


def milliseconds(result: dict[str, Any]) -> list[float]:
    """Milliseconds a call, round by round: the mean over the round's calls."""
    return [1000 * statistics.fmean(seconds) for seconds in result["rounds"]]


def spread(values: Sequence[float]) -> float:
    """(largest - smallest) / median."""
    return (max(values) - min(values)) / statistics.median(values)


def paired_ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """The median over rounds of their time over ours in the same round, so that a busy minute slows both.

    Example:
        >>> paired_ratio([2.0, 40.0], [1.0, 20.0])
        2.0
    """
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=False))


def reference(case: dict[str, Any], label: str) -> str | None:
    """The program that a result is compared with: ours, in the same precision and measured beside it."""
    groups = [group for group in case["groups"] if label in group] or [[label]]
    precision = case["results"][label]["precision"]
    found = (
        other
        for other, result in case["results"].items()
        if result["kind"] == "ours" and result["precision"] == precision and any(other in group for group in groups)
    )
    return next(found, None)


def rounds_beside(case: dict[str, Any], label: str) -> tuple[list[float], list[float]] | None:
    """A result's times and those of its reference in the same rounds; None where nothing of ours ran beside it."""
    base = reference(case, label)
    if base is None:
        return None
    group = next(index for index, members in enumerate(case["groups"]) if {label, base} <= set(members))
    pair = [_of_group(case["results"][name], group) for name in (label, base)]
    return (pair[0], pair[1]) if pair[0] and pair[1] else None


def rows(case: dict[str, Any]) -> list[str]:
    """One row a program, then a line for each that was left out."""
    found = [_row(case, label, result) for label, result in case["results"].items()]
    return found + [f"| {label} | left out: {reason} |" + " |" * 8 for label, reason in case["left_out"].items()]


def table(name: str, case: dict[str, Any]) -> str:
    """A case as Markdown."""
    together = "" if len(case["groups"]) == 1 else "; not all fit in memory, so they were measured in groups"
    head = f"**{name}**: {case['batch']} prompts, {case['about']}{together}\n"
    return "\n".join([head, *_HEAD, *rows(case)])


def _row(case: dict[str, Any], label: str, result: dict[str, Any]) -> str:
    times, floor = milliseconds(result), result.get("floor_ms_per_step")
    if not times:
        return f"| {label} | failed: {result['failed']} |" + " |" * 8
    steps, beside = result["steps_per_call"], rounds_beside(case, label)
    step = statistics.median(times) / steps
    cells = [
        label,
        f"{statistics.median(times):.1f}",
        f"{spread(times):.0%}",
        f"{step:.2f}",
        f"{floor:.2f}" if floor else "",
        f"{step / floor:.2f}" if floor else "",
        f"{paired_ratio(*beside):.2f}" if beside else "",
        result["same_replies"],
        f"{result['first_seconds']:.1f}",
        f"{result['peak'] / 1e9:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _of_group(result: dict[str, Any], group: int) -> list[float]:
    times = milliseconds(result)
    return [time for time, member in zip(times, result["round_groups"], strict=True) if member == group]


def environment(case: dict[str, Any]) -> str:
    """Machine, versions and command of a case, as the lines under its table."""
    on, versions = case["machine"], {}
    for result in case["results"].values():
        for key, value in result["versions"].items():
            versions.setdefault(key, [])
            versions[key] += [value] if value not in versions[key] else []
    said = ", ".join(f"{key} {' and '.join(values)}" for key, values in versions.items())
    return (
        f"{on['processor']}, {on['cores']} cores ({', '.join(on['instructions'])}), {on['memory'] / 2**30:.0f} GiB; "
        f"{said}; commit {case['commit']}, {case['date']} UTC\n\n    {case['command']}"
    )


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(files: tuple[Path, ...]) -> None:
    """Print the tables of recorded comparisons, all of benchmarks/results unless files are named."""
    for path in files or sorted(records.RESULTS.glob("compare*.json")):
        for name, case in records.read(path).items():
            sys.stdout.write(f"{table(name, case)}\n\n{environment(case)}\n\n")


if __name__ == "__main__":
    main()
