"""Early refusals: JAX clamps an index out of range in silence, so ids, masks and lengths are looked at first.

Values can be read only where they are concrete. Inside `jit` they are tracers, and only shapes are checked there.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

# Argument -> the values that ask for nothing, and what to do instead of any other.
Refusals = Mapping[str, tuple[tuple[Any, ...], str]]


def concrete(array: Any) -> np.ndarray | None:
    """The values of an array as numpy, or None where it is being traced."""
    try:
        return np.asarray(array)
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError):
        return None


def as_array(name: str, value: Any) -> Any:
    """A nested list as an array; anything else as it is."""
    if not isinstance(value, list):
        return value
    try:
        return np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} has rows of different lengths: pad them (the tokenizer does, with a mask)") from None


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


def check_mask(name: str, mask: Any, over: str, shape: tuple[int, ...]) -> None:
    """Refuse a mask of another shape than what it lies over, or with other values than 0 and 1."""
    check_same_shape(name, mask, over, shape)
    values = concrete(mask)
    if values is not None and not ((values == 0) | (values == 1)).all():
        wrong = values[(values != 0) & (values != 1)].flat[0]
        raise ValueError(f"{name} holds 1 where a token is kept and 0 where it is padding; it holds {wrong}")


def check_embeds(name: str, embeds: Any, d_model: int) -> None:
    """Refuse embeddings or states that are not [B, T, d_model] floating-point numbers."""
    shape = np.shape(embeds)
    if len(shape) != 3 or 0 in shape or shape[-1] != d_model:
        raise ValueError(f"{name} must have shape [batch, length, d_model={d_model}], not {list(shape)}")
    dtype = getattr(embeds, "dtype", None) or np.asarray(embeds).dtype
    if not jax.numpy.issubdtype(dtype, jax.numpy.floating):
        raise TypeError(f"{name} must be floating-point numbers, not {dtype}")


def check_one_of(given: Mapping[str, Any], otherwise: str = "") -> None:
    """Refuse none or several of the arguments of which exactly one is wanted."""
    names = [name for name, value in given.items() if value is not None]
    if len(names) == 1:
        return
    if names:
        raise ValueError(f"{' and '.join(names)} were both given and say the same thing: leave one out")
    first, *others = given
    hint = f" ({otherwise})" if otherwise else ""
    raise ValueError(" or ".join([f"{first} is required{hint}", *others]))


def refuse_arguments(
    where: str, given: Mapping[str, Any], refusals: Refusals, *, passed_on: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Refuse arguments that cannot be honoured, each with its way out.

    Args:
        where: who was called.
        given: name -> value.
        refusals: the table; a value that asks for nothing is dropped in silence.
        passed_on: names that are somebody else's business.

    Returns:
        What is passed on.

    Raises:
        TypeError: naming the argument.
    """
    for name, value in given.items():
        if name in passed_on:
            continue
        if name not in refusals:
            raise TypeError(f"{where} takes no argument {name!r}; its docstring lists those it takes")
        neutral, way_out = refusals[name]
        if not any(type(value) is type(one) and value == one for one in neutral):
            raise TypeError(f"{where} takes no {name}: {way_out}")
    return {name: value for name, value in given.items() if name in passed_on}
