"""Where the command keeps compiled programs between its runs; the library itself keeps none."""

import hashlib
import os
import platform
import stat
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import jax
from rich.filesize import decimal

ENVIRONMENT = "BLENDERBOT_JAX_PROGRAM_CACHE"
_OFF = "off"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class ProgramCache:
    """A folder of compiled programs, or why there is none."""

    folder: Path | None
    """For this machine and this version of JAX."""
    reason: str = ""
    """Why nothing is kept; empty if it is."""

    def __str__(self) -> str:
        if self.folder is None:
            return f"none are kept: {self.reason}"
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        size = decimal(sum(path.stat().st_size for path in files))
        return f"{self.folder} ({len(files)} files, {size}; delete the folder to be rid of them)"


def program_cache_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --program-cache, which takes effect when it is read; the command itself does not see it."""
    option = click.option(
        "--program-cache",
        metavar="FOLDER",
        envvar=ENVIRONMENT,
        show_envvar=True,
        expose_value=False,
        callback=lambda ctx, parameter, value: keep_programs(value),
        help=f"Where compiled programs are kept between runs, instead of the user's cache folder; {_OFF} keeps none.",
    )
    return option(command)


def keep_programs(choice: str | None) -> ProgramCache:
    """Have JAX keep what it compiles from now on. A folder that cannot be used stops nothing.

    Args:
        choice: a folder, "off", or None for the user's cache folder. Where JAX has a folder already, as by the
            environment variable JAX_COMPILATION_CACHE_DIR, that one stays.
    """
    cache = program_cache(choice)
    if cache.folder is None:
        if choice and choice != _OFF:
            click.echo(f"Compiled programs are not kept: {cache.reason}", err=True)
    elif jax_folder() is None:
        jax.config.update("jax_compilation_cache_dir", str(cache.folder))
        # JAX would leave out what compiles within a second, which is most of a small model's.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        _quietly(cache.folder)
    return cache


def program_cache(choice: str | None = None) -> ProgramCache:
    """The folder that a choice means, made if it is missing, or why it cannot be used."""
    own = jax_folder()
    if own is not None:
        return ProgramCache(Path(own))
    if choice == _OFF:
        return ProgramCache(None, "the cache is off")
    folder = (Path(choice).expanduser() if choice else _user_cache() / "blenderbot-jax" / "programs") / _machine()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        tempfile.TemporaryFile(dir=folder).close()
        # What stands there is run, so nobody else may put it there.
        if os.name == "posix" and folder.stat().st_mode & _OTHERS_WRITE:
            return ProgramCache(None, f"other users may write to {folder}: chmod go-w, or name another folder")
    except (OSError, ValueError, RuntimeError) as error:
        return ProgramCache(None, str(error))
    return ProgramCache(folder)


def jax_folder() -> str | None:
    """The folder in which JAX keeps programs at present, whoever named it."""
    return jax.config.values["jax_compilation_cache_dir"]


def _user_cache() -> Path:
    """The platform's folder for what can be made again."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(named):  # the convention is to ignore any other
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")


def _machine() -> str:
    """A name that only machines share which can run each other's programs: home folders may be on a network."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = [platform.processor()]
    told = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))} or set(lines[:1]))
    digest = hashlib.sha256("\n".join(told).encode()).hexdigest()[:8]
    return f"jax-{jax.__version__}-{platform.system()}-{platform.machine()}-{digest}".lower()


def _quietly(folder: Path) -> None:
    """Keep JAX's warnings about its cache from the user, who can do nothing about them."""
    show = warnings.showwarning

    def show_others(message: Warning | str, *args: Any, **options: Any) -> None:
        if "persistent compilation cache entry" not in str(message):
            show(message, *args, **options)
        elif "Error reading" in str(message):
            # JAX never writes over an entry that it could not read, and does not say which one it was.
            for path in folder.glob("*-cache"):
                path.unlink(missing_ok=True)

    warnings.showwarning = show_others
