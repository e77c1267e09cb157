"""What is minimised: summed losses of a batch, so that parts of it can be added up exactly."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from blenderbot_jax.model import IGNORED_LABEL, BlenderbotForConditionalGeneration, Params, shift_tokens_right
from blenderbot_jax.training.config import TrainingConfig

# 1 - p stays this far from 0, so that its logarithm stays finite.
_LEAST = 1e-5


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sums:
    """Sums over the labels of a batch, scalars in float32."""

    objective: jax.Array
    """What is differentiated."""
    loss: jax.Array
    """-log p(label) in nats, without smoothing or unlikelihood."""
    tokens: jax.Array
    """Labels that are not -100."""


def summed(
    model: BlenderbotForConditionalGeneration,
    params: Params,
    batch: dict[str, Any],
    config: TrainingConfig,
    key: jax.Array | None = None,
) -> Sums:
    """Run a batch and sum its losses over all labels.

    Args:
        model: an encoder-decoder with head.
        params: its parameters.
        batch: `input_ids` and `attention_mask` [B, S], `labels` [B, T] with -100 where nothing is learned.
        config: for `label_smoothing` and `unlikelihood`.
        key: for dropout and layerdrop; None has none.
    """
    labels = batch["labels"]
    rngs = None if key is None else {"dropout": key}
    inputs = shift_tokens_right(labels, model.config)
    logits = model.apply({"params": params}, batch["input_ids"], batch["attention_mask"], inputs, rngs=rngs).logits
    counted = labels != IGNORED_LABEL
    log_probs = jax.nn.log_softmax(logits)
    losses = jnp.where(counted, -_of(log_probs, jnp.where(counted, labels, 0)), 0)
    objective = losses
    if config.label_smoothing:
        # The mass is spread over the whole vocabulary, the label included, as transformers' LabelSmoother spreads it.
        even = jnp.where(counted, -log_probs.mean(axis=-1), 0)
        objective = (1 - config.label_smoothing) * losses + config.label_smoothing * even
    if config.unlikelihood:
        objective = objective + config.unlikelihood * _unlikelihood(log_probs, labels, counted)
    return Sums(objective.sum(), losses.sum(), counted.sum().astype(jnp.float32))


def _of(log_probs: jax.Array, ids: jax.Array) -> jax.Array:
    """[B, T]: each place's number at its id. As a sum: its gradient is elementwise, where that of a lookup scatters."""
    chosen = jnp.arange(log_probs.shape[-1]) == ids[..., None]
    return jnp.where(chosen, log_probs, 0).sum(axis=-1)


def _unlikelihood(log_probs: jax.Array, labels: jax.Array, counted: jax.Array) -> jax.Array:
    """[B, T]: -sum of log(1 - p(c)) over the different tokens c that a reply had before t, but for the label at t."""
    T = labels.shape[1]
    ids = jnp.where(counted, labels, 0)
    every = jnp.broadcast_to(ids[:, None], (len(ids), T, T))  # [B, t, c]
    candidates = jnp.take_along_axis(log_probs, every, axis=-1)
    same = ids[:, :, None] == ids[:, None]  # [B, t, c]
    earlier = jnp.tril(jnp.ones((T, T), bool), -1)
    repeats = (same & earlier & counted[:, None]).any(axis=-1)  # [B, t]: had before, so counted there
    wanted = earlier & ~same & counted[:, None] & counted[:, :, None] & ~repeats[:, None]
    costs = -jnp.log(jnp.maximum(-jnp.expm1(candidates), _LEAST))
    return jnp.where(wanted, costs, 0).sum(axis=-1)
