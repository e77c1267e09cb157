"""A text classifier on the encoder: the architecture of ParlAI's `transformer/classifier`."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.layers import Embedding, Linear
from blenderbot_jax.transformer import Encoder

Reduction = Literal["first", "mean", "max"]


class EncoderClassifier(nn.Module):
    """The encoder, its states reduced to one vector a text, and a linear layer over it.

    Args:
        config: of the encoder, pre-norm or post-norm; what it says of a decoder is not used.
        classes: C, how many there are.
        reduction: the first state, or their mean or maximum over the tokens that are there.
        dtype: the dtype of the computation.

    Example:
        >>> classifier = EncoderClassifier(model.config, classes=2)
        >>> ids = jnp.array([[1, 5, 2]])
        >>> classifier.apply(classifier.init(jax.random.key(0), ids, ids > 0), ids, ids > 0).shape
        (1, 2)
    """

    config: BlenderbotConfig
    classes: int
    reduction: Reduction = "mean"
    dtype: Any = jnp.float32

    def setup(self) -> None:
        c = self.config
        self.shared = Embedding(c.vocab_size, c.d_model, c.init_std, self.dtype, zero_row=c.pad_token_id)
        self.encoder = Encoder(c, self.dtype)
        self.head = Linear(self.classes, c.init_std, self.dtype, accumulate=jnp.float32)

    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
        """[B, S] ids and their mask, True where a token is, to logits [B, C] in float32."""
        embeds, scale = self.shared(input_ids), self.config.d_model**0.5
        states, _ = self.encoder(embeds * scale if self.config.scale_embedding else embeds, attention_mask)
        return self.head(_reduced(states[-1], attention_mask[..., None], self.reduction))


def _reduced(states: jax.Array, mask: jax.Array, reduction: Reduction) -> jax.Array:
    """[B, S, D] to [B, D]."""
    if reduction == "first":
        return states[:, 0]
    if reduction == "max":
        return jnp.where(mask, states, -jnp.inf).max(axis=1)
    return jnp.where(mask, states, 0).sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1).astype(states.dtype)
