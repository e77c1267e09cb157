"""What a GenerationConfig becomes before it is compiled: a static plan, and settings as arrays.

Every setting has a leading axis of 1, so that a batch that mixes requests may hold one value per row instead.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from blenderbot_jax.config import BlenderbotConfig, as_ids
from blenderbot_jax.generation.config import GenerationConfig

DEFAULT_NEW_TOKENS = 20
_UNUSED = -1
# Lengths are rounded up to one of these, so that one program serves many.
LENGTH_BUCKETS = (16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Plan:
    """What a program is compiled for."""

    mode: Literal["greedy", "sample", "beam"]
    rows: int
    """K: beams, or samples, decoded per prompt."""
    returned: int
    """R: replies given back per prompt."""
    capacity: int
    """C: places for tokens, start token included; at least any row's max_length."""
    processors: tuple[str, ...]
    """Names of the rules that run, in their order."""
    no_repeat_ngram_size: int
    encoder_no_repeat_ngram_size: int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Settings:
    """The numbers of a configuration; [1, ...] each, or [B, ...] for one value per row."""

    start_token: jax.Array
    """[1] int32."""
    pad_token: jax.Array
    """[1] int32."""
    eos_tokens: jax.Array
    """[1, E] int32; E is 0 for a model without end token."""
    max_length: jax.Array
    """[1] int32, tokens with the start token."""
    min_length: jax.Array
    """[1] int32, tokens with the start token."""
    source_width: jax.Array
    """[1] int32, source places that are the caller's own; the rest fill the bucket."""
    repetition_penalty: jax.Array
    """[1] float32."""
    bad_words: jax.Array
    """[1, W, n] int32, right-aligned, -1 where a word is shorter."""
    forced_eos_tokens: jax.Array
    """[1, E] int32."""
    temperature: jax.Array
    """[1] float32."""
    top_k: jax.Array
    """[1] int32."""
    top_p: jax.Array
    """[1] float32."""
    length_divisors: jax.Array
    """[1, C + 1] float32: n ** length_penalty for n generated tokens, rounded once, as transformers does."""
    stop_when_full: jax.Array
    """[1] bool: early_stopping=True."""
    judge_at_full_length: jax.Array
    """[1] bool: early_stopping="never" with a positive length penalty."""


def compile_config(config: GenerationConfig, model: BlenderbotConfig, source_width: int) -> tuple[Plan, Settings]:
    """Split a configuration, filling in what is the model's own.

    Args:
        config: how to decode.
        model: the architecture, for ids, vocabulary and positions.
        source_width: S, the width of the caller's prompts.

    Raises:
        ValueError: a length the model has no positions for, or an id outside its vocabulary.
    """
    eos = as_ids(config.eos_token_id) or model.eos_token_ids
    bad_words = [tuple(word) for word in config.bad_words_ids or () if not (len(word) == 1 and word[0] in eos)]
    max_length = _max_length(config, model)
    min_length = config.min_length or 0 if config.min_new_tokens is None else config.min_new_tokens + 1
    capacity = min(round_up(max_length, LENGTH_BUCKETS), model.max_position_embeddings + 1)
    penalty = 1.0 if config.length_penalty is None else config.length_penalty
    settings = Settings(
        start_token=_one(_first(config.decoder_start_token_id, model.decoder_start_token_id), np.int32),
        pad_token=_one(pad_token(config, model), np.int32),
        eos_tokens=_one(eos, np.int32),
        max_length=_one(max_length, np.int32),
        min_length=_one(min_length, np.int32),
        source_width=_one(source_width, np.int32),
        repetition_penalty=_one(_first(config.repetition_penalty, 1.0), np.float32),
        bad_words=_pack_words(bad_words),
        forced_eos_tokens=_one(as_ids(config.forced_eos_token_id), np.int32),
        temperature=_one(_first(config.temperature, 1.0), np.float32),
        top_k=_one(min(config.top_k or model.vocab_size, model.vocab_size), np.int32),
        top_p=_one(_first(config.top_p, 1.0), np.float32),
        length_divisors=_one(_powers(capacity + 1, penalty), np.float32),
        stop_when_full=_one(config.early_stopping is True, np.bool_),
        judge_at_full_length=_one(config.early_stopping == "never" and penalty > 0, np.bool_),
    )
    _check_ids(config, model.vocab_size)
    return _plan(config, settings, capacity, min_length, bool(bad_words)), settings


