"""ParlAI's options (`model.opt`) as the content of config.json and generation_config.json, and back.

An option that a file lacks has the default of ParlAI's command line. Options of training, tasks and display are passed
over; one that would make another architecture is refused by its name.

Sources: ParlAI, `parlai/agents/transformer/transformer.py` and `modules/` (what the options build),
`parlai/core/torch_generator_agent.py` (decoding), `parlai/core/torch_agent.py` (truncation, delimiter).
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from blenderbot_jax.parlai.source import read_text

Options = Mapping[str, Any]

# What the command line gives where the file says nothing (`None` counts as nothing).
_DEFAULTS: dict[str, Any] = {
    "variant": "aiayn",
    "embedding_size": 300,
    "ffn_size": 300,
    "n_heads": 2,
    "n_layers": 2,
    "n_encoder_layers": -1,
    "n_decoder_layers": -1,
    "n_positions": 0,
    "n_segments": 0,
    "truncate": -1,
    "text_truncate": 0,
    "label_truncate": 0,
    "activation": "relu",
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "relu_dropout": 0.0,
    "embeddings_scale": True,
    "learn_positional_embeddings": False,
    "output_scaling": 1.0,
    "dict_tokenizer": "re",
    "dict_lower": False,
    "person_tokens": False,
    "delimiter": "\n",
    "beam_size": 1,
    "beam_min_length": 1,
    "beam_length_penalty": 0.65,
    "beam_block_ngram": -1,
    "beam_context_block_ngram": -1,
    "topk": 10,
    "topp": 0.9,
    "temperature": 1.0,
}
_POSITIONS_WITHOUT_LIMITS = 1024
# The order of the layer norms, in the words of both libraries.
_MODEL_TYPES = {"prelayernorm": "blenderbot", "xlm": "blenderbot-small"}
BYTE_LEVEL, SUBWORDS = "bytelevelbpe", "bpe"
_TOKENIZERS = (BYTE_LEVEL, SUBWORDS)
_USUAL_DELIMITERS = {BYTE_LEVEL: "  ", SUBWORDS: "\n"}
_DICTIONARY_TOKENS = {"null": "__null__", "start": "__start__", "end": "__end__", "unk": "__unk__"}
# The ids that stand first in every dictionary, whatever else it holds.
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "forced_eos_token_id": 2}


def read_options(path: Path) -> dict[str, Any]:
    """Read a `model.opt`.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is not a JSON object.
    """
    try:
        options = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: options must be JSON, as ParlAI has written them since 2019: {error}") from None
    if not isinstance(options, dict):
        raise ValueError(f"{path}: options must be a JSON object, these are a {type(options).__name__}")
    return options


def option(options: Options, name: str) -> Any:
    """The value of an option, or what ParlAI's command line would give."""
    value = options.get(name)
    return _DEFAULTS.get(name) if value is None else value


def architecture(options: Options, vocab_size: int, where: str = "model.opt") -> dict[str, Any]:
    """The content of config.json that options describe.

    Args:
        options: of `model.opt`.
        vocab_size: V, the tokens of the dictionary.
        where: what messages call the options.

    Raises:
        ValueError: naming every option that is of the wrong type, or asks for what no BlenderBot has.

    Example:
        >>> opt = {"variant": "prelayernorm", "n_encoder_layers": 2, "n_decoder_layers": 24, "n_positions": 128}
        >>> found = architecture(opt | {"dict_tokenizer": "bytelevelbpe"}, 8008)
        >>> found["model_type"], found["encoder_layers"], found["decoder_layers"], found["max_position_embeddings"]
        ('blenderbot', 2, 24, 128)
    """
    problems = [*_type_problems(options)] or [*_value_problems(options), *_range_problems(options)]
    if problems:
        raise ValueError(f"{where} describes a model that is not supported: " + "; ".join(problems))
    positions, layers = position_count(options), option(options, "n_layers")
    config = {
        "model_type": _MODEL_TYPES[option(options, "variant")],
        "vocab_size": vocab_size,
        "max_position_embeddings": positions,
        "d_model": option(options, "embedding_size"),
        "scale_embedding": option(options, "embeddings_scale"),
        "activation_function": option(options, "activation"),
        "dropout": option(options, "dropout"),
        "attention_dropout": option(options, "attention_dropout"),
        "activation_dropout": option(options, "relu_dropout"),
        "architectures": [_class_name(options)],
        **_IDS,
    }
    for side in ("encoder", "decoder"):
        own = option(options, f"n_{side}_layers")
        config[f"{side}_layers"] = own if own > 0 else layers
        config[f"{side}_attention_heads"] = option(options, "n_heads")
        config[f"{side}_ffn_dim"] = option(options, "ffn_size")
    return config


