"""The training objective: decoder inputs made of labels, and cross-entropy over them."""

import jax
import jax.numpy as jnp
import optax

from blenderbot_jax.config import BlenderbotConfig

IGNORED_LABEL = -100


def shift_tokens_right(labels: jax.Array, config: BlenderbotConfig) -> jax.Array:
    """Make decoder inputs of labels: the start token first, everything one place later, -100 replaced by pad.

    Args:
        labels: [B, T].
        config: for `decoder_start_token_id` and `pad_token_id`.

    Returns:
        [B, T].
    """
    labels = jnp.asarray(labels)
    start = jnp.full((labels.shape[0], 1), config.decoder_start_token_id, labels.dtype)
    shifted = jnp.concatenate([start, labels[:, :-1]], axis=1)
    return jnp.where(shifted == IGNORED_LABEL, config.pad_token_id or 0, shifted)


def label_log_probs(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """log p(label) in nats, [B, T]; 0 where the label is -100.

    Args:
        logits: [B, T, V] float32.
        labels: [B, T].
    """
    labels = jnp.asarray(labels)
    counted = labels != IGNORED_LABEL
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counted, labels, 0))
    return jnp.where(counted, -losses, 0)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean of -log p(label) in nats over the labels that are not -100; 0 if there are none.

    Args:
        logits: [B, T, V] float32.
        labels: [B, T].
    """
    count = (jnp.asarray(labels) != IGNORED_LABEL).sum()
    return -label_log_probs(logits, labels).sum() / jnp.maximum(count, 1).astype(logits.dtype)
