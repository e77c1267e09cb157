"""What a GenerationConfig becomes before it is compiled: a static plan, and settings as arrays.

Every setting has a leading axis of 1, so that a batch that mixes requests may hold one value per row instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from blenderbot_jax.config import BlenderbotConfig, as_ids
from blenderbot_jax.generation.config import GenerationConfig
from blenderbot_jax.generation.fields import OUTPUTS, is_count

DEFAULT_NEW_TOKENS = 20
_UNUSED = -1
_LEAST_DIVISOR = 1e-30
_FIRST_SEGMENT = 32
# Lengths are rounded up to one of these, so that one program serves many.
LENGTH_BUCKETS = (16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Plan:
    """What a program is compiled for."""

    mode: Literal["greedy", "sample", "beam", "beam_sample"]
    rows: int
    """K: beams, or samples, decoded per prompt."""
    returned: int
    """R: replies given back per prompt."""
    capacity: int
    """C: places for tokens, decoder prompt included; at least any row's max_length."""
    processors: tuple[str, ...]
    """Names of the rules that run, in their order."""
    no_repeat_ngram_size: int
    encoder_no_repeat_ngram_size: int
    segments: tuple[int, ...] = ()
    """Capacities that the decoder's cache grows through, the last of them C; () starts with C."""
    stops: bool = False
    """Whether there are stop sequences."""
    outputs: tuple[str, ...] = ()
    """What is given back beside the replies: of "scores", "logits", "attentions", "hidden_states"."""


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
    """[1, C + 1] float32: n ** length_penalty for n generated tokens."""
    stop_when_full: jax.Array
    """[1] bool: early_stopping=True."""
    judge_at_full_length: jax.Array
    """[1] bool: early_stopping="never" with a positive length penalty."""


def compile_config(
    config: GenerationConfig,
    model: BlenderbotConfig,
    source_width: int | None,
    prompt_length: int = 1,
    stop_sequences: Sequence[Sequence[int]] = (),
) -> tuple[Plan, Settings]:
    """Split a configuration, filling in what is the model's own.

    Args:
        config: how to decode.
        model: the architecture, for ids, vocabulary and positions.
        source_width: S, the width of the caller's prompts; None where their ids are not known.
        prompt_length: tokens the decoder is given, its start token included.
        stop_sequences: sequences of ids, each of which ends a reply.

    Returns:
        The plan, hashable, and the settings, numpy arrays.

    Raises:
        ValueError: a length the model has no positions for, a decoder prompt that leaves no room, an id outside its
            vocabulary, a rule that looks at prompts whose ids are not known.

    Example:
        >>> plan, settings = compile_config(GenerationConfig(num_beams=4, max_new_tokens=8), BlenderbotConfig(), 12)
        >>> plan.mode, plan.rows, settings.max_length.tolist()
        ('beam', 4, [9])
    """
    if not is_count(prompt_length, 1):
        raise ValueError(f"prompt_length counts the decoder's start token, so it is at least 1, not {prompt_length!r}")
    stops = _checked_sequences(stop_sequences)
    _check_ids(config, stops, model.vocab_size)
    settings = _settings(config, model, source_width or 0, prompt_length, stops)
    plan = _plan(config, settings, model, bool(stops))
    if source_width is None:
        _check_needs_no_ids(plan)
    return plan, settings


def pad_token(config: GenerationConfig, model: BlenderbotConfig) -> int:
    """The id that fills rows: the configuration's, the model's, or an end token if neither names one."""
    fallback = (model.eos_token_ids or (0,))[0]
    return _first(config.pad_token_id, model.pad_token_id, fallback)


