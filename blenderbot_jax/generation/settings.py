"""The numbers of a configuration as arrays, and the tables among them.

Every setting has a leading axis of 1, so that a batch that mixes requests may hold one value per row instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

UNUSED = -1
_LEAST_DIVISOR = 1e-30


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Settings:
    """The numbers of a configuration; [1, ...] each, or [B, ...] for one value per row.

    Lists of ids are filled up with -1. A number that transformers derives in double precision is derived here in
    numpy, likewise, and rounded to float32 once.
    """

    pad_token: jax.Array
    """[1] int32."""
    eos_tokens: jax.Array
    """[1, E] int32; E is 0 for a model without end token."""
    prompt_length: jax.Array
    """[1] int32, tokens the decoder is given: 1, the start token, unless it is made to continue a prompt."""
    max_length: jax.Array
    """[1] int32, tokens with the decoder prompt."""
    min_length: jax.Array
    """[1] int32, tokens with the decoder prompt."""
    source_width: jax.Array
    """[1] int32, source places that are the caller's own; the rest fill the bucket."""
    sequence_bias_ids: jax.Array
    """[1, W, n] int32, right-aligned, -1 where a sequence is shorter."""
    sequence_biases: jax.Array
    """[1, W] float32."""
    encoder_repetition_factor: jax.Array
    """[1] float32: 1 / encoder_repetition_penalty."""
    repetition_penalty: jax.Array
    """[1] float32."""
    bad_words: jax.Array
    """[1, W, n] int32, right-aligned, -1 where a word is shorter."""
    forced_bos_token: jax.Array
    """[1] int32."""
    forced_eos_tokens: jax.Array
    """[1, E] int32."""
    length_decay: jax.Array
    """[1, C + 1] float32: factor ** (n - start) - 1 for n generated tokens, 0 up to the start."""
    suppress_tokens: jax.Array
    """[1, W] int32."""
    begin_suppress_tokens: jax.Array
    """[1, W] int32."""
    begin_length: jax.Array
    """[1] int32: the length at which `begin_suppress_tokens` are barred."""
    temperature: jax.Array
    """[1] float32."""
    top_h: jax.Array
    """[1] float32."""
    top_k: jax.Array
    """[1] int32."""
    top_p_tail: jax.Array
    """[1] float32: 1 - top_p, the probability that may be cut off."""
    min_p: jax.Array
    """[1] float32."""
    typical_p: jax.Array
    """[1] float32."""
    epsilon_cutoff: jax.Array
    """[1] float32."""
    eta_cutoff: jax.Array
    """[1] float32."""
    stop_sequences: jax.Array
    """[1, W, n] int32, right-aligned, -1 where a sequence is shorter."""
    length_divisors: jax.Array
    """[1, C + 1] float32: n ** length_penalty for n generated tokens; ((n + 2) / 6) ** length_penalty as ParlAI has it.
    """
    stop_when_full: jax.Array
    """[1] bool: early_stopping=True."""
    judge_at_full_length: jax.Array
    """[1] bool: early_stopping="never" with a positive length penalty."""
    start_token: jax.Array
    """[1] int32, what no reply of ParlAI's decoding holds; -1 where there is none."""
    beam_delay: jax.Array
    """[1] int32: tokens that ParlAI's decoding draws before it searches."""
    top_p_tails: jax.Array
    """[1, C + 1] float32: 1 - top_p, as ParlAI's decoding has it after n tokens of a sentence."""
    sentence_ends: jax.Array
    """[1, W] int32: tokens that a sentence ends in."""


def length_divisors(penalty: float, capacity: int) -> Any:
    """n ** penalty for n from 0 to `capacity`.

    Raises:
        ValueError: a penalty that leaves the numbers of float32.
    """
    # A length of 0 never divides; 1 keeps its place free of a division by zero.
    return _checked_powers("n", np.maximum(np.arange(capacity + 1), 1), penalty)


def parlai_divisors(penalty: float, capacity: int) -> Any:
    """((n + 2) / 6) ** penalty for n from 0 to `capacity`; Wu et al. 2016 have (n + 5) / 6.

    Raises:
        ValueError: a penalty that leaves the numbers of float32.
    """
    return _checked_powers("((n + 2) / 6)", (np.arange(capacity + 1) + 2) / 6, penalty)


def _checked_powers(what: str, bases: Any, penalty: float) -> Any:
    with np.errstate(over="ignore", under="ignore"):
        divisors = np.array([np.float64(base) ** np.float64(penalty) for base in bases])
    if not ((divisors > _LEAST_DIVISOR) & (divisors < 1 / _LEAST_DIVISOR)).all():
        raise ValueError(
            f"length_penalty={penalty}: {what} ** length_penalty must stay between {_LEAST_DIVISOR} and "
            f"{1 / _LEAST_DIVISOR} for the {len(bases) - 1} tokens a reply may have, or scores leave float32; values "
            "between -5 and 5 are usual"
        )
    return divisors


def length_decay(penalty: tuple[int, float] | None, count: int) -> Any:
    """factor ** (n - start) - 1 for n from 0 to `count` - 1, 0 up to the start, within float32."""
    start, factor = penalty or (0, 1.0)
    past = np.maximum(np.arange(count) - start, 0)
    with np.errstate(over="ignore", under="ignore"):
        return np.clip(np.float64(factor) ** past - 1, np.finfo(np.float32).min, np.finfo(np.float32).max)


def top_p_tails(top_p: float, decay: float, floor: float, count: int) -> Any:
    """1 - max(floor, top_p * decay ** max(n - 1, 0)) for n from 0 to `count` - 1.

    The first two tokens of a sentence are drawn with `top_p` itself, as in ParlAI; in the paper (Lee et al. 2022,
    "Factuality Enhanced Language Models") the second has decayed.
    """
    past = np.maximum(np.arange(count) - 1, 0)
    with np.errstate(under="ignore"):
        return 1 - np.maximum(floor, top_p * np.float64(decay) ** past)


def pack_sequences(sequences: Sequence[tuple[int, ...]]) -> Any:
    """[1, W, n] int32, right-aligned, filled up with -1."""
    # Both sides rounded up to powers of two, so that adding a word rarely means another program.
    packed = np.full((1, power_of_two(len(sequences)), power_of_two(max(map(len, sequences), default=1))), UNUSED)
    for row, sequence in zip(packed[0], sequences, strict=False):
        row[-len(sequence) :] = sequence
    return packed.astype(np.int32)


def pack_row(values: Sequence[float], dtype: type, filler: float) -> Any:
    """[1, W], filled up on the right."""
    packed = np.full((1, power_of_two(len(values))), filler, dtype)
    packed[0, : len(values)] = values
    return packed


def power_of_two(count: int) -> int:
    """The least power of two that is no less than a count, and than 1."""
    return 1 << (max(count, 1) - 1).bit_length()


def one(value: object, dtype: type) -> Any:
    """A value for all rows: [1, ...]."""
    return np.asarray(value, dtype)[None]
