"""The optimiser that a TrainingConfig describes."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from blenderbot_jax.training.config import TrainingConfig


def learning_rate(config: TrainingConfig) -> optax.Schedule:
    """The rate by step: warm-up from 0, then as `schedule` says.

    Args:
        config: `plateau` stays at the top here, since validation decides when its rate is halved.
    """
    peak, rest = config.learning_rate, max(config.steps - config.warmup_steps, 1)
    after = {
        "linear": optax.linear_schedule(peak, peak * config.final_rate, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest, config.final_rate),
    }.get(config.schedule, optax.constant_schedule(peak))
    if not config.warmup_steps:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, config.warmup_steps), after], [config.warmup_steps])


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """Clipping, then the optimiser with its schedule and, for kernels and embeddings alone, weight decay.

    Args:
        config: how to train.
    """
    rate = learning_rate(config)
    clip = optax.identity() if config.clip_norm is None else _clipped(config.clip_norm)
    decay = optax.add_decayed_weights(config.weight_decay, mask=decays) if config.weight_decay else optax.identity()
    return optax.chain(clip, _scaled(config), decay, optax.scale_by_learning_rate(rate))


def length(tree: Any) -> jax.Array:
    """The length of all gradients as one vector.

    Args:
        tree: gradients.
    """
    return jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree)))


def _clipped(longest: float) -> optax.GradientTransformation:
    """Gradients no longer than that, by one factor, as PyTorch's `clip_grad_norm_` has it.

    optax's own divides each number, which XLA computes in a pass of its own; a factor it multiplies where it is needed.
    """

    def update(updates: Any, state: optax.OptState, params: Any = None) -> tuple[Any, optax.OptState]:
        del params
        factor = longest / jnp.maximum(length(updates), longest)
        return jax.tree.map(lambda leaf: leaf * factor, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _scaled(config: TrainingConfig) -> optax.GradientTransformation:
    """Gradients to directions, before decay and rate."""
    match config.optimizer:
        case "adamw":
            return optax.scale_by_adam(config.b1, config.b2, config.epsilon)
        case "adamax":
            return optax.scale_by_adamax(config.b1, config.b2, config.epsilon)
        case "adafactor":
            # Shazeer and Stern 2018 with a given rate: factored second moments, updates clipped to a mean square of 1.
            return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
        case "sgd":
            return optax.identity()


def decays(tree: Any) -> Any:
    """True for the leaves that weight decay draws to zero: kernels, embeddings and adapters, not biases and norms.

    Args:
        tree: trained parameters.
    """

    def is_matrix(path: Any, leaf: Any) -> bool:
        # final_logits_bias [1, V] is a buffer of the published models, and no weight.
        return leaf.ndim > 1 and not jax.tree_util.keystr(path, simple=True, separator="/").endswith("bias")

    return jax.tree_util.tree_map_with_path(is_matrix, tree)
