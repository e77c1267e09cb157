"""What a forward pass returns: frozen records with the field names of transformers."""

from dataclasses import dataclass

import jax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Seq2SeqModelOutput:
    """The result of `BlenderbotModel`."""

    last_hidden_state: jax.Array
    """[B, T, D], the decoder's last states."""
    encoder_last_hidden_state: jax.Array
    """[B, S, D]; pass it on as `encoder_outputs` to save the encoder's work."""
    decoder_hidden_states: tuple[jax.Array, ...] | None = None
    """With `output_hidden_states`: the embeddings, then the states after each layer, the last one normalised."""
    encoder_hidden_states: tuple[jax.Array, ...] | None = None
    """Likewise for the encoder."""


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
    decoder_hidden_states: tuple[jax.Array, ...] | None = None
    """With `output_hidden_states`: the embeddings, then the states after each layer, the last one normalised."""
    encoder_hidden_states: tuple[jax.Array, ...] | None = None
    """Likewise for the encoder."""
