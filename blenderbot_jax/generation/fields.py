"""The fields of a GenerationConfig one by one: what each may hold, and which ask for something that is not here."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from blenderbot_jax.config import as_ids

OUTPUTS = ("scores", "logits", "attentions", "hidden_states")
_NO_ASSISTANT = (
    "a draft is no part of a configuration: say draft=Draft(model, params, tokens=4) to generate, or leave it out"
)
_MOVED = "transformers 5 has moved it out of its library too; leave it out"
_CACHES = (
    "static", "offloaded_static", "dynamic", "offloaded", "sliding_window", "hybrid", "hybrid_chunked",
    "offloaded_hybrid", "offloaded_hybrid_chunked",
)  # fmt: skip


def is_count(value: Any, least: int) -> bool:
    """Whether a value is an integer, no bool, of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_ids(value: Any) -> bool:
    return isinstance(value, tuple) and all(is_count(token, 0) for token in value)


def _is_bias(pair: Any) -> bool:
    return (
        isinstance(pair, tuple)
        and len(pair) == 2
        and bool(pair[0])
        and _is_ids(pair[0])
        and (_is_number(pair[1]) or pair[1] == -math.inf)
    )


def _is_decay(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and is_count(value[0], 0) and _is_number(value[1])


Rule = tuple[Callable[[Any], bool], str]


def _count(least: int) -> Rule:
    return lambda value: is_count(value, least), f"an integer of at least {least}"


_ANY_BOOL: Rule = (lambda value: isinstance(value, bool), "true or false")
_ANY_NUMBER: Rule = (_is_number, "a number")
_POSITIVE: Rule = (
    lambda value: _is_number(value) and value > 0,
    "a number above 0 (do_sample=False decodes without chance)",
)
_SHARE: Rule = (lambda value: _is_number(value) and 0 <= value <= 1, "a number between 0 and 1")
_SHARE_ABOVE_0: Rule = (lambda value: _is_number(value) and 0 < value <= 1, "a number above 0 and up to 1")
_SHARE_BELOW_1: Rule = (lambda value: _is_number(value) and 0 <= value < 1, "a number from 0, which is off, to below 1")
_IDS: Rule = (_is_ids, "a list of token ids")
_ONE_OR_MORE_IDS: Rule = (lambda value: bool(as_ids(value)) and _is_ids(as_ids(value)), "a token id or several")

# What a field may hold beside None.
RULES: dict[str, Rule] = {
    "max_length": _count(2),
    "max_new_tokens": _count(1),
    "min_length": _count(0),
    "min_new_tokens": _count(0),
    "num_beams": _count(1),
    "num_return_sequences": _count(1),
    "length_penalty": _ANY_NUMBER,
    "early_stopping": (lambda value: value in (True, False, "never"), 'True, False or "never"'),
    "do_sample": _ANY_BOOL,
    "temperature": _POSITIVE,
    "top_k": _count(0),
    "top_p": _SHARE,
    "min_p": _SHARE,
    "top_h": _SHARE_ABOVE_0,
    "typical_p": _SHARE_ABOVE_0,
    "epsilon_cutoff": _SHARE_BELOW_1,
    "eta_cutoff": _SHARE_BELOW_1,
    "repetition_penalty": _POSITIVE,
    "encoder_repetition_penalty": _POSITIVE,
    "no_repeat_ngram_size": _count(0),
    "encoder_no_repeat_ngram_size": _count(0),
    "bad_words_ids": (
        lambda value: isinstance(value, tuple) and all(word and _is_ids(word) for word in value),
        "a list of non-empty lists of token ids",
    ),
    "sequence_bias": (
        lambda value: isinstance(value, tuple) and all(map(_is_bias, value)),
        "a list of pairs of a non-empty list of token ids and a number (or -inf), or a dict from tuples to numbers",
    ),
    "suppress_tokens": _IDS,
    "begin_suppress_tokens": _IDS,
    "forced_bos_token_id": _count(0),
    "forced_eos_token_id": _ONE_OR_MORE_IDS,
    "exponential_decay_length_penalty": (_is_decay, "a pair: the new tokens after which it starts, and its factor"),
    "remove_invalid_values": _ANY_BOOL,
    "renormalize_logits": _ANY_BOOL,
    "pad_token_id": _count(0),
    "bos_token_id": _count(0),
    "eos_token_id": _ONE_OR_MORE_IDS,
    "decoder_start_token_id": _count(0),
    "use_cache": _ANY_BOOL,
    "return_dict_in_generate": _ANY_BOOL,
    "disable_compile": _ANY_BOOL,
    **{f"output_{name}": _ANY_BOOL for name in OUTPUTS},
}

# The same of ParlAI's decoding.
PARLAI_RULES: dict[str, Rule] = {
    "beam_delay": _count(0),
    "top_p_decay": _SHARE_ABOVE_0,
    "top_p_floor": _SHARE,
    "sentence_end_ids": _IDS,
    "block_full_context": _ANY_BOOL,
}

# What is not here: the values, beside None, that ask for nothing, and the way out.
NOT_HERE: dict[str, tuple[tuple[Any, ...], str]] = {
    "max_time": ((), "a compiled program looks at no clock; bound the reply with max_new_tokens"),
    "stop_strings": (((),), "encode them with the tokenizer and pass stop_sequences=... to generate"),
    "guidance_scale": ((1,), "classifier-free guidance fails for encoder-decoders in transformers too; leave it out"),
    "token_healing": ((False,), "it rewrites the prompt of decoder-only models; leave it out"),
    "watermarking_config": ((), "pass a function of the scores as one of generate's processors, or leave it out"),
    "use_mtp": ((False,), _NO_ASSISTANT),
    "is_assistant": ((False,), _NO_ASSISTANT),
    "num_assistant_tokens": ((5, 20), _NO_ASSISTANT),
    "num_assistant_tokens_schedule": (("constant", "heuristic", "heuristic_transient"), _NO_ASSISTANT),
    "assistant_confidence_threshold": ((0, 0.4), _NO_ASSISTANT),
    "prompt_lookup_num_tokens": ((), _NO_ASSISTANT),
    "max_matching_ngram_size": ((2,), _NO_ASSISTANT),
    "assistant_early_exit": ((), _NO_ASSISTANT),
    "assistant_lookbehind": ((10,), _NO_ASSISTANT),
    "target_lookbehind": ((10,), _NO_ASSISTANT),
    "assistant_ensemble_weight": ((), _NO_ASSISTANT),
    "speculation_type": ((), _NO_ASSISTANT),
    "cache_implementation": (
        _CACHES,
        "the cache has a fixed size and the model's own dtype whatever this says; leave it out",
    ),
    "cache_config": (((),), "the cache has nothing to configure; leave it out"),
    "max_cache_len": ((), "the cache is as long as max_length asks for; leave it out"),
    "prefill_chunk_size": ((), "a prompt is encoded in one piece; leave it out"),
    "compile_config": ((), "it is torch's; decoding is always compiled here, by jax; leave it out"),
    "continuous_batching_config": ((), "one call decodes one batch; leave it out"),
    "low_memory": ((False,), _MOVED),
    "penalty_alpha": ((0,), _MOVED),
    "dola_layers": ((), _MOVED),
    "diversity_penalty": ((0,), _MOVED),
    "num_beam_groups": ((1,), _MOVED),
    "constraints": (((),), _MOVED),
    "force_words_ids": (((),), _MOVED),
}
# Where a file comes from; no rule of decoding.
PROVENANCE = ("_from_model_config", "transformers_version")
# Rules of sampling that transformers has and ParlAI has not, and their values that ask for nothing.
_CUT_OFFS = {"min_p": 0, "top_h": None, "typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0}
# What transformers takes beside the configuration and refuses in it.
ARGUMENTS = (
    "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "synced_gpus", "assistant_model", "streamer",
    "negative_prompt_ids", "negative_prompt_attention_mask",
)  # fmt: skip


def problems(config: Any) -> list[str]:
    """Everything that is wrong with a configuration's values, each alone and together; [] if it is right."""
    found = [_refusal(name, getattr(config, name)) for name in NOT_HERE]
    found += [_out_of_range(name, getattr(config, name), RULES) for name in RULES]
    single = [problem for problem in found if problem]
    return single or _contradictions(config)


def parlai_problems(config: Any) -> list[str]:
    """Likewise, what is wrong with the fields of ParlAI's decoding, and with those it leaves no place for."""
    found = [_out_of_range(name, getattr(config, name), PARLAI_RULES) for name in PARLAI_RULES]
    single = [problem for problem in found if problem]
    return single or _parlai_contradictions(config)


def frozen(name: str, value: Any) -> Any:
    """A field's value in a form that can be hashed: lists become tuples, biases become pairs of ids and float."""
    if name == "sequence_bias" and value is not None:
        return _frozen_biases(value)
    if isinstance(value, Mapping) and not value:
        return ()
    return _tuples(value)


def _refusal(name: str, value: Any) -> str | None:
    neutral, way_out = NOT_HERE[name]
    asks_for_nothing = value is None or any(value == harmless for harmless in neutral)
    return None if asks_for_nothing else f"{name}={value!r} is not implemented: {way_out}"


def _out_of_range(name: str, value: Any, rules: dict[str, Rule]) -> str | None:
    check, rule = rules[name]
    return None if value is None or check(value) else f"{name} must be {rule}, not {value!r}"


def _contradictions(config: Any) -> list[str]:
    """What transformers raises on, of values that are right each for itself."""
    beams, returned = config.num_beams or 1, config.num_return_sequences or 1
    found = []
    if beams > 1 and returned > beams:
        found.append(f"num_return_sequences={returned} is more than the num_beams={beams} there are to return")
    if beams == 1 and returned > 1 and not config.do_sample:
        found.append(
            f"num_return_sequences={returned} needs do_sample=True or num_beams >= {returned}: "
            "greedy decoding gives one reply"
        )
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        forced = as_ids(getattr(config, name))
        if forced and set(forced) <= set(config.suppress_tokens or ()):
            found.append(
                f"every token of {name}={getattr(config, name)!r} is in suppress_tokens, so that none would be left "
                "where it is forced: take it out of one of them (min_new_tokens is what delays an end token)"
            )
    return found


def _parlai_contradictions(config: Any) -> list[str]:
    """What ParlAI's decoding has no place for."""
    found = [
        f"{name}={getattr(config, name)!r} is no rule of ParlAI's decoding, which draws by top_k or top_p: leave it out"
        for name, neutral in _CUT_OFFS.items()
        if config.do_sample and getattr(config, name) not in (None, neutral)
    ]
    if config.early_stopping:
        found.append(f"early_stopping={config.early_stopping!r}: ParlAI's search has an end of its own; leave it out")
    if config.do_sample and config.top_k and config.top_p is not None and config.top_p < 1:
        found.append(f"top_k={config.top_k} and top_p={config.top_p}: ParlAI draws by one of them; leave the other out")
    if config.beam_delay is not None and not config.do_sample:
        found.append(f"beam_delay={config.beam_delay} says how many tokens are drawn first: set do_sample=True")
    if config.top_p is None and (config.top_p_decay is not None or config.top_p_floor is not None):
        found.append("top_p_decay and top_p_floor change top_p, which is not set: set it")
    return found


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _frozen_biases(value: Any) -> Any:
    """Pairs ((ids), bias); a sequence that occurs twice keeps its first place and its last bias, as in a dict."""
    pairs = _tuples(list(value.items()) if isinstance(value, Mapping) else value)
    try:
        merged = {sequence: float(bias) if _is_number(bias) else bias for sequence, bias in pairs}
    except (TypeError, ValueError):
        return pairs  # no pairs: the field's own rule says so
    return tuple(merged.items())
