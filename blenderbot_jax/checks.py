"""Early refusals: JAX clamps an index out of range in silence, so ids, masks and lengths are looked at first.

Values can be read only where they are concrete. Inside `jit` they are tracers, and only shapes are checked there.
"""

from typing import Any

import jax
import numpy as np


def concrete(array: Any) -> np.ndarray | None:
    """The values of an array as numpy, or None where it is being traced."""
    try:
        return np.asarray(array)
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError):
        return None


def check_ids(name: str, ids: Any, vocab_size: int, *, ignore: int | None = None) -> None:
    """Refuse ids that are not integers, not [B, T], or outside the vocabulary.

    Args:
        name: what the caller calls them.
        ids: [B, T].
        vocab_size: V; the table has rows 0 to V - 1.
        ignore: a value outside the vocabulary that is allowed all the same (-100 in labels).

    Raises:
        TypeError: ids that are not integers.
        ValueError: a wrong shape or an id out of range.
    """
    shape, dtype = np.shape(ids), getattr(ids, "dtype", None) or np.asarray(ids).dtype
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{name} must have shape [batch, length], both at least 1, not {list(shape)}")
    if not np.issubdtype(dtype, np.integer):
        raise TypeError(f"{name} must be integers (token ids), not {dtype}")
    values = concrete(ids)
    if values is None:
        return
    bad = (values < 0) | (values >= vocab_size)
    if ignore is not None:
        bad &= values != ignore
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name}[{row}, {column}] is {values[row, column]}, but ids go from 0 to {vocab_size - 1} in this model's "
            f"vocabulary of {vocab_size}: use the tokenizer that belongs to the model"
        )


def check_same_shape(name: str, array: Any, other_name: str, shape: tuple[int, ...]) -> None:
    """Refuse an array that must lie over another and does not."""
    if np.shape(array) != tuple(shape):
        raise ValueError(f"{name} must have the shape of {other_name}, {list(shape)}, not {list(np.shape(array))}")


def check_positions(name: str, length: int, max_positions: int) -> None:
    """Refuse more positions than the model has learned."""
    if length > max_positions:
        raise ValueError(
            f"{name} has {length} tokens, but this model knows positions for {max_positions}: "
            "truncate it (Conversation drops the oldest turns, the tokenizer takes truncation=True)"
        )
