"""generate: from prompts to replies in one compiled program per bucket and plan.

The program encodes, computes the cross-attention keys and values once, and decodes in a `lax.while_loop` that ends as
soon as every row has. Widths and batches are rounded up to a few buckets in numpy, before anything is compiled.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from blenderbot_jax.cache import reorder
from blenderbot_jax.checks import check_ids, check_positions, check_same_shape, concrete
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.generation.beam import beam_search
from blenderbot_jax.generation.config import GenerationConfig
from blenderbot_jax.generation.plan import LENGTH_BUCKETS, Plan, Settings, compile_config, pad_token, round_up
from blenderbot_jax.generation.sampling import decode_rows

_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)


class GenerativeModel(Protocol):
    """What decoding needs of a model: a hashable module with `encode`, `prefill` and `decode_step`."""

    config: BlenderbotConfig

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a method on parameters."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GenerateOutput:
    """Replies for B prompts, R each, best first."""

    sequences: jax.Array
    """[B, R, max_length] int32: the start token, the reply, its end token, then pad."""
    lengths: jax.Array
    """[B, R] int32: tokens up to and with the end token, start included."""
    scores: jax.Array
    """[B, R] float32: summed log-probabilities; under beams divided by generated tokens ** length_penalty."""
    token_log_probs: jax.Array
    """[B, R, max_length] float32: each token's log-probability after the rules; 0 at the start and after the end."""


def generate(
    model: GenerativeModel,
    params: Any,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    config: GenerationConfig,
    key: jax.Array | None = None,
) -> GenerateOutput:
    """Decode replies.

    Args:
        model: a `BlenderbotForConditionalGeneration`.
        params: its parameters.
        input_ids: [B, S] prompts.
        attention_mask: [B, S], 1 where a token is kept; None keeps what is not the pad token.
        config: how to decode.
        key: a `jax.random.key`; needed for sampling, refused otherwise.

    Returns:
        A `GenerateOutput`.

    Raises:
        ValueError: ids out of the vocabulary, prompts or replies longer than the model's positions, a key too many or
            too few. Values are checked where they are concrete, so not inside another `jit`.

    Example:
        >>> batch = tokenizer(["Hello there!", "Do you like music?"])
        >>> out = generate(model, params, batch.input_ids, batch.attention_mask, config=GenerationConfig(num_beams=4))
        >>> replies = tokenizer.batch_decode(out.sequences[:, 0], skip_special_tokens=True)
        >>> len(replies)
        2
    """
    if config.do_sample and key is None:
        raise ValueError("do_sample=True draws at random: pass key=jax.random.key(seed)")
    if key is not None and not config.do_sample:
        raise ValueError("a key was given, but nothing is drawn: set do_sample=True, or leave the key out")
    check_ids("input_ids", input_ids, model.config.vocab_size)
    B, S = input_ids.shape
    check_positions("input_ids", S, model.config.max_position_embeddings)
    if attention_mask is None:
        attention_mask = input_ids != pad_token(config, model.config)
    check_same_shape("attention_mask", attention_mask, "input_ids", (B, S))
    plan, settings = compile_config(config, model.config, S)
    ids, mask, valid = _to_bucket(input_ids, attention_mask, model.config.max_position_embeddings)
    out = _decode(model, plan, params, ids, mask, valid, settings, key)
    length = int(settings.max_length[0])
    return GenerateOutput(
        sequences=_crop(out.sequences, B, length),
        lengths=_crop(out.lengths, B),
        scores=_crop(out.scores, B),
        token_log_probs=_crop(out.token_log_probs, B, length),
    )


@partial(jax.jit, static_argnums=(0, 1))
def _decode(
    model: GenerativeModel,
    plan: Plan,
    params: Any,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    valid: jax.Array,
    settings: Settings,
    key: jax.Array | None,
) -> GenerateOutput:
    """The whole of decoding; compiled once per model, plan and bucket."""
    variables = {"params": params}
    encoded = model.apply(variables, input_ids, attention_mask, method="encode")
    room = min(plan.capacity, model.config.max_position_embeddings)
    cache = model.apply(variables, encoded, attention_mask, capacity=room, beams=plan.rows, method="prefill")

    def step(tokens: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        logits, cache = model.apply(variables, tokens[:, :, None], cache, method="decode_step")
        return logits[:, :, 0], cache

    if plan.mode == "beam":
        replies = beam_search(step, reorder, cache, input_ids, valid, settings, plan)
    else:
        replies = decode_rows(step, cache, input_ids, valid, settings, plan, key)
    R = plan.returned
    return GenerateOutput(
        replies.tokens[:, :R], replies.lengths[:, :R], replies.scores[:, :R], replies.log_probs[:, :R]
    )


def _to_bucket(input_ids: Any, attention_mask: Any, max_positions: int) -> tuple[Any, Any, Any]:
    """Pad prompts to a bucket's width and number of rows; traced arrays keep their shape."""
    ids, mask = concrete(input_ids), concrete(attention_mask)
    if ids is None or mask is None:
        return (
            jnp.asarray(input_ids, jnp.int32),
            jnp.asarray(attention_mask).astype(bool),
            jnp.ones(len(input_ids), bool),
        )
    B, S = ids.shape
    rows, width = batch_bucket(B), min(round_up(S, LENGTH_BUCKETS), max_positions)
    padded_ids = np.zeros((rows, width), np.int32)
    padded_mask = np.zeros((rows, width), bool)
    padded_ids[:B, :S], padded_mask[:B, :S] = ids, mask != 0
    # A row that may look nowhere is legal but wasteful to reason about: fillers look at their first place.
    padded_mask[B:, 0] = True
    return padded_ids, padded_mask, np.arange(rows) < B


def _crop(array: jax.Array, rows: int, length: int | None = None) -> jax.Array:
    """The caller's own part of a bucket; cut in numpy, because a jax slice compiles a program for every size."""
    part = np.s_[:rows] if length is None else np.s_[:rows, :, :length]
    values = concrete(array)
    return array[part] if values is None else jnp.asarray(values[part])


def batch_bucket(rows: int) -> int:
    """The number of rows a batch is padded to: a power of two up to 64, then a multiple of 64."""
    return rows + -rows % 64 if rows > _BATCH_BUCKETS[-1] else round_up(rows, _BATCH_BUCKETS)