def _settings(
    config: GenerationConfig,
    model: BlenderbotConfig,
    source_width: int,
    prompt_length: int,
    stops: tuple[tuple[int, ...], ...],
) -> Settings:
    eos = as_ids(config.eos_token_id) or model.eos_token_ids
    max_length = _max_length(config, model, prompt_length)
    capacity = _capacity(max_length, model)
    penalty = _first(config.length_penalty, 1.0)
    biases = _in_order_of_addition(config.sequence_bias or ())
    bos_comes_first = prompt_length == 1 and config.forced_bos_token_id is not None
    return Settings(
        pad_token=_one(pad_token(config, model), np.int32),
        eos_tokens=_one(eos, np.int32),
        prompt_length=_one(prompt_length, np.int32),
        max_length=_one(max_length, np.int32),
        min_length=_one(_min_length(config, prompt_length), np.int32),
        source_width=_one(source_width, np.int32),
        sequence_bias_ids=_pack_sequences([sequence for sequence, _ in biases]),
        sequence_biases=_pack_row([bias for _, bias in biases], np.float32, 0),
        encoder_repetition_factor=_one(1 / _first(config.encoder_repetition_penalty, 1.0), np.float32),
        repetition_penalty=_one(_first(config.repetition_penalty, 1.0), np.float32),
        bad_words=_pack_sequences(_bad_words(config, eos)),
        forced_bos_token=_one(_first(config.forced_bos_token_id, _UNUSED), np.int32),
        forced_eos_tokens=_one(as_ids(config.forced_eos_token_id), np.int32),
        length_decay=_one(_decay(config.exponential_decay_length_penalty, capacity + 1), np.float32),
        suppress_tokens=_pack_row(config.suppress_tokens or (), np.int32, _UNUSED),
        begin_suppress_tokens=_pack_row(config.begin_suppress_tokens or (), np.int32, _UNUSED),
        begin_length=_one(prompt_length + bos_comes_first, np.int32),
        temperature=_one(_first(config.temperature, 1.0), np.float32),
        top_h=_one(_first(config.top_h, 1.0), np.float32),
        top_k=_one(min(config.top_k or model.vocab_size, model.vocab_size), np.int32),
        top_p_tail=_one(1 - _first(config.top_p, 1.0), np.float32),
        min_p=_one(_first(config.min_p, 0.0), np.float32),
        typical_p=_one(_first(config.typical_p, 1.0), np.float32),
        epsilon_cutoff=_one(_first(config.epsilon_cutoff, 0.0), np.float32),
        eta_cutoff=_one(_first(config.eta_cutoff, 0.0), np.float32),
        stop_sequences=_pack_sequences(stops),
        length_divisors=_one(_divisors(config, capacity), np.float32),
        stop_when_full=_one(config.early_stopping is True, np.bool_),
        judge_at_full_length=_one(config.early_stopping == "never" and penalty > 0, np.bool_),
    )


def _plan(config: GenerationConfig, settings: Settings, model: BlenderbotConfig, stops: bool) -> Plan:
    beams, returned = config.num_beams or 1, config.num_return_sequences or 1
    draws, ends = bool(config.do_sample), settings.eos_tokens.size > 0
    runs = {
        "sequence_bias": bool(config.sequence_bias),
        "encoder_repetition_penalty": config.encoder_repetition_penalty not in (None, 1),
        "repetition_penalty": config.repetition_penalty not in (None, 1),
        "no_repeat_ngram": bool(config.no_repeat_ngram_size),
        "encoder_no_repeat_ngram": bool(config.encoder_no_repeat_ngram_size),
        "bad_words": bool((settings.bad_words != _UNUSED).any()),
        "min_length": ends and bool(_first(config.min_new_tokens, config.min_length, 0)),
        "forced_bos": config.forced_bos_token_id is not None,
        "forced_eos": config.forced_eos_token_id is not None,
        "remove_invalid_values": bool(config.remove_invalid_values),
        "exponential_decay_length_penalty": ends and config.exponential_decay_length_penalty is not None,
        "suppress_tokens": bool(config.suppress_tokens),
        "begin_suppress_tokens": bool(config.begin_suppress_tokens),
        "temperature": draws and config.temperature not in (None, 1),
        "top_h": draws and config.top_h is not None,
        "top_k": draws and bool(config.top_k),
        "top_p": draws and config.top_p is not None and config.top_p < 1,
        "min_p": draws and bool(config.min_p),
        "typical_p": draws and config.typical_p is not None and config.typical_p < 1,
        "epsilon_cutoff": draws and bool(config.epsilon_cutoff),
        "eta_cutoff": draws and bool(config.eta_cutoff),
        "renormalize_logits": bool(config.renormalize_logits),
    }
    return Plan(
        mode=("beam_sample" if draws else "beam") if beams > 1 else ("sample" if draws else "greedy"),
        rows=beams if beams > 1 else returned,
        returned=returned,
        capacity=_capacity(int(settings.max_length[0]), model),
        processors=tuple(name for name, on in runs.items() if on),
        no_repeat_ngram_size=config.no_repeat_ngram_size or 0,
        encoder_no_repeat_ngram_size=config.encoder_no_repeat_ngram_size or 0,
        segments=_segments(_capacity(int(settings.max_length[0]), model)),
        stops=stops,
        outputs=tuple(name for name in OUTPUTS if getattr(config, f"output_{name}")),
    )