def pad_token(config: GenerationConfig, model: BlenderbotConfig) -> int:
    """The id that fills rows: the configuration's, the model's, or an end token if neither names one."""
    fallback = (model.eos_token_ids or (0,))[0]
    return _first(config.pad_token_id, model.pad_token_id, fallback)


def _plan(config: GenerationConfig, settings: Settings, capacity: int, min_length: int, has_bad_words: bool) -> Plan:
    beams, returned = config.num_beams or 1, config.num_return_sequences or 1
    mode = "sample" if config.do_sample else "beam" if beams > 1 else "greedy"
    runs = {
        "repetition_penalty": config.repetition_penalty not in (None, 1),
        "no_repeat_ngram": bool(config.no_repeat_ngram_size),
        "encoder_no_repeat_ngram": bool(config.encoder_no_repeat_ngram_size),
        "bad_words": has_bad_words,
        "min_length": min_length > 0 and settings.eos_tokens.size > 0,
        "forced_eos": config.forced_eos_token_id is not None,
        "temperature": mode == "sample" and config.temperature not in (None, 1),
        "top_k": mode == "sample" and bool(config.top_k),
        "top_p": mode == "sample" and config.top_p is not None and config.top_p < 1,
    }
    return Plan(
        mode=mode,
        rows=returned if mode == "sample" else beams,
        returned=returned,
        capacity=capacity,
        processors=tuple(name for name, on in runs.items() if on),
        no_repeat_ngram_size=config.no_repeat_ngram_size or 0,
        encoder_no_repeat_ngram_size=config.encoder_no_repeat_ngram_size or 0,
    )


def _max_length(config: GenerationConfig, model: BlenderbotConfig) -> int:
    # The last token is never fed back, so P positions carry P + 1 tokens.
    limit = model.max_position_embeddings + 1
    if config.max_new_tokens is not None:
        wanted, name = config.max_new_tokens + 1, f"max_new_tokens={config.max_new_tokens}"
    elif config.max_length is not None:
        wanted, name = config.max_length, f"max_length={config.max_length}"
    else:
        return min(DEFAULT_NEW_TOKENS + 1, model.max_position_embeddings)
    if wanted > limit:
        raise ValueError(
            f"{name} is more than this model can decode: it knows {model.max_position_embeddings} positions, "
            f"so max_length is at most {limit} and max_new_tokens at most {limit - 1}"
        )
    return wanted


def _check_ids(config: GenerationConfig, vocab_size: int) -> None:
    named = {name: as_ids(getattr(config, name)) for name in ("eos_token_id", "forced_eos_token_id")}
    named |= {name: as_ids(getattr(config, name)) for name in ("pad_token_id", "decoder_start_token_id")}
    named["bad_words_ids"] = tuple(token for word in config.bad_words_ids or () for token in word)
    for name, ids in named.items():
        for token in ids:
            if token >= vocab_size:
                raise ValueError(f"{name} names id {token}, but this model's vocabulary ends at {vocab_size - 1}")


def _powers(count: int, exponent: float) -> list[float]:
    # A length of 0 never divides; 1 keeps its place free of a division by zero.
    with np.errstate(over="ignore", under="ignore"):
        return [1.0, *(float(np.float64(n) ** exponent) for n in range(1, count))]


def _pack_words(words: list[tuple[int, ...]]) -> Any:
    # Both sides rounded up to powers of two, so that adding a word rarely means another program.
    count, width = (1 << (size - 1).bit_length() for size in (max(len(words), 1), max(map(len, words), default=1)))
    packed = np.full((1, count, width), _UNUSED, np.int32)
    for row, word in zip(packed[0], words, strict=False):
        row[-len(word) :] = word
    return packed


def _one(value: object, dtype: type) -> Any:
    return np.asarray(value, dtype)[None]


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def round_up(value: int, steps: tuple[int, ...]) -> int:
    """The least of the steps that holds a value; the value itself beyond the last."""
    return next((step for step in steps if step >= value), value)
