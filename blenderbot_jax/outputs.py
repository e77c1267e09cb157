"""What a forward pass returns: frozen records with the field names of transformers.

Hidden states come with `output_hidden_states`: the embeddings, then the states after each layer, L + 1 arrays
[B, T, D], the last one normalised. Attentions come with `output_attentions`: one array of weights [B, N, T, S] per
layer.
"""

from dataclasses import dataclass
from typing import Any

import jax

States = tuple[jax.Array, ...] | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EncoderOutput:
    """The encoder's part of a result; it may be passed on as `encoder_outputs`."""

    last_hidden_state: jax.Array
    """[B, S, D]."""
    hidden_states: States = None
    """The embeddings, then the states after each layer."""
    attentions: States = None
    """L arrays [B, N, S, S]."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Seq2SeqModelOutput:
    """The result of `BlenderbotModel`."""

    last_hidden_state: jax.Array
    """[B, T, D], the decoder's last states."""
    encoder_last_hidden_state: jax.Array
    """[B, S, D]; pass it on as `encoder_outputs` to save the encoder's work."""
    decoder_hidden_states: States = None
    """The embeddings, then the states after each layer."""
    decoder_attentions: States = None
    """L arrays [B, N, T, T]."""
    cross_attentions: States = None
    """L arrays [B, N, T, S]: where in the prompt each place of the reply looks."""
    encoder_hidden_states: States = None
    """The embeddings, then the states after each layer."""
    encoder_attentions: States = None
    """L arrays [B, N, S, S]."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Seq2SeqLMOutput:
    """The result of `BlenderbotForConditionalGeneration`."""

    logits: jax.Array
    """[B, T, V] float32."""
    encoder_last_hidden_state: jax.Array
    """[B, S, D]; pass it on as `encoder_outputs` to save the encoder's work."""
    loss: jax.Array | None = None
    """With `labels`: mean cross-entropy in nats over the labels that are not -100."""
    decoder_hidden_states: States = None
    """The embeddings, then the states after each layer."""
    decoder_attentions: States = None
    """L arrays [B, N, T, T]."""
    cross_attentions: States = None
    """L arrays [B, N, T, S]: where in the prompt each place of the reply looks."""
    encoder_hidden_states: States = None
    """The embeddings, then the states after each layer."""
    encoder_attentions: States = None
    """L arrays [B, N, S, S]."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CausalLMOutput:
    """The result of `BlenderbotForCausalLM`."""

    logits: jax.Array
    """[B, T, V] float32."""
    loss: jax.Array | None = None
    """With `labels`: mean cross-entropy in nats over the labels that are not -100; labels are not shifted."""
    hidden_states: States = None
    """The embeddings, then the states after each layer."""
    attentions: States = None
    """L arrays [B, N, T, T]."""
    cross_attentions: States = None
    """L arrays [B, N, T, S], with `encoder_hidden_states`."""


def as_encoder_output(given: Any) -> EncoderOutput:
    """What a caller hands on as `encoder_outputs`, in one form.

    Args:
        given: the encoder's output [B, S, D]; a tuple of it, its hidden states and its attentions; or any record that
            holds them, the result of a whole model among these.

    Returns:
        A record; nothing is checked yet.
    """
    if hasattr(given, "encoder_last_hidden_state"):
        # Its last_hidden_state is the decoder's.
        return EncoderOutput(given.encoder_last_hidden_state, given.encoder_hidden_states, given.encoder_attentions)
    if hasattr(given, "last_hidden_state"):
        states, attentions = (getattr(given, name, None) for name in ("hidden_states", "attentions"))
        return EncoderOutput(given.last_hidden_state, states, attentions)
    return EncoderOutput(*given[:3]) if isinstance(given, tuple) else EncoderOutput(given)
