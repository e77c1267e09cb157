"""A process that loads one program once and then answers calls: one JSON object a line in, one out.

Started by `benchmarks.pool`, by its path, so that the folders given to it come before everything installed. Between
calls it waits for its input and takes no processor time.
"""

import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SHORT = 6  # tokens of a warm-up call of a program that compiles nothing


def main() -> None:
    """Serve until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not come between the answers
    settings = json.loads(sys.argv[1])
    sys.path[:0] = settings["paths"]
    from benchmarks.programs import UnavailableError

    server = Server(settings)
    for line in sys.stdin:
        try:
            answer = server.answer(json.loads(line))
        except UnavailableError as reason:
            answer = {"unavailable": str(reason)}
        except Exception as error:
            traceback.print_exc()
            answer = {"failed": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


class Server:
    """What the requests ask for: `load`, then `warm` and `run`; `memory` at any time."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.program: Any = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request names."""
        does: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "load": self.load,
            "warm": self.warm,
            "run": self.run,
            "memory": lambda _: {"peak": resident("VmHWM"), "now": resident("VmRSS"), "processor": time.process_time()},
        }
        return does[request["do"]](request)

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Import the program and read the checkpoint."""
        from benchmarks import programs

        began = time.perf_counter()
        kind, precision, threads = (self.settings[name] for name in ("kind", "precision", "threads"))
        folder, workspace = Path(request["folder"]), Path(request["workspace"])
        self.program, versions = programs.load(kind, folder, workspace, precision, threads)
        versions |= {"python": sys.version.split()[0]}
        return {"seconds": time.perf_counter() - began, "versions": versions}

    def warm(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do once what is done once: compiling, or finding memory in a short call."""
        seconds = []
        for values in request["calls"]:
            short = {"min_length": 1, "max_length": _SHORT, "stop": None}
            one = self._timed(values if self.program.compiled else {**values, **short})
            seconds.append(one[0])
        return {"seconds": seconds}

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """The calls of one round, each timed."""
        from benchmarks.programs import trimmed

        timed = [self._timed(values) for values in request["calls"]]
        return {"seconds": [one for one, _ in timed], "replies": [trimmed(rows) for _, rows in timed]}

    def _timed(self, values: dict[str, Any]) -> tuple[float, list[list[int]]]:
        from benchmarks.calls import Call

        decode = self.program.prepare(Call.from_dict(values))
        began = time.perf_counter()
        result = decode()
        seconds = time.perf_counter() - began
        return seconds, self.program.replies(result)


def resident(field: str) -> int:
    """A size of this process in bytes, `VmHWM` the highest so far; 0 where the system does not tell."""
    try:
        found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    main()
