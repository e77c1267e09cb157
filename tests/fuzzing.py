"""Damaging files at random, and what must hold of whatever a reader makes of them."""

import math
import random
import re
import signal
import time
from contextlib import contextmanager

from blenderbot_jax.checkpoint.tensor_file import CheckpointError, span

# Numbers at the edges of what fields hold.
_SMALL_EDGES = (0, 1, 2, 3, 7, 8, 64, 65, 127, 128, 255, 256, 65535, 65536)
EDGES = (*_SMALL_EDGES, 2**31 - 1, 2**31, 2**32 - 1, 2**48, 2**63 - 1, 2**63, 2**64)


def refused_or_consistent(read, path):
    """Read a file; True if it was refused, False if every entry lies in the file and reads as it says.

    Any other exception than CheckpointError, and any entry that is not as it says, is an error.
    """
    entries, message = {}, None
    try:
        entries = read(path)
    except CheckpointError as error:
        message = str(error)
    if message is not None:
        assert message.startswith(str(path))
        assert len(message) < len(str(path)) + 5000
        return True
    size = path.stat().st_size
    assert type(entries) is dict
    for name, entry in entries.items():
        assert isinstance(name, str)
        count = math.prod(entry.shape)
        reach = 0 if not count else count if entry.strides is None else span(entry.shape, entry.strides)
        assert entry.nbytes <= size
        assert reach == 0 or 0 <= entry.offset <= entry.offset + reach * entry.dtype.itemsize <= size
        array = entry.read()
        assert (array.shape, array.dtype, array.nbytes) == (entry.shape, entry.dtype, entry.nbytes)
    return False


def damaged(content, donor, rng):
    """One to four random changes to the bytes of a file, some of which take bytes of another file of its kind."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        rng.choice(_CHANGES)(changed, donor, rng)
    return bytes(changed)


def _place(data, rng):
    return rng.randrange(len(data) + 1)


def _piece(data, rng):
    begin = _place(data, rng)
    return slice(begin, begin + rng.choice((1, 2, 4, 8, 9, 16, 33, 100)))


def _flip_bit(data, donor, rng):
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set_byte(data, donor, rng):
    if data:
        data[rng.randrange(len(data))] = rng.choice((rng.randrange(256), 0, 0x7F, 0x80, 0xFF))


def _truncate(data, donor, rng):
    del data[_place(data, rng) :]


def _delete(data, donor, rng):
    del data[_piece(data, rng)]


def _insert(data, donor, rng):
    place = _place(data, rng)
    data[place:place] = rng.randbytes(rng.choice((1, 2, 4, 8, 50)))


def _splice(data, donor, rng):
    data[_piece(data, rng)] = donor[_piece(donor, rng)]


def _exchange_heads(data, donor, rng):
    data[: _place(data, rng)] = donor[: _place(donor, rng)]


def _repeat(data, donor, rng):
    place = _place(data, rng)
    data[place:place] = data[_piece(data, rng)] * rng.choice((1, 2, 100))


def _swap(data, donor, rng):
    width = rng.choice((1, 2, 4, 8, 9, 16))
    one, other = sorted((_place(data, rng), _place(data, rng)))
    if one + width <= other and other + width <= len(data):
        data[one : one + width], data[other : other + width] = data[other : other + width], data[one : one + width]


def _set_number(data, donor, rng):
    width, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
    place = _place(data, rng)
    if place + width <= len(data):
        data[place : place + width] = (rng.choice(EDGES) % 256**width).to_bytes(width, order)


def _set_digits(data, donor, rng):
    """A number written out in digits, as in JSON, becomes another; the header's length keeps up or does not."""
    if found := list(re.finditer(rb"-?\d+", data)):
        number = rng.choice(found)
        new = str(rng.choice((-1, 1, 1, 1)) * rng.choice(EDGES)).encode()
        data[number.start() : number.end()] = new
        grown = int.from_bytes(data[:8], "little") + len(new) - (number.end() - number.start())
        if number.start() > 8 and rng.random() < 0.8 and 0 <= grown < 2**64:
            data[:8] = grown.to_bytes(8, "little")


_CHANGES = (
    _flip_bit, _set_byte, _truncate, _delete, _insert, _splice, _exchange_heads, _repeat, _swap, _set_number,
    _set_digits,
)  # fmt: skip


@contextmanager
def at_most(seconds):
    """Interrupt the block when it takes longer; where the platform has no such signal, complain afterwards."""
    if not hasattr(signal, "setitimer"):
        started = time.perf_counter()
        yield
        assert time.perf_counter() - started < seconds
        return

    def stop(number, frame):
        raise AssertionError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def generator(*seed):
    """Chance that can be repeated from the seed an error message shows."""
    return random.Random(repr(seed))
