"""The options that the measuring commands share: which programs, where they are, and how turns are taken."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.pool import Definition, Pool, Variant
from benchmarks.programs import KINDS, SUPPORTED
from benchmarks.workloads import PRECISIONS

_OPTIONS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("--program", "chosen"), {"multiple": True, "help": "Only these."}),
    (("--precision", "precisions"), {"type": click.Choice(PRECISIONS), "multiple": True, "help": "Only these."}),
    (("--define",), {"multiple": True, "help": "NAME=KIND[,python=FILE][,path=FOLDER][,VARIABLE=VALUE]"}),
    (("--busy",), {"is_flag": True, "help": "Others use this machine: waiting threads sleep instead of spinning."}),
    (("--pause",), {"type": float, "default": 0.3, "show_default": True, "help": "Seconds between turns."}),
    (("--timeout",), {"type": float, "default": 900, "show_default": True, "help": "Seconds for one answer."}),
    (("--workspace",), {"type": click.Path(file_okay=False, path_type=Path), "help": "Where weights are kept."}),
)


@dataclass(frozen=True)
class Setup:
    """What the shared options said."""

    chosen: tuple[str, ...]
    precisions: tuple[str, ...]
    definitions: tuple[Definition, ...]
    busy: bool
    pause: float
    timeout: float
    workspace: Path

    def variants(self, precisions: Sequence[str] = PRECISIONS, default: Sequence[str] = ()) -> list[Variant]:
        """The programs to measure, precision by precision, ours first.

        Args:
            precisions: those a workload wants; the command line may want fewer.
            default: the programs, where the command line names none; empty for all.

        Raises:
            click.BadParameter: a program that nobody defined.
        """
        known = {each.name: each for each in [*(Definition(kind, kind) for kind in KINDS), *self.definitions]}
        if unknown := set(self.chosen) - set(known):
            there = ", ".join(known)
            raise click.BadParameter(f"no program is called {', '.join(sorted(unknown))}; there are {there}")
        wanted = self.chosen or default or tuple(known)
        return [
            Variant(known[name], precision)
            for precision in precisions
            if not self.precisions or precision in self.precisions
            for name in known
            if name in wanted and precision in SUPPORTED[known[name].kind]
        ]

    def pool(self) -> Pool:
        """No process yet."""
        return Pool(self.workspace, self.timeout, self.pause, self.busy)


def shared(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the shared options, as one argument `setup`."""

    def command(
        *,
        chosen: tuple[str, ...],
        precisions: tuple[str, ...],
        define: tuple[str, ...],
        busy: bool,
        pause: float,
        timeout: float,
        workspace: Path | None,
        **others: Any,
    ) -> Any:
        try:
            definitions = tuple(Definition.parse(text) for text in define)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error
        place = workspace or Path(tempfile.gettempdir(), "blenderbot_jax_benchmarks")
        return function(Setup(chosen, precisions, definitions, busy, pause, timeout, place), **others)

    command.__doc__ = function.__doc__
    command.__name__ = function.__name__
    for names, settings in reversed(_OPTIONS):
        command = click.option(*names, **settings)(command)
    return command
