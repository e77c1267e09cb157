"""Stopping on request: Ctrl-C and SIGTERM are noted, and training ends after the step it is in."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils


@contextmanager
def noting_stop() -> Iterator[Callable[[], bool]]:
    """Note Ctrl-C and SIGTERM while the block runs; a second Ctrl-C interrupts at once.

    Yields:
        A function that tells whether one has come, to any of the processes.
    """
    noted = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        if noted.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        noted.set()

    here = threading.current_thread() is threading.main_thread()  # only there may handlers be set
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)} if here else {}
    try:
        yield lambda: _anywhere(noted.is_set())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _anywhere(noted: bool) -> bool:
    """Whether any process says so: all of them must end after the same step."""
    if jax.process_count() == 1:
        return noted
    return bool(multihost_utils.process_allgather(np.asarray(noted)).any())
