"""Processes that hold one program each, and which of them are alive at a time.

Every program runs in a process of its own, with the interpreter and the folders it needs, and all that fit in memory
stay loaded, so that rounds can alternate between them.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from benchmarks.programs import KINDS
from benchmarks.shapes import checkpoint_folder, config_of, count_parameters

ROOT = Path(__file__).parents[1]
_BYTES = {"f32": 4, "bf16": 2, "int8": 1}
_SLEEP = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
_OVERHEAD = 0.7e9  # an interpreter with its libraries, and what decoding needs beside the weights


@dataclass(frozen=True)
class Definition:
    """Where a program's code is."""

    name: str
    kind: str
    python: str = sys.executable
    path: str | None = None
    """Put before everything installed: another checkout of this library, or a peer's own folder."""
    environment: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Definition":
        """Read `NAME=KIND[,python=FILE][,path=FOLDER][,VARIABLE=VALUE...]`.

        Raises:
            ValueError: an unknown kind or key.

        Example:
            >>> Definition.parse("before=ours,path=../old").kind
            'ours'
        """
        head, *rest = text.split(",")
        name, _, kind = head.partition("=")
        pairs = [part.partition("=") for part in rest]
        given = {key: value for key, _, value in pairs}
        variables = tuple((key, value) for key, value in given.items() if key.isupper())
        unknown = set(given) - {"python", "path"} - {key for key, _ in variables}
        if kind not in KINDS or not name or unknown:
            raise ValueError(
                f"{text!r} defines no program: say NAME=KIND,python=FILE,path=FOLDER,VARIABLE=VALUE, where only the "
                f"first is needed and KIND is one of {', '.join(KINDS)}"
            )
        return cls(name, kind, given.get("python", sys.executable), given.get("path"), variables)


@dataclass(frozen=True)
class Variant:
    """A program in a precision."""

    definition: Definition
    precision: str

    @property
    def label(self) -> str:
        """How tables call it."""
        return f"{self.definition.name}-{self.precision}"

    def memory(self, size: str, while_loading: bool = False) -> float:
        """Bytes it will take, roughly."""
        width = _BYTES[self.precision]
        if self.definition.kind == "flax":
            width *= 2  # its converter from PyTorch's file leaves a second copy
        if while_loading and self.precision == "int8":
            width += 0.5 if self.definition.kind == "ours" else 2  # a few kernels at a time, or all, as they are read
        return _OVERHEAD + 1.1 * width * count_parameters(config_of(size))


class RefusedError(Exception):
    """A program that is not there, or failed; the message is the reason."""


@dataclass
class Worker:
    """One process."""

    variant: Variant
    size: str
    process: subprocess.Popen[bytes]
    log: Path
    timeout: float
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(cls, variant: Variant, size: str, workspace: Path, timeout: float, **environment: str) -> Self:
        """Start a process; `load` must be asked of it next."""
        definition, threads = variant.definition, len(os.sched_getaffinity(0))
        paths = [str(Path(definition.path).resolve())] if definition.path else []
        settings = {"kind": definition.kind, "precision": variant.precision, "paths": paths, "threads": threads}
        log = workspace / "logs" / f"{variant.label}-{size}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        inherited = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        inherited |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads), **dict(definition.environment)}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [definition.python, "-P", str(ROOT / "benchmarks" / "worker.py"), json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env={**inherited, **environment},
            )
        return cls(variant, size, process, log, timeout)

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        """Send a request and wait for the answer.

        Raises:
            RefusedError: it is not available, it failed, it ended or it took longer than the timeout.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **values}).encode() + b"\n")
            self.process.stdin.flush()
            ready, _, _ = select.select([self.process.stdout], [], [], self.timeout)
            line = self.process.stdout.readline() if ready else None
        except BrokenPipeError:
            line = b""
        if line is None:
            self.stop()
            raise RefusedError(f"no answer within {self.timeout:.0f} s")
        if not line:
            self.process.wait()
            raise RefusedError(f"its process ended ({self.process.returncode}): {self._last_words()}")
        answer = json.loads(line)
        for key in ("unavailable", "failed"):
            if key in answer:
                raise RefusedError(answer[key].splitlines()[0])
        return answer

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # what was still to be written to it
                    pipe.close()

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


class Pool:
    """The processes alive now; those that a new group does not need make room for it.

    Args:
        workspace: where weights and logs are kept.
        timeout: seconds for one answer.
        pause: seconds between turns.
        busy: whether others use the machine: threads that wait for one another then sleep instead of spinning, which
            takes ten times as long where there are fewer free cores than threads.
    """

    def __init__(self, workspace: Path, timeout: float, pause: float, busy: bool = False) -> None:
        self.workspace, self.timeout, self.pause = workspace, timeout, pause
        self.environment = _SLEEP if busy else {}
        self.workers: dict[tuple[str, str], Worker] = {}
        self.refused: dict[tuple[str, str], str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.keep([])

    def keep(self, wanted: Iterable[tuple[str, str]]) -> None:
        """End all processes but these."""
        kept = set(wanted)
        for key in [key for key in self.workers if key not in kept]:
            self.workers.pop(key).stop()

    def ready(self, variants: Sequence[Variant], size: str, progress: Any) -> list[Worker]:
        """Processes with a size's weights loaded; what cannot be loaded stands in `refused` with its reason."""
        self.keep((variant.label, size) for variant in variants)
        folder = checkpoint_folder(size, self.workspace)
        for variant in sorted(variants, key=lambda each: -each.memory(size, while_loading=True)):
            key = variant.label, size
            if key in self.workers or key in self.refused:
                continue
            progress(f"loading {variant.label}")
            worker = Worker.start(variant, size, self.workspace, self.timeout, **self.environment)
            try:
                worker.facts = worker.ask("load", folder=str(folder), workspace=str(self.workspace))
                self.workers[key] = worker
            except RefusedError as reason:
                worker.stop()
                self.refused[key] = str(reason)
                progress(f"{variant.label} is left out: {reason}")
        return [self.workers[variant.label, size] for variant in variants if (variant.label, size) in self.workers]

    def take_turn(self, worker: Worker, do: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        """One worker's turn; afterwards a pause, in which the threads of its libraries stop spinning."""
        try:
            return worker.ask(do, calls=calls)
        except RefusedError:
            if worker.process.poll() is not None:
                self.workers.pop((worker.variant.label, worker.size), None)
            raise
        finally:
            time.sleep(self.pause)


def groups(variants: Sequence[Variant], size: str, budget: float) -> list[list[Variant]]:
    """Programs that are measured together: all of them where they fit in memory.

    Where they do not, each precision's first program is the one that the others are compared with, and stands in every
    group of its precision; a pair that does not fit is measured one after the other.

    Args:
        variants: in the order of the tables.
        size: of the checkpoint.
        budget: bytes.
    """
    if _sum(variants, size) <= budget:
        return [list(variants)]
    found = []
    for precision in dict.fromkeys(variant.precision for variant in variants):
        first, *others = [variant for variant in variants if variant.precision == precision]
        group = [first]
        for other in others:
            if _sum([*group, other], size) > budget and len(group) > 1:
                found.append(group)
                group = [first]
            if _sum([*group, other], size) > budget:
                found += [group] if group not in found else []
                found.append([other])
            else:
                group.append(other)
        if len(group) > 1 or group not in found:
            found.append(group)
    return found


def _sum(variants: Sequence[Variant], size: str) -> float:
    return sum(variant.memory(size) for variant in variants)
