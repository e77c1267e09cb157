"""The record of a measurement: machine, versions, commit and command beside the numbers."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from blenderbot_jax.files import write_text

RESULTS = Path(__file__).parent / "results"
_FOLDERS = re.compile(r"(?<![^=])/(?:[^/,]+/)*")  # an absolute path, up to its last name
_SIGNS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")


def machine() -> dict[str, Any]:
    """What was measured on: processor, cores this process may use, memory, vector instructions, load at the start."""
    about = _lines("/proc/cpuinfo")
    flags = set(about.get("flags", "").split())
    return {
        "processor": about.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": [sign for sign in _SIGNS if sign in flags],
        "memory": int(_lines("/proc/meminfo").get("MemTotal", "0").split()[0]) * 1024,
        "system": platform.platform(),
        "load": round(os.getloadavg()[0], 2),
        "niceness": os.nice(0),
    }


def available_memory() -> int:
    """Bytes that can be had now without swapping."""
    return int(_lines("/proc/meminfo").get("MemAvailable", "0").split()[0]) * 1024


def provenance() -> dict[str, Any]:
    """When, at which commit and by which command."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        "commit": _commit(),
        "command": command(),
        "machine": machine(),
    }


def command() -> str:
    """The command line of this process, without the folders of this machine."""
    spec = sys.modules["__main__"].__spec__
    module = "?" if spec is None else spec.name.removesuffix(".__main__")
    return shlex.join(["python", "-m", module, *(_FOLDERS.sub("", word) for word in sys.argv[1:])])


def read(path: Path) -> dict[str, Any]:
    """The cases of a results file by name; none where there is no file yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def add(path: Path, name: str, case: dict[str, Any]) -> None:
    """Put a case into a results file, in place of what it had under this name; the file is whole at any time."""
    write_text(path, json.dumps({**read(path), name: case}, indent=1) + "\n")


def _commit() -> str | None:
    run = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(run, cwd=RESULTS.parent, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _lines(path: str) -> dict[str, str]:
    """`key : value` lines of a file under /proc; the first of each key, nothing on systems without it."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = [line.partition(":") for line in reversed(text.splitlines())]
    return {key.strip(): value.strip() for key, _, value in pairs}
