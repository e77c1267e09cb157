"""Several processes, on one machine or on many: how they find each other, and what they say when one is lost."""

import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    local_devices: Sequence[int] | None = None,
    timeout: int = 300,
    heartbeat: int = 60,
) -> None:
    """Join the processes of a run; call it first in each of them, before anything else of JAX.

    Without arguments it finds out by itself what Slurm (`srun`), a TPU pod, Kubernetes or Open MPI (`mpirun`, up to 4)
    started, and does nothing for a single process. For processes that were started by hand, over SSH say, it is told.

    All processes must run the same programs in the same order. If one is lost, the others end, each with a message: as
    soon as they wait for it where its connections broke, otherwise once it has been silent for `heartbeat` seconds.

    Args:
        coordinator: "host:port" of process 0, a port that is free there and that all others reach.
        processes: how many there are.
        process: which of them this is, from 0.
        local_devices: numbers of this machine's devices to use; None for all, or, as Slurm and Open MPI start one
            process for each GPU, for that one.
        timeout: seconds to wait until all have come.
        heartbeat: seconds of silence after which a process counts as lost.

    Raises:
        ValueError: arguments that contradict each other, or of which some are missing.
        ConnectionError: the coordinator is not reached. Where it is and others do not come, JAX ends the process after
            `timeout` seconds; what that means is then said on standard error.
        RuntimeError: JAX has been used before.

    Example:
        >>> initialize(processes=1)
    """
    if jax.distributed.is_initialized() or (processes or _started()) == 1:
        return
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    _check_processes(given)
    if coordinator is not None and process:
        _reach(coordinator, timeout)
    try:
        with _impatient(timeout):
            jax.distributed.initialize(
                coordinator,
                processes,
                process,
                local_device_ids=local_devices,
                initialization_timeout=timeout,
                heartbeat_timeout_seconds=heartbeat,
                # At the end all wait for each other, for one that failed not much longer than for a sign of life.
                shutdown_timeout_seconds=heartbeat,
            )
    except (ValueError, RuntimeError) as error:
        # Where nothing was said, and nothing is found that has started several, there is one.
        said = any(value is not None for value in given.values()) or _started() is not None
        if said or isinstance(error, jax.errors.JaxRuntimeError):
            raise


@contextmanager
def _impatient(timeout: int) -> Iterator[None]:
    """Say what is the matter shortly before JAX gives up, since it then ends the process, and raises nothing."""
    message = (
        f"the processes of this run did not find each other within {timeout} s: see that all of them were started, "
        "with the same coordinator and number of processes, and that no firewall stands between them"
    )
    timer = threading.Timer(max(timeout - 1, 0), print, (message,), {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class ProcessLostError(RuntimeError):
    """Another process of the run has ended, or is no longer reached."""


@contextmanager
def together() -> Iterator[None]:
    """Around what processes do jointly: where one of them is lost, the others say so.

    Raises:
        ProcessLostError: in place of what the devices say of a connection that broke.

    Example:
        >>> with together():
        ...     total = jnp.ones(3).sum()
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or not _BROKEN.search(str(error)):
            raise
        raise ProcessLostError(
            f"process {jax.process_index()} of {jax.process_count()} has lost touch with another and ends: look for "
            f"the one that failed first, and start all again, from the last checkpoint ({str(error).splitlines()[0]})"
        ) from error


# What gloo, NCCL and the coordination service say of it.
_BROKEN = re.compile(r"gloo|nccl|connection|socket|peer|heartbeat|coordinat|UNAVAILABLE|DEADLINE", re.IGNORECASE)


def _started() -> int | None:
    """How many processes a launcher says it has started; None where none says so."""
    # Slurm sets the first for its batch script too, which is no task of its own.
    if "SLURM_STEP_NODELIST" in os.environ:
        return int(os.environ.get("SLURM_NTASKS", "1"))
    count = os.environ.get("OMPI_COMM_WORLD_SIZE")
    return None if count is None else int(count)


def _check_processes(given: Mapping[str, Any]) -> None:
    coordinator, processes, process = given.values()
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given) and _started() is None:
        raise ValueError(
            f"{' and '.join(missing)} not given: say all of coordinator, processes and process, or none of them where "
            "Slurm, Open MPI or a TPU pod says it"
        )
    if processes is not None and process is not None and not 0 <= process < processes:
        raise ValueError(
            f"process counts from 0, so the last of processes={processes} is {processes - 1}, not {process}"
        )
    if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
        raise ValueError(f'coordinator is "host:port", such as "10.0.0.1:1234", not {coordinator!r}')


def _reach(coordinator: str, timeout: int) -> None:
    """Wait until there is somebody: JAX itself ends the process without a word for a person."""
    host, port = coordinator.rsplit(":", 1)
    end = time.monotonic() + timeout
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
                return
        except OSError as error:
            if time.monotonic() > end:
                raise ConnectionError(
                    f"no coordinator answers at {coordinator} after {timeout} s ({error}): process 0 opens that port, "
                    "so see that it was started, that its host has this name, and that no firewall closes the port"
                ) from error
            time.sleep(0.5)