def _max_length(config: GenerationConfig, model: BlenderbotConfig, prompt_length: int) -> int:
    # The last token is never fed back, so P positions carry P + 1 tokens.
    limit = model.max_position_embeddings + 1
    if config.max_new_tokens is not None:
        wanted, name = config.max_new_tokens + prompt_length, f"max_new_tokens={config.max_new_tokens}"
    elif config.max_length is not None:
        wanted, name = config.max_length, f"max_length={config.max_length}"
    else:
        # transformers' own default stops one token short of what the positions carry.
        wanted = min(DEFAULT_NEW_TOKENS + prompt_length, model.max_position_embeddings)
        name = f"the default max_length={wanted}"
    if wanted > limit:
        raise ValueError(
            f"{name} is more than this model can decode: it knows {model.max_position_embeddings} positions, "
            f"so max_length is at most {limit} and max_new_tokens at most {max(limit - prompt_length, 0)}"
        )
    if prompt_length >= wanted:
        raise ValueError(
            f"a decoder prompt of {prompt_length} tokens leaves no room for a reply: {name} counts it; "
            f"set max_length to more (at most {limit}), set max_new_tokens, or shorten the prompt"
        )
    return wanted


def _min_length(config: GenerationConfig, prompt_length: int) -> int:
    # transformers overwrites min_length when it finds min_new_tokens, so that the two rules it runs are one.
    return config.min_length or 0 if config.min_new_tokens is None else config.min_new_tokens + prompt_length


def _capacity(max_length: int, model: BlenderbotConfig) -> int:
    return min(round_up(max_length, LENGTH_BUCKETS), model.max_position_embeddings + 1)


def _segments(capacity: int) -> tuple[int, ...]:
    # Most replies end in the first. A segment is a loop of its own, compiled apart; on accelerators attention to empty
    # slots costs next to nothing.
    grows = jax.default_backend() == "cpu" and capacity > _FIRST_SEGMENT
    return (_FIRST_SEGMENT, capacity) if grows else (capacity,)