def position_count(options: Options) -> int:
    """P: as many positions as `n_positions` says, or else the longest truncation, or else ParlAI's 1024."""
    longest = max(option(options, name) for name in ("truncate", "text_truncate", "label_truncate"))
    return option(options, "n_positions") or max(longest, 0) or _POSITIONS_WITHOUT_LIMITS


def longest_text(options: Options) -> int:
    """The most ids of a prompt: what `text_truncate` or else `truncate` leaves of it, never past the positions."""
    limit = option(options, "text_truncate") or option(options, "truncate")
    positions = position_count(options)
    return min(limit, positions) if limit > 0 else positions


def decoding(options: Options) -> dict[str, Any]:
    """The content of generation_config.json: the decoding that the options set, or the published recipe.

    `beam_min_length` counts real tokens and `min_length` the start token besides, so the latter is one more. A way of
    decoding that exists in ParlAI alone, such as `delayedbeam`, and options that set none, give the published recipe.

    Example:
        >>> decoding({"inference": "nucleus", "topp": 0.9})["top_p"]
        0.9
    """
    recipe = dict(_IDS)
    longest = min(max(option(options, "label_truncate"), 0) or 256, position_count(options))
    inference = options.get("inference")
    if inference == "greedy":
        return recipe | {"num_beams": 1, "max_length": longest}
    if inference in ("topk", "nucleus"):
        cutoff = {"top_k": option(options, "topk")} if inference == "topk" else {"top_p": option(options, "topp")}
        sampling = {"num_beams": 1, "do_sample": True, "temperature": option(options, "temperature")}
        return recipe | sampling | cutoff | {"max_length": longest}
    blocked = {}
    if inference == "beam":
        beams, least = option(options, "beam_size"), option(options, "beam_min_length") + 1
        penalty = option(options, "beam_length_penalty")
        own, prompt = option(options, "beam_block_ngram"), option(options, "beam_context_block_ngram")
    else:
        beams, least, penalty, own, prompt = 10, 20, 0.65, 3, 3
        longest = min(60, longest)
        if option(options, "dict_tokenizer") == SUBWORDS:
            longest, prompt = min(128, position_count(options)), 0
    if own > 0:
        blocked["no_repeat_ngram_size"] = own
    if prompt > 0:
        blocked["encoder_no_repeat_ngram_size"] = prompt
    lengths = {"min_length": min(least, longest), "max_length": longest, "length_penalty": penalty}
    return recipe | {"num_beams": beams} | lengths | blocked


def options_of(
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    tokenizer: str,
    *,
    sinusoidal: bool = False,
    delimiter: str | None = None,
) -> dict[str, Any]:
    """The options of a model, from its config.json and generation_config.json: `architecture` and `decoding` undone.

    Args:
        config: every field that `BlenderbotConfig.to_dict` gives.
        generation: the content of generation_config.json.
        tokenizer: "bytelevelbpe" or "bpe".
        sinusoidal: whether the tables of positions are those that ParlAI computes, which it then does not train.
        delimiter: what stands between turns; None: two spaces for "bytelevelbpe", a newline for "bpe".

    Raises:
        ValueError: naming every field for which ParlAI has no option.
    """
    problems = [*_inexpressible(config)]
    if problems:
        raise ValueError("ParlAI has no options for this model: " + "; ".join(problems))
    byte_level, positions = tokenizer == BYTE_LEVEL, config["max_position_embeddings"]
    variant = next(name for name, kind in _MODEL_TYPES.items() if kind == config["model_type"])
    return {
        "model": "transformer/generator",
        "variant": variant,
        "embedding_size": config["d_model"],
        "ffn_size": config["encoder_ffn_dim"],
        "n_heads": config["encoder_attention_heads"],
        "n_layers": config["encoder_layers"],
        "n_encoder_layers": config["encoder_layers"],
        "n_decoder_layers": config["decoder_layers"],
        "n_positions": positions,
        "n_segments": 0,
        "truncate": -1,
        "text_truncate": positions,
        "label_truncate": min(128, positions),
        "activation": config["activation_function"],
        "dropout": config["dropout"],
        "attention_dropout": config["attention_dropout"],
        "relu_dropout": config["activation_dropout"],
        "embeddings_scale": config["scale_embedding"],
        "learn_positional_embeddings": not sinusoidal,
        "output_scaling": 1.0,
        "share_word_embeddings": True,
        "dict_tokenizer": tokenizer,
        "dict_lower": not byte_level,
        "delimiter": _USUAL_DELIMITERS[tokenizer] if delimiter is None else delimiter,
        "history_add_global_end_token": "end" if byte_level else None,
        "fp16": False,
        **_decoding_options(generation),
    }


