"""Examples by the million: all ids in flat arrays, four bytes each, where tuples of Python take forty."""

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from blenderbot_jax.data.examples import Example


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of ids of different lengths.

    Args:
        flat: int32, the rows one after another.
        offsets: [rows + 1] int64; row i is flat[offsets[i] : offsets[i + 1]].
    """

    flat: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """[rows] int64."""
        return np.diff(self.offsets)

    def padded(self, places: np.ndarray, width: int, filler: int) -> np.ndarray:
        """Some rows as an array [B, width] int32.

        Args:
            places: [B]; -1 stands for a row without ids.
            width: at least as much as the longest of them.
            filler: what stands past a row's end.
        """
        # Not by `lengths`, which looks at every row there is.
        starts, lengths = self.offsets[places], np.where(places < 0, 0, self.offsets[places + 1] - self.offsets[places])
        columns = np.arange(width)
        inside = columns < lengths[:, None]
        rows = np.full(inside.shape, filler, np.int32)
        rows[inside] = self.flat[(starts[:, None] + columns)[inside]]
        return rows


@dataclass(frozen=True, eq=False)
class PackedExamples:
    """Examples that many batches can be made of; a step of training touches only those it needs.

    Example:
        >>> packed = PackedExamples.of([Example((5, 2), (6, 7, 2)), Example((8, 9, 2), (6, 2))])
        >>> len(packed), packed.sources.lengths.tolist(), packed[1].labels
        (2, [2, 3], (6, 2))
    """

    sources: Ragged
    targets: Ragged

    @classmethod
    def of(cls, examples: Iterable[Example]) -> "PackedExamples":
        """Pack examples as they come, so that they need never be in memory all at once.

        Raises:
            ValueError: there are none, one is empty, or holds a negative id.
        """
        source, target = _Growing(), _Growing()
        for example in examples:
            source.add(example.input_ids)
            target.add(example.labels)
        return cls(source.ragged("input_ids"), target.ragged("labels"))

    def __len__(self) -> int:
        return len(self.sources.offsets) - 1

    def __getitem__(self, place: int) -> Example:
        """The ids of one example; what was cut is not kept."""
        if not 0 <= place < len(self):
            raise IndexError(f"there are {len(self)} examples, from 0 on; not {place}")
        source, target = (
            side.flat[side.offsets[place] : side.offsets[place + 1]].tolist() for side in (self.sources, self.targets)
        )
        return Example(tuple(source), tuple(target))

    def digest(self) -> str:
        """A hash of all ids, in their order."""
        seen = hashlib.blake2b(digest_size=16)
        for part in (self.sources.offsets, self.sources.flat, self.targets.offsets, self.targets.flat):
            seen.update(np.ascontiguousarray(part, part.dtype.newbyteorder("<")).data)
        return seen.hexdigest()


class _Growing:
    """Rows that are still coming in."""

    def __init__(self) -> None:
        self._ids, self._ends = array("i"), array("q", [0])

    def add(self, row: Sequence[int]) -> None:
        self._ids.extend(row)
        self._ends.append(len(self._ids))

    def ragged(self, name: str) -> Ragged:
        """The rows, which must all hold something; `name` is what a message calls them."""
        flat, offsets = np.asarray(self._ids, np.int32), np.asarray(self._ends, np.int64)
        if len(offsets) == 1:
            raise ValueError("there are no examples: a dialogue has one for each turn to learn that answers another")
        empty = np.flatnonzero(np.diff(offsets) == 0)
        if len(empty):
            raise ValueError(f"example {empty[0]} has no {name}: each has at least one id")
        if flat.min() < 0:
            place = int(np.searchsorted(offsets, np.argmax(flat < 0), side="right")) - 1
            raise ValueError(f"example {place} has a negative id in its {name}; batches put in the -100 of padding")
        return Ragged(flat, offsets)
