"""GenerationConfig: how to decode, under transformers' field names, and its split into a plan and settings.

The plan is what a compiled program depends on; the settings are data that it takes. Two configurations that differ
only in numbers (temperatures, penalties, lengths, id lists) share one program.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self, cast

from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.files import write_text
from blenderbot_jax.generation.fields import ARGUMENTS, PROVENANCE, frozen, parlai_problems, problems
from blenderbot_jax.hub import SMALL_FILES, locate


@dataclass(frozen=True)
class GenerationConfig:
    """How to decode. None leaves a rule out; the special ids and lengths left None are the model's own.

    Without `max_length` and `max_new_tokens` a reply has at most 20 new tokens, as in transformers. `top_k` is off
    unless set. The rules run in transformers' order. What only sampling reads (`temperature` to `eta_cutoff`) is
    accepted and ignored without `do_sample`. The fields below the second line are accepted where they ask for nothing
    and refused by name otherwise.

    Args:
        max_length: the most tokens of a reply, start token (or decoder prompt) and `</s>` included.
        max_new_tokens: the same without the start token; it wins over `max_length`.
        min_length: `</s>` is barred while the reply has fewer tokens, the start token included.
        min_new_tokens: the same without the start token; it wins over `min_length`.
        num_beams: width of the beam search; 1 decodes greedily or samples.
        num_return_sequences: replies per prompt: the best of a beam search, or that many samples.
        length_penalty: a beam's score is its log-probability over (generated tokens) ** length_penalty.
        early_stopping: False stops a beam search when the best running beam, at its present length, can no longer beat
            the worst finished one; "never" judges it at the greatest length; True stops at `num_beams` finished ones.
        do_sample: draw tokens instead of taking the likeliest; with beams, draw the continuations.
        temperature: divides the scores before drawing; above 1 is bolder.
        top_h: draw among the likeliest that together hold this share of the entropy.
        top_k: draw among the k likeliest only.
        top_p: draw among the likeliest that together hold this probability.
        min_p: draw among tokens at least this fraction as likely as the likeliest.
        typical_p: draw among the tokens whose surprise is nearest to the entropy that together hold this probability.
        epsilon_cutoff: draw among tokens of at least this probability.
        eta_cutoff: the same with a threshold that falls where the distribution is flat.
        sequence_bias: `{(ids): bias}`, or `[[ids, bias], ...]`: added to the score of a sequence's last token where its
            other tokens end the reply.
        encoder_repetition_penalty: scores of the prompt's tokens gain by this factor (above 1 encourages).
        repetition_penalty: tokens already in the reply lose by this factor (above 1 discourages).
        no_repeat_ngram_size: no n-gram occurs twice in a reply.
        encoder_no_repeat_ngram_size: no n-gram of the prompt occurs in a reply.
        bad_words_ids: token sequences that never occur.
        forced_bos_token_id: the token that follows the start token.
        forced_eos_token_id: the token (or tokens) allowed in the last place.
        remove_invalid_values: NaN becomes 0 and an infinity the greatest or least finite number, barred tokens' too.
        exponential_decay_length_penalty: (start, factor): after `start` new tokens `</s>` gains
            |its score| * (factor ** (tokens since) - 1).
        suppress_tokens: tokens that never occur.
        begin_suppress_tokens: tokens that are not the first of a reply.
        renormalize_logits: make the scores log-probabilities again after all other rules.
        output_scores: give back each step's scores after the rules.
        output_logits: give back each step's logits before them.
        output_attentions: give back attention weights.
        output_hidden_states: give back hidden states.
        use_cache, return_dict_in_generate, disable_compile: accepted either way, without effect: the cache is always
            used, a record always returned, and decoding always compiled.

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
    min_p: float | None = None
    top_h: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    encoder_repetition_penalty: float | None = None
    sequence_bias: Any = None
    forced_bos_token_id: int | None = None
    remove_invalid_values: bool | None = None
    exponential_decay_length_penalty: tuple[int, float] | None = None
    suppress_tokens: Sequence[int] | None = None
    begin_suppress_tokens: Sequence[int] | None = None
    renormalize_logits: bool | None = None
    output_scores: bool | None = None
    output_logits: bool | None = None
    output_attentions: bool | None = None
    output_hidden_states: bool | None = None
    # ------------------------------------------------------------------------------------------------------------------
    use_cache: bool | None = None
    return_dict_in_generate: bool | None = None
    disable_compile: bool | None = None
    # ------------------------------------------------------------------------------------------------------------------
    max_time: float | None = None
    stop_strings: Any = None
    guidance_scale: float | None = None
    token_healing: bool | None = None
    watermarking_config: Any = None
    use_mtp: bool | None = None
    is_assistant: bool | None = None
    num_assistant_tokens: int | None = None
    num_assistant_tokens_schedule: str | None = None
    assistant_confidence_threshold: float | None = None
    prompt_lookup_num_tokens: int | None = None
    max_matching_ngram_size: int | None = None
    assistant_early_exit: int | None = None
    assistant_lookbehind: int | None = None
    target_lookbehind: int | None = None
    assistant_ensemble_weight: float | None = None
    speculation_type: str | None = None
    cache_implementation: str | None = None
    cache_config: Any = None
    max_cache_len: int | None = None
    prefill_chunk_size: int | None = None
    compile_config: Any = None
    continuous_batching_config: Any = None
    low_memory: bool | None = None
    penalty_alpha: float | None = None
    dola_layers: Any = None
    diversity_penalty: float | None = None
    num_beam_groups: int | None = None
    constraints: Any = None
    force_words_ids: Any = None
    # Where a file comes from: read and compared by no one.
    _from_model_config: bool | None = field(default=None, compare=False, repr=False)
    transformers_version: str | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in _names(type(self)):
            object.__setattr__(self, name, frozen(name, getattr(self, name)))
        if found := self._problems():
            raise ValueError(f"{type(self).__name__}: {'; '.join(found)}")

    def _problems(self) -> list[str]:
        return problems(self)

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

    @classmethod
    def parlai(cls, **changes: Any) -> "ParlaiConfig":
        """The same models' decoding as ParlAI runs it, with some fields changed; see `ParlaiConfig`.

        Beam search of width 10, at least 20 tokens before `</s>` and at most 128 with it, length penalty 0.65, no
        trigram twice, none of the prompt's. Source: ParlAI, `parlai/opt_presets/gen/blenderbot.opt` and the published
        models' options.

        Example:
            >>> GenerationConfig.parlai(num_beams=4).min_new_tokens
            20
        """
        published: dict[str, Any] = {
            "num_beams": 10,
            "min_new_tokens": 20,
            "max_new_tokens": 128,
            "length_penalty": 0.65,
            "no_repeat_ngram_size": 3,
            "encoder_no_repeat_ngram_size": 3,
        }
        return ParlaiConfig(**{**published, **changes})

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked like a new one."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read the content of a `generation_config.json`, leaving aside keys that are no decoding rule.

        The old `force_bos_token_to_be_generated` is read as `forced_bos_token_id`, as transformers does. What a
        `ParlaiConfig` has written becomes one again.

        Raises:
            ValueError: naming a rule that is not implemented, or an argument of `generate` that is no field.
        """
        for name in ARGUMENTS:
            if values.get(name) is not None:
                raise ValueError(f"GenerationConfig: {name} is no field of a configuration: pass it to generate")
        if (decoding := values.get(_DECODING)) not in (None, "parlai"):
            raise ValueError(f'GenerationConfig: {_DECODING} may be "parlai", or left out, and not {decoding!r}')
        if decoding is not None and not issubclass(cls, ParlaiConfig):
            return cast("Self", ParlaiConfig.from_dict(values))
        known = {name: values[name] for name in _names(cls) if name in values and name not in PROVENANCE}
        if values.get("force_bos_token_to_be_generated"):
            known["forced_bos_token_id"] = values.get("bos_token_id")
        return cls(**known)

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
        fields = {name: getattr(self, name) for name in _names(type(self)) if name not in PROVENANCE}
        return {name: value for name, value in fields.items() if value is not None}

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write `generation_config.json`, to a temporary name first."""
        write_text(Path(path), json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n")


@dataclass(frozen=True)
class ParlaiConfig(GenerationConfig):
    """How to decode as ParlAI does, with the fields of `GenerationConfig` and some of its own.

    What differs (`parlai_beam.py` does it):

    * The start token is never generated: it has no share in a step's probabilities.
    * A search takes exactly `num_beams` continuations a step, those that end among them. It stops when `num_beams` have
      ended and one of them was the best of its step.
    * An ended reply's score is its log-probability over ((generated tokens + 2) / 6) ** length_penalty. Where nothing
      has ended within the greatest length, `</s>` takes the best running beam's last place.
    * `temperature` divides the logits of a search too.
    * With `do_sample`, `num_beams` replies are drawn by `top_k` or by `top_p`, and come best first. Other rules of
      sampling are refused. Scores are log-probabilities within what `top_p` keeps, and within all tokens otherwise.
      (`step_scores` are those before either of the two.)

    A draft is refused. transformers reads the file of such a configuration and decodes in its own way.

    Args:
        beam_delay: with `do_sample`, so many tokens are drawn, `num_beams` times, before a search takes over
            (Massarelli et al. 2019, "How Decoding Strategies Affect the Verifiability of Generated Text"). None draws
            all of them.
        top_p_decay: `top_p` is multiplied by this for every token of a sentence from the third on ("factual nucleus";
            Lee et al. 2022, "Factuality Enhanced Language Models", who begin with the second).
        top_p_floor: and falls no lower than this.
        sentence_end_ids: tokens after which `top_p` starts anew; None never starts anew. `sentence_ends` finds them.
        block_full_context: the rules that look at the prompt look at the whole conversation, turns that the model no
            longer reads included. `Chatbot` sees to that; `generate` needs `context_ids`.

    Example:
        >>> ParlaiConfig(do_sample=True, top_p=0.9, top_p_decay=0.9, top_p_floor=0.3, sentence_end_ids=[21]).top_p_decay
        0.9
    """

    beam_delay: int | None = None
    top_p_decay: float | None = None
    top_p_floor: float | None = None
    sentence_end_ids: Sequence[int] | None = None
    block_full_context: bool | None = None

    def _problems(self) -> list[str]:
        return super()._problems() or parlai_problems(self)

    def to_dict(self) -> dict[str, Any]:
        """The fields that are set, and whose decoding it is, as `generation_config.json` holds them."""
        return {_DECODING: "parlai", **super().to_dict()}


_DECODING = "decoding"
"""The key that says whose decoding a file describes."""


@cache
def _names(config_class: type[GenerationConfig]) -> tuple[str, ...]:
    return tuple(found.name for found in dataclasses.fields(config_class))
