"""Us and others, side by side: the same weights, prompts and rules, rounds that alternate, one table and one record.

    python -m benchmarks.compare                                   # the main table
    python -m benchmarks.compare --only 400m-b1-beam10-f32 --rounds 5
    python -m benchmarks.compare --set batch --set sizes --resume
    python -m benchmarks.compare --quick                           # that everything runs, in seconds

Programs are `ours`, `torch` (transformers), `flax` (transformers 4) and `ctranslate2`, each in the precisions it has;
what is not installed is left out with a line that says so. `--define` says where a program's code is, and adds others:

    --define ours=ours,python=OTHER_PYTHON                         # another interpreter, so another JAX
    --define flax=flax,path=FOLDER                                 # put before everything installed
    --define before=ours,path=OTHER_CHECKOUT --program ours --program before
    --define eager=ours,XLA_FLAGS=--xla_cpu_use_thunk_runtime=false
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks import records
from benchmarks.options import Setup, shared
from benchmarks.pool import ROOT, Pool, RefusedError, Variant, Worker, groups
from benchmarks.roofline import Rates, floor_seconds
from benchmarks.shapes import config_of
from benchmarks.tables import environment, table
from benchmarks.workloads import SETS, Workload, calls, select

_SHARE_OF_MEMORY = 0.85  # of what is free, for the programs that stand side by side
_LEAST_ROUNDS = 2


class Comparison:
    """One workload, measured group by group."""

    def __init__(self, workload: Workload, pool: Pool) -> None:
        self.workload, self.pool, self.calls = workload, pool, calls(workload)
        self.requests = [call.to_dict() for call in self.calls]
        self.results: dict[str, dict[str, Any]] = {}
        self.left_out: dict[str, str] = {}
        self.began = time.perf_counter()

    def progress(self, text: str) -> None:
        """A line of what is being done, with the seconds since the workload's start."""
        click.echo(f"[{self.workload.name} {time.perf_counter() - self.began:5.0f} s] {text}", err=True)

    def measure(self, index: int, group: Sequence[Variant], rounds: int, budget: float) -> None:
        """Load a group, warm it up, and let its programs take turns, in the other order every second round.

        Args:
            index: of the group.
            group: programs that fit in memory together.
            rounds: how many at most.
            budget: seconds after which no further round begins, once there are two.
        """
        workers = self.pool.ready(group, self.workload.size, self.progress)
        for variant in group:
            if reason := self.pool.refused.get((variant.label, self.workload.size)):
                self.left_out[variant.label] = reason
        running = [worker for worker in workers if self._turn(worker, "warm")]
        began = time.perf_counter()
        for number in range(rounds):
            if number >= _LEAST_ROUNDS and time.perf_counter() - began > budget:
                self.progress(f"the budget of {budget:.0f} s is spent after {number} rounds")
                break
            order = running if number % 2 == 0 else running[::-1]
            said = []
            for worker in order:
                answer = self._turn(worker, "run")
                if answer is None:
                    running = [each for each in running if each is not worker]
                    continue
                self._note(worker, index, answer)
                said.append(f"{worker.variant.label} {1000 * statistics.fmean(answer['seconds']):.0f}")
            self.progress(f"round {number + 1}, ms: " + ", ".join(said))
        for worker in running:
            self.results[worker.variant.label]["peak"] = worker.ask("memory")["peak"]

    def case(self, divided: list[list[Variant]], rates: Rates | None) -> dict[str, Any]:
        """The record: what `tables` reads."""
        for label, result in self.results.items():
            self._complete(label, result, rates)
        real = "six a round, " if len(self.calls) > 1 else ""
        rules = f"{self.workload.beams} beams" if self.workload.beams > 1 else "greedy"
        widths = sorted(len(row) - row.count(0) for call in self.calls for row in call.input_ids)
        lengths = f"prompts of {widths[0]} to {widths[-1]} tokens" if widths[0] != widths[-1] else f"{widths[0]} tokens"
        return {
            **records.provenance(),
            "batch": self.workload.batch,
            "about": f"{real}{rules}, {lengths}",
            "groups": [[v.label for v in group if v.label in self.results] for group in divided],
            "rates": None if rates is None else {"bandwidth": rates.bandwidth, **rates.matrix},
            "results": self.results,
            "left_out": self.left_out,
        }

    def _turn(self, worker: Worker, do: str) -> dict[str, Any] | None:
        label = worker.variant.label
        try:
            answer = self.pool.take_turn(worker, do, self.requests)
        except RefusedError as reason:
            self.left_out[label] = str(reason)
            self.results.pop(label, None)
            self.progress(f"{label} is left out: {reason}")
            return None
        if do == "warm":
            self.progress(f"{label} is warm after {sum(answer['seconds']):.1f} s")
            empty = {"rounds": [], "round_groups": [], "replies": None, "first_seconds": answer["seconds"][0]}
            self.results.setdefault(label, empty)
        return answer

    def _note(self, worker: Worker, group: int, answer: dict[str, Any]) -> None:
        result = self.results[worker.variant.label]
        result["rounds"].append(answer["seconds"])
        result["round_groups"].append(group)
        result["replies"] = answer["replies"]
        result |= {
            "kind": worker.variant.definition.kind,
            "precision": worker.variant.precision,
            "versions": worker.facts["versions"],
            "load_seconds": worker.facts["seconds"],
        }

    def _complete(self, label: str, result: dict[str, Any], rates: Rates | None) -> None:
        steps = [
            call.steps or 1 + max(map(len, rows)) for call, rows in zip(self.calls, result["replies"], strict=True)
        ]
        result["steps_per_call"] = statistics.fmean(steps)
        if rates is not None:
            config = config_of(self.workload.size)
            pairs = zip(self.calls, steps, strict=True)
            floors = [floor_seconds(config, call, n, result["precision"], rates) for call, n in pairs]
            result["floor_ms_per_step"] = 1000 * sum(floors) / sum(steps)
        result["same_replies"] = self._same(label)

    def _same(self, label: str) -> str:
        """How many replies are those of ours in the same precision; a program may end one without its last token."""
        mine = self.results[label]
        kin = [each for each in self.results.values() if each["precision"] == mine["precision"]]
        ours = next((each for each in kin if each["kind"] == "ours"), None)
        if ours is None or ours is mine:
            return ""
        pairs = [
            (a, b)
            for left, right in zip(mine["replies"], ours["replies"], strict=True)
            for a, b in zip(left, right, strict=True)
        ]
        same = sum(abs(len(a) - len(b)) <= 1 and all(x == y for x, y in zip(a, b, strict=False)) for a, b in pairs)
        return f"{same}/{len(pairs)}"


