"""GenerationConfig: how to decode, under transformers' field names, and its split into a plan and settings.

The plan is what a compiled program depends on; the settings are data that it takes. Two configurations that differ
only in numbers (temperatures, penalties, lengths, id lists) share one program.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from blenderbot_jax.config import BlenderbotConfig, as_ids
from blenderbot_jax.files import write_text
from blenderbot_jax.hub import SMALL_FILES, locate

# Fields of transformers that are not implemented, with the values (beside None) that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "min_p": (0, 0.0),
    "top_h": (),
    "typical_p": (1, 1.0),
    "epsilon_cutoff": (0, 0.0),
    "eta_cutoff": (0, 0.0),
    "encoder_repetition_penalty": (1, 1.0),
    "renormalize_logits": (False,),
    "forced_bos_token_id": (),
    "remove_invalid_values": (False,),
    "exponential_decay_length_penalty": (),
    "suppress_tokens": ((),),
    "begin_suppress_tokens": ((),),
    "sequence_bias": ((), {}),
    "guidance_scale": (1, 1.0),
    "token_healing": (False,),
    "watermarking_config": (),
    "max_time": (),
    "stop_strings": ((),),
    "prompt_lookup_num_tokens": (),
    "penalty_alpha": (0, 0.0),
    "dola_layers": (),
    "diversity_penalty": (0, 0.0),
    "num_beam_groups": (1,),
    "constraints": ((),),
    "force_words_ids": ((),),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "output_scores": (False,),
    "output_logits": (False,),
}
_LISTS = ("bad_words_ids", "eos_token_id", "forced_eos_token_id")


@dataclass(frozen=True)
class GenerationConfig:
    """How to decode. None leaves a rule out; the special ids and lengths left None are the model's own.

    Without `max_length` and `max_new_tokens` a reply has at most 20 new tokens, as in transformers. `top_k` is off
    unless set. The fields below the line are accepted where they ask for nothing and refused by name otherwise.

    Args:
        max_length: the most tokens of a reply, start token and `</s>` included.
        max_new_tokens: the same without the start token; it wins over `max_length`.
        min_length: `</s>` is barred while the reply has fewer tokens, the start token included.
        min_new_tokens: the same without the start token; it wins over `min_length`.
        num_beams: width of the beam search; 1 decodes greedily or samples.
        num_return_sequences: replies per prompt: the best of a beam search, or that many samples.
        length_penalty: a beam's score is its log-probability over (generated tokens) ** length_penalty.
        early_stopping: False stops a beam search when the best running beam, at its present length, can no longer beat
            the worst finished one; "never" judges it at the greatest length; True stops at `num_beams` finished ones.
        do_sample: draw tokens instead of taking the likeliest.
        temperature: divides the scores before drawing; above 1 is bolder.
        top_k: draw among the k likeliest only.
        top_p: draw among the likeliest that together hold this probability.
        repetition_penalty: tokens already in the reply lose by this factor (above 1 discourages).
        no_repeat_ngram_size: no n-gram occurs twice in a reply.
        encoder_no_repeat_ngram_size: no n-gram of the prompt occurs in a reply.
        bad_words_ids: token sequences that never occur.
        forced_eos_token_id: the token (or tokens) allowed in the last place.

    Raises:
        ValueError: naming the field that contradicts itself or is not implemented.

    Example:
        >>> GenerationConfig(num_beams=10, bad_words_ids=[[7], [9, 12]]).bad_words_ids
        ((7,), (9, 12))
    """

    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int | None = None
    min_new_tokens: int | None = None
    num_beams: int | None = None
    num_return_sequences: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    encoder_no_repeat_ngram_size: int | None = None
    bad_words_ids: Sequence[Sequence[int]] | None = None
    forced_eos_token_id: int | Sequence[int] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | Sequence[int] | None = None
    decoder_start_token_id: int | None = None
    # ------------------------------------------------------------------------------------------------------------------
    min_p: float | None = None
    top_h: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    encoder_repetition_penalty: float | None = None
    renormalize_logits: bool | None = None
    forced_bos_token_id: int | None = None
    remove_invalid_values: bool | None = None
    exponential_decay_length_penalty: tuple[int, float] | None = None
    suppress_tokens: Sequence[int] | None = None
    begin_suppress_tokens: Sequence[int] | None = None
    sequence_bias: Any = None
    guidance_scale: float | None = None
    token_healing: bool | None = None
    watermarking_config: Any = None
    max_time: float | None = None
    stop_strings: Any = None
    prompt_lookup_num_tokens: int | None = None
    penalty_alpha: float | None = None
    dola_layers: Any = None
    diversity_penalty: float | None = None
    num_beam_groups: int | None = None
    constraints: Any = None
    force_words_ids: Any = None
    output_attentions: bool | None = None
    output_hidden_states: bool | None = None
    output_scores: bool | None = None
    output_logits: bool | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list | tuple):
                object.__setattr__(self, field.name, _frozen(value))
        problems = [*_unsupported(self), *_out_of_range(self), *_contradictions(self)]
        if problems:
            raise ValueError("GenerationConfig: " + "; ".join(problems))

    @classmethod
    def recipe(cls, **changes: Any) -> Self:
        """The decoding published with the 400M, 1B and 3B models, with some fields changed.

        Beam search of width 10, 20 to 60 tokens, length penalty 0.65, no trigram twice, none of the prompt's.
        """
        published: dict[str, Any] = {
            "num_beams": 10,
            "min_length": 20,
            "max_length": 60,
            "length_penalty": 0.65,
            "no_repeat_ngram_size": 3,
            "encoder_no_repeat_ngram_size": 3,
            "forced_eos_token_id": 2,
        }
        return cls(**{**published, **changes})

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked like a new one."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read the content of a `generation_config.json`, leaving aside keys that are no decoding rule."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in names})

    @classmethod
    def from_pretrained(cls, name_or_folder: str | os.PathLike[str], **hub_options: Any) -> Self:
        """Read a checkpoint's decoding settings.

        `generation_config.json` is the only source where it exists; older folders keep the settings in `config.json`.

        Args:
            name_or_folder: a folder, a hub name, or "demo".
            hub_options: `revision`, `cache_dir`, `local_files_only`, `token`; see `locate`.
        """
        folder = locate(name_or_folder, SMALL_FILES, **hub_options)
        path = folder / "generation_config.json"
        if not path.exists():
            config = BlenderbotConfig.from_json(folder / "config.json")
            return cls.from_dict({**config.extra, **config.to_dict()})
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The fields that are set, as `generation_config.json` holds them."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if value is not None}

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write `generation_config.json`, to a temporary name first."""
        write_text(Path(path), json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n")


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _unsupported(config: GenerationConfig) -> list[str]:
    return [
        f"{name}={getattr(config, name)!r} is not implemented: leave it out"
        for name, neutral in _NEUTRAL.items()
        if getattr(config, name) is not None and getattr(config, name) not in neutral
    ]


# Field -> (is the value right, what would be).
def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_COUNTS = {
    "max_length": 2,
    "max_new_tokens": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "top_k": 0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "decoder_start_token_id": 0,
}


def _out_of_range(config: GenerationConfig) -> list[str]:
    problems = []

    def need(name: str, right: bool, rule: str) -> None:
        if getattr(config, name) is not None and not right:
            problems.append(f"{name} must be {rule}, not {getattr(config, name)!r}")

    for name, least in _COUNTS.items():
        need(name, _is_count(getattr(config, name), least), f"an integer of at least {least}")
    for name in ("temperature", "repetition_penalty"):
        value = getattr(config, name)
        need(name, _is_number(value) and value > 0, "a number above 0 (do_sample=False decodes without chance)")
    need("length_penalty", _is_number(config.length_penalty), "a number")
    need("top_p", _is_number(config.top_p) and 0 <= (config.top_p or 0) <= 1, "a number between 0 and 1")
    need("do_sample", isinstance(config.do_sample, bool), "true or false")
    need("early_stopping", config.early_stopping in (True, False, "never"), 'True, False or "never"')
    for name in ("eos_token_id", "forced_eos_token_id"):
        ids = as_ids(getattr(config, name))
        need(name, bool(ids) and all(_is_count(token, 0) for token in ids), "a token id or several")
    words = config.bad_words_ids
    right = isinstance(words, tuple) and all(
        isinstance(word, tuple) and word and all(_is_count(token, 0) for token in word) for word in words
    )
    need("bad_words_ids", right, "a list of non-empty lists of token ids")
    return problems


def _contradictions(config: GenerationConfig) -> list[str]:
    beams, returned = config.num_beams or 1, config.num_return_sequences or 1
    problems = []
    if not (_is_count(beams, 1) and _is_count(returned, 1)):
        return problems
    if beams > 1 and config.do_sample:
        problems.append(f"do_sample=True with num_beams={beams} (beam sampling) is not implemented: choose one of them")
    if beams > 1 and returned > beams:
        problems.append(f"num_return_sequences={returned} is more than the num_beams={beams} there are to return")
    if beams == 1 and returned > 1 and not config.do_sample:
        problems.append(
            f"num_return_sequences={returned} needs do_sample=True or num_beams >= {returned}: "
            "greedy decoding gives one reply"
        )
    return problems
