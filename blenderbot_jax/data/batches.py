"""Batches of a few fixed shapes, in an order that a seed and the number of the epoch decide.

A program is compiled for every pair of source and target width, so both come from short lists. Everything here is a
function of the examples and the settings: a run that was cut short goes on with the very batch it stopped at, and the
processes of a cluster, each with the same examples, agree on every shape without a word.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from blenderbot_jax.data.examples import Example
from blenderbot_jax.data.packed import PackedExamples
from blenderbot_jax.generation.plan import LENGTH_BUCKETS
from blenderbot_jax.model import IGNORED_LABEL

Batch = dict[str, np.ndarray]
# Replies of the published models' data: a median of 12 to 24 tokens, 99 in 100 below 70.
TARGET_BUCKETS = (16, 32, 48, 64, 128)

Shape = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Rows:
    """Which examples a batch holds."""

    places: np.ndarray
    """[B] int64, places of examples; -1 for rows that only fill the batch, the last ones."""
    shape: Shape
    """(S, T), widths of source and target."""


class Batches:
    """Examples as batches of fixed shapes, epoch after epoch.

    An example goes into a batch of the least widths that hold it. What is left of a shape when its batches are full
    goes to the next larger one where that pads less than a batch of its own. Such a batch is filled up with empty rows:
    no labels, and one pad that is attended to, so that nothing is undefined. So every example comes exactly once an
    epoch, and each epoch has as many batches of the same shapes.

    Args:
        examples: an iterable, which is packed, or a `PackedExamples`. Every process needs the same ones.
        batch_size: B, examples of a step over all processes together.
        seed: with the epoch's number, decides the order.
        source_widths: S, ascending; if None, `LENGTH_BUCKETS` below the longest source, and that one.
        target_widths: T, ascending; if None, `TARGET_BUCKETS` likewise.
        shuffle: mix examples and batches anew each epoch; otherwise batches come narrow to wide, with their examples in
            the order given.
        drop_last: leave out batches that are not full, instead of filling them.
        pad_token_id: fills rows of `input_ids`.
        process_index, process_count: which rows of each batch are made here. Process p of n has the p-th n-th of them,
            so that `jax.make_array_from_process_local_data` puts the batch together in its order.

    Raises:
        ValueError: no examples, one longer than the widest, a batch size that the processes cannot share, other numbers
            out of their range.

    Example:
        >>> examples = [Example((5, 6, 2), (7, 2)), Example((8, 2), (9, 3, 2)), Example((4, 2), (3, 2))]
        >>> batches = Batches(examples, batch_size=2, seed=7)
        >>> len(batches), batches.widths
        (2, ((3, 3),))
        >>> [batch["input_ids"].shape for batch in batches.epoch(0)]
        [(2, 3), (2, 3)]
        >>> step = 3  # done so far; the run goes on with the batch after
        >>> rest = batches.epoch(*divmod(step, len(batches)))
    """

    def __init__(
        self,
        examples: Iterable[Example] | PackedExamples,
        batch_size: int,
        *,
        seed: int = 0,
        source_widths: Sequence[int] | None = None,
        target_widths: Sequence[int] | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        pad_token_id: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        _check_split(batch_size, process_index, process_count)
        if seed < 0:
            raise ValueError(f"seed must be at least 0, not {seed}")
        self.examples = examples if isinstance(examples, PackedExamples) else PackedExamples.of(examples)
        self.batch_size, self.seed, self.shuffle, self.drop_last = batch_size, seed, shuffle, drop_last
        self.pad_token_id, self.process_index, self.process_count = pad_token_id, process_index, process_count
        sides = (self.examples.sources.lengths, self.examples.targets.lengths)
        self.source_widths = _widths("source", source_widths, LENGTH_BUCKETS, sides[0])
        self.target_widths = _widths("target", target_widths, TARGET_BUCKETS, sides[1])
        least = [np.searchsorted(widths, side) for widths, side in zip(self._grid, sides, strict=True)]
        # Where each stands in the grid of shapes; two bytes are enough.
        self._cells = (least[0] * len(self.target_widths) + least[1]).astype(np.int16)
        if drop_last and not self._first:
            raise ValueError(
                f"{len(self.examples)} examples fill no batch of {batch_size}, and drop_last leaves out all others: "
                "take a smaller batch_size, or drop_last=False"
            )

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self._first)

    @property
    def widths(self) -> tuple[Shape, ...]:
        """The shapes (S, T) that occur, narrow to wide: as many programs are compiled."""
        return tuple(sorted({rows.shape for rows in self._first}, key=_by_size))

    @cached_property
    def padding(self) -> float:
        """The share of places, in `input_ids` and `labels` together, that hold no token; of epoch 0."""
        kept = [rows.places[rows.places >= 0] for rows in self._first]
        places = sum(self.batch_size * sum(rows.shape) for rows in self._first)
        lengths = self.examples.sources.lengths + self.examples.targets.lengths
        return 1 - sum(int(lengths[rows].sum()) for rows in kept) / places

    @property
    def fingerprint(self) -> str:
        """A hash of the examples and of what decides their order, not of the processes: a run that goes on on other
        machines must find the same one.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        settings = (self.batch_size, self.seed, self.shuffle, self.drop_last, self.pad_token_id, *self._grid)
        return hashlib.blake2b(repr((self.examples.digest(), settings)).encode(), digest_size=16).hexdigest()

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from one on.

        Args:
            number: of the epoch, from 0.
            start: batches left out at its beginning, done before.

        Returns:
            An iterator over dicts of int32 arrays: `input_ids` [B, S] and `attention_mask` [B, S], and `labels` [B, T],
            padded with -100; B is this process's share.

        Raises:
            ValueError: a number below 0, or a start past the end.
        """
        if not 0 <= start <= len(self):
            raise ValueError(f"an epoch has {len(self)} batches, so start is from 0 to {len(self)}, not {start}")
        return (self.batch(rows) for rows in self.order(number)[start:])

    def order(self, number: int) -> list[Rows]:
        """Which examples stand in each batch of an epoch, of all processes.

        Args:
            number: of the epoch, from 0.
        """
        if number < 0:
            raise ValueError(f"epochs are numbered from 0 on, not {number}")
        places = np.arange(len(self.examples))
        if not self.shuffle:
            return self._cut(places)
        chance = np.random.default_rng([self.seed, number])
        batches = self._cut(chance.permutation(places))
        return [batches[place] for place in chance.permutation(len(batches))]

    def batch(self, rows: Rows) -> Batch:
        """The arrays of a batch, this process's share of them."""
        share = self.batch_size // self.process_count
        places = rows.places[self.process_index * share :][:share]
        (S, T), sources = rows.shape, self.examples.sources
        lengths = np.where(places < 0, 1, sources.offsets[places + 1] - sources.offsets[places])
        return {
            "input_ids": sources.padded(places, S, self.pad_token_id),
            "attention_mask": (np.arange(S) < lengths[:, None]).astype(np.int32),
            "labels": self.examples.targets.padded(places, T, IGNORED_LABEL),
        }

    @cached_property
    def _first(self) -> list[Rows]:
        return self.order(0)

    @property
    def _grid(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.source_widths, self.target_widths

    def _cut(self, order: np.ndarray) -> list[Rows]:
        """Batches shape by shape, narrow to wide, of examples in an order."""
        B, waiting = self.batch_size, self._by_shape(order)
        shapes, batches = list(waiting), list[Rows]()
        for number, shape in enumerate(shapes):
            full, rest = divmod(len(waiting[shape]), B)
            batches += [Rows(places, shape) for places in waiting[shape][: full * B].reshape(full, B)]
            left = waiting[shape][full * B :]
            wider = next((other for other in shapes[number + 1 :] if _holds(other, shape)), None)
            if wider and rest and (self.drop_last or rest * sum(wider) < B * sum(shape)):
                waiting[wider] = np.concatenate([waiting[wider], left])
            elif rest and not self.drop_last:
                batches.append(Rows(np.concatenate([left, np.full(B - rest, -1)]), shape))
        return batches

    def _by_shape(self, order: np.ndarray) -> dict[Shape, np.ndarray]:
        """Examples by the least shape that holds them, narrow to wide, in their order."""
        grid = [(S, T) for S in self.source_widths for T in self.target_widths]
        cells = self._cells[order]
        found = {grid[cell]: order[cells == cell] for cell in np.unique(cells).tolist()}
        return {shape: found[shape] for shape in sorted(found, key=_by_size)}


def _holds(wider: Shape, shape: Shape) -> bool:
    return wider[0] >= shape[0] and wider[1] >= shape[1]


def _by_size(shape: Shape) -> tuple[int, Shape]:
    return sum(shape), shape


def _widths(side: str, given: Sequence[int] | None, buckets: Sequence[int], lengths: np.ndarray) -> tuple[int, ...]:
    longest = int(lengths.max())
    if given is None:
        return (*(width for width in buckets if width < longest), longest)
    widths = tuple(given)
    if not widths or widths[0] < 1 or list(widths) != sorted(set(widths)):
        raise ValueError(f"{side}_widths are ascending numbers from 1 on, not {widths}")
    if longest > widths[-1]:
        raise ValueError(
            f"example {int(lengths.argmax())} has a {side} of {longest} tokens, and the widest of {side}_widths is "
            f"{widths[-1]}: add {longest}, or make the examples with max_{side}={widths[-1]}"
        )
    return widths


def _check_split(batch_size: int, process_index: int, process_count: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if process_count < 1:
        raise ValueError(f"process_count must be at least 1, not {process_count}")
    if batch_size % process_count:
        raise ValueError(
            f"batch_size counts the rows of all processes together, so {process_count} of them cannot share "
            f"{batch_size} evenly: take a multiple of {process_count}"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index is from 0 to {process_count - 1}, not {process_index}")