def machine_rates(python: str, quick: bool) -> Rates:
    """The machine's rates, measured in a process of their own."""
    command = [python, "-m", "benchmarks.roofline", *(["--quick"] if quick else [])]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return Rates(**json.loads(run.stdout.strip().splitlines()[-1]))


def compare(
    workloads: Sequence[tuple[Workload, tuple[str, ...]]],
    setup: Setup,
    pool: Pool,
    *,
    rounds: int,
    budget: float,
    memory: float,
    rates: Rates | None,
    out: Path | None,
    resume: bool,
) -> dict[str, dict[str, Any]]:
    """Measure workloads one after the other; each is printed and recorded as soon as it is done.

    Returns:
        The cases by name.
    """
    cases: dict[str, dict[str, Any]] = {}
    for workload, precisions in workloads:
        if resume and out is not None and workload.name in records.read(out):
            click.echo(f"[{workload.name}] is in {out.name} already", err=True)
            continue
        variants = setup.variants(precisions)
        comparison, divided = Comparison(workload, pool), groups(variants, workload.size, memory)
        for index, group in enumerate(divided):
            comparison.measure(index, group, rounds, budget / len(divided))
        if not comparison.results:
            click.echo(f"[{workload.name}] nothing could be measured: {comparison.left_out}", err=True)
            continue
        case = cases[workload.name] = comparison.case(divided, rates)
        if out is not None:
            records.add(out, workload.name, case)
        click.echo(f"\n{table(workload.name, case)}\n")
    return cases


@click.command()
@click.option("--set", "sets", type=click.Choice([*SETS, "all"]), multiple=True, help="Default: main.")
@click.option("--only", multiple=True, help="A workload, with or without a precision; * matches those of the sets.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--budget", type=float, default=90, show_default=True, help="Seconds a workload, once it has 2 rounds.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Record; default: results/compare.json.")
@click.option("--resume", is_flag=True, help="Leave out what the record holds already.")
@click.option("--roofline/--no-roofline", default=True, show_default=True)
@click.option("--quick", is_flag=True, help="Tiny shapes and two rounds; recorded only with --out.")
@shared
def main(
    setup: Setup,
    sets: tuple[str, ...],
    only: tuple[str, ...],
    rounds: int,
    budget: float,
    out: Path | None,
    resume: bool,
    roofline: bool,
    quick: bool,
) -> None:
    """Measure us and others side by side."""
    members = ["quick"] if quick else list(sets) or ([] if only else ["main"])
    members = [name for name in SETS if name != "quick"] if "all" in members else members
    try:
        selected = list(select([*only, *(name for member in members for name in SETS[member])]))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    target = out or (None if quick else records.RESULTS / "compare.json")
    python = next((each.python for each in setup.definitions if each.name == "ours"), sys.executable)
    rates = machine_rates(python, quick) if roofline else None
    with setup.pool() as pool:
        cases = compare(
            selected,
            setup,
            pool,
            rounds=min(rounds, 2) if quick else rounds,
            budget=budget,
            memory=_SHARE_OF_MEMORY * records.available_memory(),
            rates=rates,
            out=target,
            resume=resume,
        )
    if cases:
        click.echo(environment(list(cases.values())[-1]))


if __name__ == "__main__":
    main()
