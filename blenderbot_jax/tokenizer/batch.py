"""Rows of ids cut, padded and made into arrays: pure functions over lists."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from blenderbot_jax.tokenizer import arguments

Rows = list[list[int]]
_PADDING = {True: "longest", False: "do_not_pad"} | {name: name for name in ("longest", "max_length", "do_not_pad")}
_TRUNCATION = {True: True, False: False, "longest_first": True, "only_first": True, "do_not_truncate": False}


@dataclass(frozen=True)
class Layout:
    """What the padding and truncation arguments of a call come to; `plan_layout` makes one."""

    padding: str
    """`longest`, `max_length` or `do_not_pad`."""
    truncate: bool
    """Whether rows longer than `length` are cut."""
    length: int | None
    """Number of ids, the closing ones included; given wherever padding or truncation needs it."""
    multiple: int
    """Padded widths are rounded up to a multiple of this."""

    def width(self, rows: Rows) -> int:
        """The number of columns that rows are padded to; 0 where nothing is padded."""
        if self.padding == "do_not_pad":
            return 0
        longest = max(map(len, rows), default=0)
        wanted = (self.length or 0) if self.padding == "max_length" else longest
        return -(-wanted // self.multiple) * self.multiple


def plan_layout(
    *,
    padding: bool | str | None,
    truncation: bool | str | None,
    max_length: int | None,
    pad_to_multiple_of: int | None,
    model_max_length: int | None,
    batched: bool,
) -> Layout:
    """Turn the padding and truncation arguments of a call into one checked `Layout`.

    Args:
        padding, truncation, max_length, pad_to_multiple_of: as in a tokenizer's call.
        model_max_length: the length taken where one is needed and `max_length` is None.
        batched: whether there are several texts, which are padded unless `padding` says otherwise.

    Raises:
        ValueError: a value outside those of the call, or a length is needed and there is none.

    Example:
        >>> plan_layout(padding=None, truncation=True, max_length=None, pad_to_multiple_of=8,
        ...             model_max_length=128, batched=True)
        Layout(padding='longest', truncate=True, length=128, multiple=8)
    """
    if truncation is None:
        # As transformers: a length alone asks for truncation, a length beside padding does not.
        truncation = max_length is not None and padding in (None, False, "do_not_pad")
    truncate = arguments.one_of("truncation", truncation, _TRUNCATION)
    strategy = arguments.one_of("padding", batched if padding is None else padding, _PADDING)
    length = arguments.count("max_length", max_length)
    multiple = arguments.count("pad_to_multiple_of", pad_to_multiple_of) or 1
    if truncate or strategy == "max_length":
        length = length or model_max_length
        if length is None:
            raise ValueError(
                "truncation and padding='max_length' need a length, and this tokenizer has no model_max_length; pass "
                "max_length, for instance max_length=128"
            )
        if truncate and strategy != "do_not_pad" and length % multiple:
            raise ValueError(
                "a truncated and padded batch needs max_length to be a multiple of pad_to_multiple_of; "
                f"got {length} and {multiple}"
            )
    return Layout(strategy, truncate, length, multiple)


def close_row(ids: list[int], suffix: Sequence[int], length: int | None, side: str) -> list[int]:
    """Append the closing ids, first dropping ids of the text so that the whole takes no more than `length`.

    Args:
        ids: the text.
        suffix: the closing ids, which always stay.
        length: the most ids in all; None drops nothing.
        side: `right` drops the newest ids, `left` the oldest.

    Example:
        >>> close_row([7, 8, 9], [2], 3, "left"), close_row([7, 8, 9], [2], 3, "right")
        ([8, 9, 2], [7, 8, 2])
    """
    keep = len(ids) if length is None else min(len(ids), max(0, length - len(suffix)))
    kept = ids[:keep] if side == "right" else ids[len(ids) - keep :]
    return [*kept, *suffix]


def pad_rows(rows: Rows, width: int, value: int, side: str) -> Rows:
    """Fill every row with `value` up to `width` on one side; a longer row stays as it is.

    Example:
        >>> pad_rows([[7, 2], [2]], 3, 0, "right"), pad_rows([[7, 2], [2]], 3, 0, "left")
        ([[7, 2, 0], [2, 0, 0]], [[0, 7, 2], [0, 0, 2]])
    """
    pads = [[value] * (width - len(row)) for row in rows]
    pairs = zip(pads, rows, strict=True)
    return [[*fill, *row] if side == "left" else [*row, *fill] for fill, row in pairs]


def check_tensors(kind: str | None) -> None:
    """Raise a ValueError unless `kind` is None, `np` or `jax`."""
    if kind not in (None, "np", "jax"):
        raise ValueError(
            f"return_tensors must be 'np', 'jax' or None; got {kind!r}. Other libraries read the numpy arrays of "
            "return_tensors='np', for instance torch.from_numpy(batch.input_ids)"
        )


def to_array(rows: Rows, width: int, kind: str | None) -> Any:
    """An int32 array [B, T] of rows of one length.

    Args:
        rows: padded rows.
        width: what they were padded to, 0 for not at all; the T of an empty batch.
        kind: `jax` for a JAX array, else numpy.

    Raises:
        ValueError: rows of different lengths, with the option that makes them equal.
    """
    shortest, longest = min(map(len, rows), default=width), max(map(len, rows), default=width)
    if shortest != longest:
        remedy = "truncation=True or a larger max_length" if width else "padding=True, or return_tensors=None for lists"
        raise ValueError(f"rows of {shortest} to {longest} ids do not make an array; pass {remedy}")
    array = np.array(rows, np.int32).reshape(len(rows), longest)
    return jnp.asarray(array) if kind == "jax" else array