def _decoding_options(generation: Mapping[str, Any]) -> dict[str, Any]:
    said = {name: value for name, value in generation.items() if value is not None}
    beams = said.get("num_beams", 1)
    sampling = bool(said.get("do_sample"))
    by_share = "top_p" in said
    return {
        "inference": ("nucleus" if by_share else "topk") if sampling else "beam" if beams > 1 else "greedy",
        "beam_size": beams,
        "beam_min_length": max(said.get("min_length", 0) - 1, 1),
        "beam_length_penalty": said.get("length_penalty", 1.0),
        "beam_block_ngram": said.get("no_repeat_ngram_size", 0) or -1,
        "beam_context_block_ngram": said.get("encoder_no_repeat_ngram_size", 0) or -1,
        "beam_block_full_context": False,
        "topk": said.get("top_k", 10),
        "topp": said.get("top_p", 0.9),
        "temperature": said.get("temperature", 1.0),
    }


def _inexpressible(config: Mapping[str, Any]) -> Iterator[str]:
    for field in ("attention_heads", "ffn_dim"):
        one, other = (config[f"{side}_{field}"] for side in ("encoder", "decoder"))
        if one != other:
            yield f"encoder_{field}={one} and decoder_{field}={other}, which are one number there"
    if config["activation_function"] not in ("gelu", "relu"):
        yield f"activation_function={config['activation_function']!r}, it knows gelu and relu"
    if not config["tie_word_embeddings"]:
        yield "tie_word_embeddings=False, one table serves all there"
    if config["scale_embedding"] and not config["scale_decoder_embedding"] and config["model_type"] != "blenderbot":
        yield "scale_decoder_embedding=False, both sides are scaled or neither"
    for side in ("encoder", "decoder"):
        if config[f"{side}_layers"] < 1:
            yield f"{side}_layers={config[f'{side}_layers']}, there is at least one"
    for name, expected in _IDS.items():
        if config[name] not in (expected, [expected], None):
            yield f"{name}={config[name]}, which is {expected} there"


def _type_problems(options: Options) -> Iterator[str]:
    for name, default in _DEFAULTS.items():
        value = option(options, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if isinstance(default, bool):
            right, kind = isinstance(value, bool), "true or false"
        elif isinstance(default, str):
            right, kind = isinstance(value, str), "a string"
        elif isinstance(default, float):
            right, kind = whole or isinstance(value, float), "a number"
        else:
            right, kind = whole, "a whole number"
        if not right:
            yield f"{name} must be {kind}, not {value!r}"


def _value_problems(options: Options) -> Iterator[str]:
    accepted = {
        "variant": tuple(_MODEL_TYPES),
        "activation": ("gelu", "relu"),
        "output_scaling": (1.0,),
        "person_tokens": (False,),
        "dict_tokenizer": _TOKENIZERS,
        # ParlAI itself refuses the one, and the published tokenizer cannot do the other.
        "dict_lower": (option(options, "dict_tokenizer") == SUBWORDS,),
    }
    for name, values in accepted.items():
        if option(options, name) not in values:
            yield f"{name} must be {' or '.join(map(repr, values))}, not {option(options, name)!r}"
    # -1 is an older way to say none.
    if option(options, "n_segments") > 0:
        yield f"n_segments must be 0, not {option(options, 'n_segments')}: no BlenderBot has segments"
    if option(options, "n_positions") < 0:
        yield f"n_positions must not be negative, it is {option(options, 'n_positions')}"
    for name, token in _DICTIONARY_TOKENS.items():
        if options.get(f"dict_{name}token", token) != token:
            yield f"dict_{name}token must be {token!r}, not {options[f'dict_{name}token']!r}"


def _range_problems(options: Options) -> Iterator[str]:
    for name in ("embedding_size", "ffn_size", "n_heads"):
        if option(options, name) < 1:
            yield f"{name} must be at least 1, it is {option(options, name)}"
    width, heads = option(options, "embedding_size"), option(options, "n_heads")
    if width % max(heads, 1):
        yield f"embedding_size={width} must be a multiple of n_heads={heads}"
    for name in ("dropout", "attention_dropout", "relu_dropout"):
        if not 0 <= option(options, name) <= 1:
            yield f"{name} is a probability between 0 and 1, not {option(options, name)}"
    for side in ("encoder", "decoder"):
        if max(option(options, "n_layers"), option(options, f"n_{side}_layers")) < 1:
            yield f"n_layers or n_{side}_layers must be at least 1"


def _class_name(options: Options) -> str:
    small = "" if option(options, "variant") == "prelayernorm" else "Small"
    return f"Blenderbot{small}ForConditionalGeneration"
