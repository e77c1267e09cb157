"""The programs that are compared, one file each, behind one interface.

A program is loaded once in a process of its own (`benchmarks.worker`) and then answers calls. Only its own file is
imported there, so that no program needs what another does.
"""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from benchmarks.calls import Call

KINDS = {"ours": "ours", "torch": "pytorch", "flax": "transformers_flax", "ctranslate2": "ctranslate"}
SUPPORTED = {
    "ours": ("f32", "bf16", "int8"),
    "torch": ("f32", "bf16"),
    "flax": ("f32",),
    "ctranslate2": ("f32", "int8"),
}
"""The precisions that are measured of each, on the CPU."""
END = 2


class UnavailableError(Exception):
    """A program that cannot be measured here, with the reason."""


class Program(Protocol):
    """Weights in memory, ready to decode."""

    compiled: bool
    """Whether the first call of a shape compiles, so that warming up needs the whole call."""

    def prepare(self, call: Call) -> Callable[[], Any]:
        """Everything that is not decoding (conversions of ids); what it returns is timed."""
        ...

    def replies(self, result: Any) -> list[list[int]]:
        """The ids of each prompt's best reply, without the start token, with or without the end token and padding."""
        ...


def load(kind: str, folder: Path, workspace: Path, precision: str, threads: int) -> tuple[Program, dict[str, str]]:
    """Load a checkpoint in this process.

    Args:
        kind: one of `KINDS`.
        folder: the checkpoint.
        workspace: where a converted copy may be kept.
        precision: `f32`, `bf16` or `int8`.
        threads: how many to use, where the program takes a number.

    Returns:
        The program, and the versions of what it runs on.

    Raises:
        UnavailableError: not installed, or not in this precision.
    """
    module = importlib.import_module(f"benchmarks.programs.{KINDS[kind]}")
    try:
        return module.load(folder, workspace, precision, threads)
    except ImportError as error:
        raise UnavailableError(f"{error}") from error


def trimmed(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Replies without the end token and what follows it."""
    found = [list(row) for row in rows]
    return [row[: row.index(END)] if END in row else row for row in found]
