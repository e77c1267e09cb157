"""What each step of decoding saw, on request: scores, logits, attention weights, hidden states.

The loop keeps none of it. A reply that is known is run through the decoder once more, all places at the same time,
which gives each step's values up to rounding, costs one forward pass, and leaves the loop as fast as it is.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from blenderbot_jax.generation.inputs import Inputs
from blenderbot_jax.generation.plan import Plan
from blenderbot_jax.generation.sampling import Replies
from blenderbot_jax.generation.task import Task

Layers = tuple[jax.Array, ...] | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Recording:
    """What was asked for, in the shapes of `GenerateOutput`; None for what was not."""

    scores: jax.Array | None = None
    logits: jax.Array | None = None
    decoder_attentions: Layers = None
    cross_attentions: Layers = None
    decoder_hidden_states: Layers = None
    encoder_attentions: Layers = None
    encoder_hidden_states: Layers = None
    rounds: jax.Array | None = None
    """Scalar int32: steps of the model; None without a draft."""


def record(
    model: Any, plan: Plan, variables: Any, encoded: Any, inputs: Inputs, task: Task, replies: Replies
) -> Recording:
    """Run the replies through the model once more and keep what the plan asks for.

    Args:
        model, variables: what decoded them.
        plan: whose `outputs` say what is wanted.
        encoded: the encoder's output [B, S, D], or None.
        inputs: the prompts.
        task: the rules.
        replies: the R that are returned.
    """
    if not plan.outputs:
        return Recording()
    wanted = {f"output_{name}": name in plan.outputs for name in ("attentions", "hidden_states")}
    decoder = _decoder_pass(model, variables, encoded, inputs, replies, wanted)
    encoder = _encoder_pass(model, variables, inputs, wanted) if any(wanted.values()) else None
    logits = _at_own_places(decoder.logits, task, replies)
    seq2seq = model.config.is_encoder_decoder
    return Recording(
        scores=_bent(logits, task, replies, plan) if "scores" in plan.outputs else None,
        logits=logits if "logits" in plan.outputs else None,
        decoder_attentions=_by_prompt(decoder.decoder_attentions if seq2seq else decoder.attentions, replies),
        cross_attentions=_by_prompt(decoder.cross_attentions, replies),
        decoder_hidden_states=_by_prompt(decoder.decoder_hidden_states if seq2seq else decoder.hidden_states, replies),
        encoder_attentions=None if encoder is None else encoder.encoder_attentions,
        encoder_hidden_states=None if encoder is None else encoder.encoder_hidden_states,
    )


def _decoder_pass(
    model: Any, variables: Any, encoded: Any, inputs: Inputs, replies: Replies, wanted: dict[str, bool]
) -> Any:
    """The forward pass over all replies but their last tokens, [B * R, T]."""
    R, C = replies.tokens.shape[1:]
    T = min(C - 1, model.config.max_position_embeddings)
    tokens = replies.tokens[:, :, :T].reshape(-1, T)
    encoded, source_mask = jax.tree.map(lambda leaf: jnp.repeat(leaf, R, axis=0), (encoded, inputs.source_mask))
    mask = None
    if inputs.prompt_mask is not None:
        W = inputs.prompt_mask.shape[1]
        mask = jnp.repeat(jnp.pad(inputs.prompt_mask, ((0, 0), (0, max(T - W, 0))), constant_values=True)[:, :T], R, 0)
    if model.config.is_encoder_decoder:
        return model.apply(
            variables, None, source_mask, tokens, decoder_attention_mask=mask, encoder_outputs=encoded, **wanted
        )
    states = {} if encoded is None else {"encoder_hidden_states": encoded, "encoder_attention_mask": source_mask}
    return model.apply(variables, tokens, mask, **states, **wanted)


def _encoder_pass(model: Any, variables: Any, inputs: Inputs, wanted: dict[str, bool]) -> Any:
    """The forward pass over the prompts; None where their encoding was given. The decoder's part is compiled away."""
    if inputs.encoded is not None or not model.config.is_encoder_decoder:
        return None
    embeds = {} if inputs.source_embeds is None else {"inputs_embeds": inputs.source_embeds}
    return model.apply(variables, inputs.source_ids, inputs.source_mask, inputs.prompt[:, :1], **embeds, **wanted)


def _at_own_places(logits: jax.Array, task: Task, replies: Replies) -> jax.Array:
    """Logits [B * R, T, V] of what follows each place, as [B, R, C, V] of each place; 0 where none was chosen."""
    B, R, C = replies.tokens.shape
    shifted = jnp.pad(logits.reshape(B, R, *logits.shape[1:]), ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :C]
    shifted = jnp.pad(shifted, ((0, 0), (0, 0), (0, C - shifted.shape[2]), (0, 0)))
    return jnp.where(_chosen(task, replies)[..., None], shifted, 0)


def _bent(logits: jax.Array, task: Task, replies: Replies, plan: Plan) -> jax.Array:
    """What each token was chosen by: [B, R, C, V] log-probabilities under beams, logits otherwise, after the rules."""
    scores = task.scored(logits, plan)
    places = jnp.arange(scores.shape[2], dtype=jnp.int32)
    bent = jax.lax.map(lambda t: task.bend(scores[:, :, t], replies.tokens, t, plan), places)
    return jnp.where(_chosen(task, replies)[..., None], jnp.moveaxis(bent, 0, 2), 0)


def _chosen(task: Task, replies: Replies) -> jax.Array:
    """[B, R, C] bool: the places of a reply that decoding filled."""
    places = jnp.arange(replies.tokens.shape[-1])
    return (places >= task.prompt_length) & (places < replies.lengths[..., None])


def _by_prompt(layers: Layers, replies: Replies) -> Layers:
    """[B * R, ...] per layer as [B, R, ...]."""
    B, R, _ = replies.tokens.shape
    return None if layers is None else tuple(layer.reshape(B, R, *layer.shape[1:]) for layer in layers)
