"""Prompts of many lengths as few batches of fixed shapes.

A program is compiled for every pair of rows and width, so both come from short lists. Prompts are sorted, longest
first, and cut into batches where that costs least: a batch may be filled up with shorter prompts, at the price of
padding them, or be smaller, at the price of one more batch and one more shape. Numbers only; nothing here runs a model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from blenderbot_jax.generation.inputs import BATCH_BUCKETS
from blenderbot_jax.generation.plan import LENGTH_BUCKETS, round_up


@dataclass(frozen=True)
class Batch:
    """Prompts that are decoded together."""

    places: tuple[int, ...]
    """Where they stand in the caller's list."""
    rows: int
    """B: rows decoded; those past the prompts only fill the shape."""
    width: int
    """S: places of the source, the longest prompt rounded up."""


@dataclass(frozen=True)
class Limits:
    """How much is decoded at once.

    Args:
        batch_size: the most prompts decoded together.
        places: the most places of keys and values in a batch, rows * (width + places_per_row); None sets no limit. A
            single prompt is always decoded.
        places_per_row: places a row takes beside its source, K * C.

    Raises:
        ValueError: a batch size below 1.
    """

    batch_size: int = BATCH_BUCKETS[-1]
    places: int | None = None
    places_per_row: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}")

    def sizes(self, width: int) -> list[int]:
        """The rows a batch of a width may have, descending: powers of two up to 64, or a multiple of 64."""
        most = self.batch_size
        if self.places is not None:
            most = min(most, max(self.places // (width + self.places_per_row), 1))
        large = most - most % BATCH_BUCKETS[-1]
        return [large] * (large > BATCH_BUCKETS[-1]) + [rows for rows in reversed(BATCH_BUCKETS) if rows <= most]


@dataclass(frozen=True)
class Costs:
    """What decoding takes, in rows: a row's reply without its prompt is 1."""

    place: float
    """A place of a row's source."""
    batch: float = 1.0
    """A batch, whatever its rows: at small sizes a step takes as long as reading the weights."""
    shape: float = 16.0
    """A batch smaller than its width allows, whose shape is compiled for few prompts."""


def pack(lengths: Mapping[int, int], widths: tuple[int, ...], limits: Limits, costs: Costs) -> list[Batch]:
    """Put prompts into batches, longest first, at the least cost; exact, by dynamic programming.

    Args:
        lengths: tokens of each prompt, by its place in the caller's list.
        widths: what they may be padded to, ascending; the last holds the longest.
        limits: of a batch.
        costs: of rows, places, batches and shapes.

    Returns:
        Batches that hold every prompt once.

    Example:
        >>> lengths = {0: 5, 1: 30, 2: 7, 3: 12, 4: 31}
        >>> for batch in pack(lengths, (16, 32), Limits(batch_size=4), Costs(place=0.01)):
        ...     print(batch)
        Batch(places=(4, 1, 3, 2), rows=4, width=32)
        Batch(places=(0,), rows=1, width=16)
    """
    order = sorted(lengths, key=lambda place: -lengths[place])
    needed = {length: round_up(length, widths) for length in set(lengths.values())}
    sizes = {width: limits.sizes(width) for width in set(needed.values())}
    # From the shortest prompts up: the least cost of all from a prompt on, and the rows its batch then has.
    least, chosen = [0.0] * (len(order) + 1), [0] * len(order)
    for start in reversed(range(len(order))):
        width = needed[lengths[order[start]]]
        largest, left = sizes[width][0], len(order) - start
        options = {
            rows: rows * (1 + costs.place * width) + costs.batch + costs.shape * (rows < largest)
            + least[min(start + rows, len(order))]
            for rows in sizes[width] if rows == 1 or rows < 2 * left
        }  # fmt: skip
        chosen[start] = min(options, key=options.__getitem__)
        least[start] = options[chosen[start]]
    batches, start = [], 0
    while start < len(order):
        places = tuple(order[start : start + chosen[start]])
        batches.append(Batch(places, chosen[start], needed[lengths[places[0]]]))
        start += len(places)
    return batches


def choose_buckets(lengths: Sequence[int], count: int, multiple_of: int = 8) -> tuple[int, ...]:
    """The widths that pad some lengths least, exactly, by dynamic programming.

    Args:
        lengths: tokens of prompts like those to come.
        count: the most widths; each is a program that is compiled once.
        multiple_of: what every width is a multiple of.

    Returns:
        Ascending widths, the last of which holds the longest; at most `count`, fewer where more would save nothing.

    Raises:
        ValueError: no lengths, a length, a count or a multiple below 1.

    Example:
        >>> choose_buckets([3, 5, 9, 10, 30, 31], count=2)
        (16, 32)
    """
    if len(lengths) == 0:
        raise ValueError("choose_buckets needs at least one length")
    for name, value in (("lengths", min(lengths)), ("count", count), ("multiple_of", multiple_of)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    steps, members = np.unique(-(-np.asarray(lengths) // multiple_of), return_counts=True)
    below = np.concatenate([[0], np.cumsum(members)])
    # cost[j]: padded length of all that is below step j, in as many widths as the round; cut[j]: where the last begins.
    cost = np.where(below == 0, 0.0, np.inf)
    cuts = []
    for _ in range(min(count, len(steps))):
        # Entry [j, i]: what lies from step i up to step j shares the width of step j.
        shared = steps[:, None] * (below[1:, None] - below[:-1])
        total = np.where(np.tri(len(steps), dtype=bool), cost[:-1] + shared, np.inf)
        cuts.append(total.argmin(axis=1))
        cost = np.concatenate([[0.0], total.min(axis=1)])
    return _walked_back(cuts, steps * multiple_of)


def covering(widths: Sequence[int], limit: int) -> tuple[int, ...]:
    """Widths up to a limit, which is the last, so that whatever a model reads has one.

    Args:
        widths: ascending; past the last of them the library's own go on.
        limit: the most tokens the model reads.

    Raises:
        ValueError: no widths, or such that are not ascending.

    Example:
        >>> covering((16, 48), 128), covering((16, 48), 40)
        ((16, 48, 64, 128), (16, 40))
    """
    if not widths or widths[0] < 1 or any(a >= b for a, b in pairwise(widths)):
        raise ValueError(f"widths must be ascending numbers of tokens such as {LENGTH_BUCKETS[:4]}, not {widths!r}")
    further = [width for width in LENGTH_BUCKETS if width > widths[-1]]
    return (*(width for width in (*widths, *further) if width < limit), limit)


def _walked_back(cuts: list[np.ndarray], widths: np.ndarray) -> tuple[int, ...]:
    """The widths that the cuts of every round lead to, from the longest down."""
    chosen, end = [], len(widths)
    for cut in reversed(cuts):
        if end == 0:
            break
        chosen.append(int(widths[end - 1]))
        end = int(cut[end - 1])
    return tuple(reversed(chosen))
