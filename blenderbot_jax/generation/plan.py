"""What a GenerationConfig becomes before it is compiled: a static plan, and settings as arrays (`settings.py`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from blenderbot_jax.config import BlenderbotConfig, as_ids
from blenderbot_jax.generation.config import GenerationConfig, ParlaiConfig
from blenderbot_jax.generation.fields import OUTPUTS, is_count
from blenderbot_jax.generation.settings import (
    UNUSED,
    Settings,
    length_decay,
    length_divisors,
    one,
    pack_row,
    pack_sequences,
    parlai_divisors,
    top_p_tails,
)

DEFAULT_NEW_TOKENS = 20
_FIRST_SEGMENT = 32
_NO_PARLAI = ParlaiConfig()
# Lengths are rounded up to one of these, so that one program serves many.
LENGTH_BUCKETS = (16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Plan:
    """What a program is compiled for."""

    mode: Literal["greedy", "sample", "beam", "beam_sample", "parlai"]
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
    draws: Literal["", "all", "top_k", "top_p"] = ""
    """What ParlAI's decoding draws tokens from, if it draws: from all, or from what one of these rules keeps."""
    searches: bool = False
    """Whether rows take each other's places: beams do, samples do not."""


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
    own = config if isinstance(config, ParlaiConfig) else _NO_PARLAI
    bos_comes_first = prompt_length == 1 and config.forced_bos_token_id is not None
    return Settings(
        pad_token=one(pad_token(config, model), np.int32),
        eos_tokens=one(eos, np.int32),
        prompt_length=one(prompt_length, np.int32),
        max_length=one(max_length, np.int32),
        min_length=one(_min_length(config, prompt_length), np.int32),
        source_width=one(source_width, np.int32),
        sequence_bias_ids=pack_sequences([sequence for sequence, _ in biases]),
        sequence_biases=pack_row([bias for _, bias in biases], np.float32, 0),
        encoder_repetition_factor=one(1 / _first(config.encoder_repetition_penalty, 1.0), np.float32),
        repetition_penalty=one(_first(config.repetition_penalty, 1.0), np.float32),
        bad_words=pack_sequences(_bad_words(config, eos)),
        forced_bos_token=one(_first(config.forced_bos_token_id, UNUSED), np.int32),
        forced_eos_tokens=one(as_ids(config.forced_eos_token_id), np.int32),
        length_decay=one(length_decay(config.exponential_decay_length_penalty, capacity + 1), np.float32),
        suppress_tokens=pack_row(config.suppress_tokens or (), np.int32, UNUSED),
        begin_suppress_tokens=pack_row(config.begin_suppress_tokens or (), np.int32, UNUSED),
        begin_length=one(prompt_length + bos_comes_first, np.int32),
        temperature=one(_first(config.temperature, 1.0), np.float32),
        top_h=one(_first(config.top_h, 1.0), np.float32),
        top_k=one(min(config.top_k or model.vocab_size, model.vocab_size), np.int32),
        top_p_tail=one(1 - _first(config.top_p, 1.0), np.float32),
        min_p=one(_first(config.min_p, 0.0), np.float32),
        typical_p=one(_first(config.typical_p, 1.0), np.float32),
        epsilon_cutoff=one(_first(config.epsilon_cutoff, 0.0), np.float32),
        eta_cutoff=one(_first(config.eta_cutoff, 0.0), np.float32),
        stop_sequences=pack_sequences(stops),
        length_divisors=one(_divisors(config, capacity), np.float32),
        stop_when_full=one(config.early_stopping is True, np.bool_),
        judge_at_full_length=one(config.early_stopping == "never" and penalty > 0, np.bool_),
        start_token=one(_start_token(config, model), np.int32),
        beam_delay=one(_first(own.beam_delay, 0), np.int32),
        top_p_tails=one(
            top_p_tails(
                _first(config.top_p, 1.0), _first(own.top_p_decay, 1.0), _first(own.top_p_floor, 0.0), capacity + 1
            ),
            np.float32,
        ),
        sentence_ends=pack_row(own.sentence_end_ids or (), np.int32, UNUSED),
    )


