"""Which programs are compiled while something runs."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"


@contextmanager
def compiled_programs(named: str = "") -> Iterator[list[str]]:
    """The names of the programs that are compiled, or read from the persistent cache, within the block.

    Args:
        named: count those only whose name has this in it.
    """
    seen: list[str] = []

    def listen(event: str, seconds: float, **tags: object) -> None:
        del seconds
        if event == _EVENT and named in str(tags["fun_name"]):
            seen.append(str(tags["fun_name"]))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
