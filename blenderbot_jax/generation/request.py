"""From a caller's arrays and configuration to what a decoding program is called with."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from blenderbot_jax.checks import as_array
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.generation.config import GenerationConfig
from blenderbot_jax.generation.inputs import Inputs, causal_inputs, context_rows, seq2seq_inputs, to_bucket
from blenderbot_jax.generation.packing import covering
from blenderbot_jax.generation.plan import LENGTH_BUCKETS, Plan, compile_config, pad_token
from blenderbot_jax.generation.processors import Constraint, CustomProcessor
from blenderbot_jax.generation.speculation import Draft, check_draft
from blenderbot_jax.generation.task import Task


@dataclass(frozen=True)
class Request:
    """A batch of prompts and its rules, padded to a bucket: with a model and parameters, a call of `decode`."""

    plan: Plan
    """What the program is compiled for, beside the shapes below."""
    inputs: Inputs
    """In the bucket's rows and widths."""
    task: Task
    """Likewise."""
    shape: tuple[int, int, int]
    """B, S and W as the caller gave them."""

    @property
    def max_length(self) -> int:
        """The most tokens of a reply, what it begins with included."""
        return int(self.task.settings.max_length[0])


def request(
    model: BlenderbotConfig,
    config: GenerationConfig,
    given: dict[str, Any],
    processors: Sequence[CustomProcessor] = (),
    constraint: Constraint | None = None,
    stop_sequences: Sequence[Sequence[int]] = (),
    widths: Sequence[int] = LENGTH_BUCKETS,
    draft: Draft | None = None,
    context: Any = None,
) -> Request:
    """Check a batch, pad it to its bucket, and split its configuration.

    Args:
        model: the architecture.
        config: how to decode.
        given: the arrays of `generate` by their names there; one that is missing counts as None.
        processors, constraint, stop_sequences, widths: as `generate` takes them.
        draft: likewise; it is checked, and changes nothing.
        context: `context_ids`, likewise.

    Raises:
        ValueError, TypeError: as `generate` does.

    Example:
        >>> batch = request(model.config, GenerationConfig(num_beams=4), {"input_ids": [[9, 8, 7, 2]]})
        >>> batch.plan.rows, batch.shape, batch.inputs.shape
        (4, (1, 4, 1), (1, 16, 1))
    """
    inputs = _checked(model, config, {name: as_array(name, given.get(name)) for name in _ARRAYS})
    if draft is not None:
        check_draft(draft, model, config, inputs)
    # Rules may look at prompts of known ids alone; that there is a width says that they are known.
    width = inputs.source_width if context is None else 1
    plan, settings = compile_config(config, model, width, inputs.shape[2], stop_sequences)
    positions = model.max_position_embeddings
    padded = to_bucket(inputs, positions, plan.capacity, covering(tuple(widths), positions), plan.rows)
    # One for each row, as batches of prompts of different lengths have it, so that all run the same programs.
    looked_at, widths_of_rows = padded.source_ids, np.repeat(settings.source_width, len(padded.valid))
    if context is not None:
        looked_at, widths_of_rows = context_rows(context, inputs.shape[0], *padded.shape[:2], model.vocab_size)
    settings = dataclasses.replace(settings, source_width=widths_of_rows)
    own = tuple(map(_as_data, processors))
    bound = None if constraint is None else _as_data(constraint)
    task = Task(padded.prompt, looked_at, padded.valid, settings, bound, own)
    return Request(plan, padded, task, inputs.shape)


_ARRAYS = (
    "input_ids",
    "attention_mask",
    "decoder_input_ids",
    "encoder_outputs",
    "encoder_attention_mask",
    "inputs_embeds",
)


def _checked(model: BlenderbotConfig, config: GenerationConfig, given: dict[str, Any]) -> Inputs:
    """What the caller gave, for the kind of model that it is for."""
    pad = pad_token(config, model)
    if not model.is_encoder_decoder:
        _refuse_for_causal(config, given.pop("decoder_input_ids"), given.pop("inputs_embeds"))
        return causal_inputs(model, **given, pad=pad)
    if given.pop("encoder_attention_mask") is not None:
        raise TypeError("encoder_attention_mask is a causal model's: here the mask of the prompt is attention_mask")
    start = model.decoder_start_token_id if config.decoder_start_token_id is None else config.decoder_start_token_id
    return seq2seq_inputs(model, **given, pad=pad, start=start)


def _refuse_for_causal(config: GenerationConfig, decoder_input_ids: Any, inputs_embeds: Any) -> None:
    if decoder_input_ids is not None:
        raise ValueError("a causal model has no decoder prompt beside input_ids: put it there")
    if inputs_embeds is not None:
        raise ValueError("a causal model continues ids: pass input_ids (its forward pass takes inputs_embeds)")
    for name, neutral in (("encoder_no_repeat_ngram_size", 0), ("encoder_repetition_penalty", 1)):
        if getattr(config, name) not in (None, neutral):
            raise ValueError(
                f"{name} looks at an encoder's prompt, and a causal model has none: config.replace({name}=None)"
            )


def _as_data(function: Callable[..., Any]) -> jax.tree_util.Partial:
    """A function as an argument of a program: itself static, the arrays of a Partial data."""
    return function if isinstance(function, jax.tree_util.Partial) else jax.tree_util.Partial(function)