def _plan(config: GenerationConfig, settings: Settings, model: BlenderbotConfig, stops: bool) -> Plan:
    beams, returned = config.num_beams or 1, config.num_return_sequences or 1
    ends = settings.eos_tokens.size > 0
    # ParlAI's decoding draws by rules of its own.
    draws = bool(config.do_sample) and not isinstance(config, ParlaiConfig)
    runs = {
        "sequence_bias": bool(config.sequence_bias),
        "encoder_repetition_penalty": config.encoder_repetition_penalty not in (None, 1),
        "repetition_penalty": config.repetition_penalty not in (None, 1),
        "no_repeat_ngram": bool(config.no_repeat_ngram_size),
        "encoder_no_repeat_ngram": bool(config.encoder_no_repeat_ngram_size),
        "bad_words": bool((settings.bad_words != UNUSED).any()),
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
    capacity = _capacity(int(settings.max_length[0]), model)
    return Plan(
        mode=_mode(config),
        rows=beams if beams > 1 else returned,
        returned=returned,
        capacity=capacity,
        processors=tuple(name for name, on in runs.items() if on),
        no_repeat_ngram_size=config.no_repeat_ngram_size or 0,
        encoder_no_repeat_ngram_size=config.encoder_no_repeat_ngram_size or 0,
        segments=_segments(capacity),
        stops=stops,
        outputs=tuple(name for name in OUTPUTS if getattr(config, f"output_{name}")),
        draws=_draws(config),
        searches=_searches(config),
    )


def _mode(config: GenerationConfig) -> Literal["greedy", "sample", "beam", "beam_sample", "parlai"]:
    if isinstance(config, ParlaiConfig):
        return "parlai"
    if (config.num_beams or 1) > 1:
        return "beam_sample" if config.do_sample else "beam"
    return "sample" if config.do_sample else "greedy"


def _draws(config: GenerationConfig) -> Literal["", "all", "top_k", "top_p"]:
    if not (isinstance(config, ParlaiConfig) and config.do_sample):
        return ""
    return "top_k" if config.top_k else "all" if config.top_p is None else "top_p"


def _searches(config: GenerationConfig) -> bool:
    if isinstance(config, ParlaiConfig):
        return not config.do_sample or config.beam_delay is not None
    return (config.num_beams or 1) > 1


def _start_token(config: GenerationConfig, model: BlenderbotConfig) -> int:
    """What replies begin with: a causal model's begin with its prompt, whose first token is usually bos."""
    own = model.decoder_start_token_id if model.is_encoder_decoder else _first(model.bos_token_id, UNUSED)
    return _first(config.decoder_start_token_id, own)


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
        "suppress_tokens", "begin_suppress_tokens", "sentence_end_ids",
    )  # fmt: skip
    named = {name: as_ids(getattr(config, name, None)) for name in single}
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
    """What the log-probability of n generated tokens is divided by, for n from 0 to `capacity`."""
    penalty = _first(config.length_penalty, 1.0)
    if isinstance(config, ParlaiConfig):
        return parlai_divisors(penalty, capacity)
    return np.ones(capacity + 1) if (config.num_beams or 1) == 1 else length_divisors(penalty, capacity)


def _in_order_of_addition(biases: Any) -> list[tuple[tuple[int, ...], float]]:
    # transformers adds single tokens first, then one length after the other; a float sum depends on its order.
    lengths = [len(sequence) for sequence, _ in biases]
    return sorted(biases, key=lambda pair: -1 if len(pair[0]) == 1 else lengths.index(len(pair[0])))


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def round_up(value: int, steps: tuple[int, ...]) -> int:
    """The least of the steps that holds a value; the value itself beyond the last."""
    return next((step for step in steps if step >= value), value)