def _bad_words(config: GenerationConfig, eos: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [tuple(word) for word in config.bad_words_ids or () if not (len(word) == 1 and word[0] in eos)]


def _check_needs_no_ids(plan: Plan) -> None:
    for rule, name in (
        ("encoder_repetition_penalty", "encoder_repetition_penalty"),
        ("encoder_no_repeat_ngram", "encoder_no_repeat_ngram_size"),
    ):
        if rule in plan.processors:
            raise ValueError(f"{name} looks at the prompt's ids: pass input_ids, or leave it out")


def _checked_sequences(sequences: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Stop sequences as tuples of ids."""
    for sequence in sequences:
        if not (isinstance(sequence, tuple | list) and sequence and all(is_count(token, 0) for token in sequence)):
            raise ValueError(
                f"stop_sequences must be non-empty sequences of token ids such as [[9, 12], [7]], not {sequences!r}; "
                "encode a text with the tokenizer first"
            )
    return tuple(tuple(sequence) for sequence in sequences)


def _check_ids(config: GenerationConfig, stops: tuple[tuple[int, ...], ...], vocab_size: int) -> None:
    single = (
        "eos_token_id", "forced_eos_token_id", "forced_bos_token_id", "pad_token_id", "decoder_start_token_id",
        "suppress_tokens", "begin_suppress_tokens",
    )  # fmt: skip
    named = {name: as_ids(getattr(config, name)) for name in single}
    sequences = {
        "bad_words_ids": config.bad_words_ids or (),
        "sequence_bias": [sequence for sequence, _ in config.sequence_bias or ()],
        "stop_sequences": stops,
    }
    named |= {name: tuple(token for sequence in found for token in sequence) for name, found in sequences.items()}
    for name, ids in named.items():
        for token in ids:
            if token >= vocab_size:
                raise ValueError(f"{name} names id {token}, but this model's vocabulary ends at {vocab_size - 1}")


def _divisors(config: GenerationConfig, capacity: int) -> Any:
    """n ** length_penalty for n from 0 to `capacity`."""
    if (config.num_beams or 1) == 1:
        return np.ones(capacity + 1)
    penalty = np.float64(_first(config.length_penalty, 1.0))
    # A length of 0 never divides; 1 keeps its place free of a division by zero.
    with np.errstate(over="ignore", under="ignore"):
        divisors = np.array([np.float64(max(n, 1)) ** penalty for n in range(capacity + 1)])
    if not ((divisors > _LEAST_DIVISOR) & (divisors < 1 / _LEAST_DIVISOR)).all():
        raise ValueError(
            f"length_penalty={config.length_penalty}: n ** length_penalty must stay between {_LEAST_DIVISOR} and "
            f"{1 / _LEAST_DIVISOR} for the {capacity} tokens a reply may have, or scores leave float32; values between "
            "-5 and 5 are usual"
        )
    return divisors


def _decay(penalty: tuple[int, float] | None, count: int) -> Any:
    start, factor = penalty or (0, 1.0)
    past = np.maximum(np.arange(count) - start, 0)
    with np.errstate(over="ignore", under="ignore"):
        return np.clip(np.float64(factor) ** past - 1, np.finfo(np.float32).min, np.finfo(np.float32).max)


def _in_order_of_addition(biases: Any) -> list[tuple[tuple[int, ...], float]]:
    # transformers adds single tokens first, then one length after the other; a float sum depends on its order.
    lengths = [len(sequence) for sequence, _ in biases]
    return sorted(biases, key=lambda pair: -1 if len(pair[0]) == 1 else lengths.index(len(pair[0])))


def _pack_sequences(sequences: Sequence[tuple[int, ...]]) -> Any:
    # Both sides rounded up to powers of two, so that adding a word rarely means another program.
    packed = np.full((1, _power_of_two(len(sequences)), _power_of_two(max(map(len, sequences), default=1))), _UNUSED)
    for row, sequence in zip(packed[0], sequences, strict=False):
        row[-len(sequence) :] = sequence
    return packed.astype(np.int32)


def _pack_row(values: Sequence[float], dtype: type, filler: float) -> Any:
    packed = np.full((1, _power_of_two(len(values))), filler, dtype)
    packed[0, : len(values)] = values
    return packed


def _power_of_two(count: int) -> int:
    return 1 << (max(count, 1) - 1).bit_length()


def _one(value: object, dtype: type) -> Any:
    return np.asarray(value, dtype)[None]


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def round_up(value: int, steps: tuple[int, ...]) -> int:
    """The least of the steps that holds a value; the value itself beyond the last."""
    return next((step for step in steps if step >= value), value)
