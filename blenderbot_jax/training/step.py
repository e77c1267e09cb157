"""One update of the weights: a pure function of the state and a batch, compiled once for each shape of batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from blenderbot_jax.dense import densely
from blenderbot_jax.lora import attach, init_lora
from blenderbot_jax.model import IGNORED_LABEL, BlenderbotForConditionalGeneration, Params
from blenderbot_jax.parallel import unsplit
from blenderbot_jax.training.config import TrainingConfig
from blenderbot_jax.training.objective import Sums, summed
from blenderbot_jax.training.optimizer import learning_rate, length, make_optimizer

Batch = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that changes from step to step; with it, the configuration and the data, training goes on bit for bit."""

    step: jax.Array
    """int32, updates made."""
    trained: Any
    """Parameters in float32; or, with LoRA, adapters."""
    moments: Any
    """The optimiser's."""
    average: Any
    """The running mean of `trained`, or None."""
    rate_scale: jax.Array
    """float32, what the schedule's rate is multiplied by; below 1 after a plateau."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepMetrics:
    """Of one update, scalars in float32."""

    loss: jax.Array
    """Mean of -log p(label) in nats."""
    objective: jax.Array
    """The mean of what was minimised: with label smoothing and unlikelihood."""
    tokens: jax.Array
    """Labels that counted."""
    gradient_norm: jax.Array
    """Before clipping."""
    learning_rate: jax.Array


def init_state(params: Params, config: TrainingConfig) -> TrainState:
    """The state before the first update.

    Args:
        params: of the model; they are copied to float32, or left alone with LoRA.
        config: how to train.
    """
    trained: Any
    if config.lora is None:
        trained = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), params)
    else:
        trained = init_lora(params, config.lora, jax.random.key(config.seed))
    average = None if config.average is None else jax.tree.map(jnp.copy, trained)
    moments = make_optimizer(config).init(trained)
    return TrainState(jnp.zeros((), jnp.int32), trained, moments, average, jnp.ones((), jnp.float32))


def assemble(trained: Any, frozen: Params, config: TrainingConfig) -> Params:
    """Parameters for the model's forward pass, from what is trained and what is not.

    Args:
        trained: from a state.
        frozen: with LoRA, the parameters that adapters are beside; otherwise unused.
        config: how to train.
    """
    return trained if config.lora is None else attach(frozen, trained, config.lora)


def best_weights(state: TrainState) -> Any:
    """What is validated and saved: the running mean where there is one."""
    return state.trained if state.average is None else state.average


def train_step(
    model: BlenderbotForConditionalGeneration,
    config: TrainingConfig,
    state: TrainState,
    frozen: Params,
    batch: Batch,
    mesh: Mesh | None = None,
) -> tuple[TrainState, StepMetrics]:
    """Update the weights by one batch.

    The gradient is that of the mean over all labels of the batch, in however many parts it is computed.

    Args:
        model: an encoder-decoder with head; dropout and layerdrop are those of its config.
        config: how to train.
        state: before the update.
        frozen: with LoRA, the parameters that adapters are beside; otherwise empty.
        batch: `input_ids` and `attention_mask` [B, S], `labels` [B, T] with -100 where nothing is learned.
        mesh: that all of it lies on; None for one device.

    Returns:
        The state after it, and what is worth a log.

    Example:
        >>> config = TrainingConfig(steps=10, batch_size=1)
        >>> ids = jnp.array([[300, 2]])
        >>> batch = {"input_ids": ids, "attention_mask": jnp.ones_like(ids), "labels": ids}
        >>> step = jax.jit(train_step, static_argnums=(0, 1))
        >>> state, metrics = step(model, config, init_state(params, config), {}, batch)
        >>> int(state.step), float(metrics.tokens)
        (1, 2.0)
    """
    model = model.clone(dtype=jnp.dtype(config.dtype), remat=config.remat)
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    count = jnp.maximum((batch["labels"] != IGNORED_LABEL).sum(), 1).astype(jnp.float32)
    gradients, sums = _gradients(model, config, state.trained, frozen, batch, count, key, mesh)
    updates, moments = make_optimizer(config).update(gradients, state.moments, state.trained)
    trained = jax.tree.map(lambda leaf, update: leaf + state.rate_scale * update, state.trained, updates)
    metrics = StepMetrics(
        loss=sums.loss / count,
        objective=sums.objective / count,
        tokens=sums.tokens,
        gradient_norm=length(gradients),
        learning_rate=jnp.asarray(learning_rate(config)(state.step), jnp.float32) * state.rate_scale,
    )
    average = _averaged(state.average, trained, config)
    return TrainState(state.step + 1, trained, moments, average, state.rate_scale), metrics


def compile_step(
    model: BlenderbotForConditionalGeneration, config: TrainingConfig, shardings: Any = None
) -> Callable[[TrainState, Params, Batch], tuple[TrainState, StepMetrics]]:
    """`train_step` jitted for a model and a configuration; the state it is given is used up.

    Args:
        model: an encoder-decoder with head.
        config: how to train.
        shardings: of the state, a tree of `NamedSharding`s; None leaves it where it is.

    Returns:
        step(state, frozen, batch) -> (state, metrics).
    """
    mesh = None if shardings is None else jax.tree.leaves(shardings)[0].mesh

    def step(state: TrainState, frozen: Params, batch: Batch) -> tuple[TrainState, StepMetrics]:
        return train_step(model, config, state, frozen, batch, mesh)

    if shardings is None:
        return jax.jit(step, donate_argnums=0)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def _gradients(
    model: BlenderbotForConditionalGeneration,
    config: TrainingConfig,
    trained: Any,
    frozen: Params,
    batch: Batch,
    count: jax.Array,
    key: jax.Array,
    mesh: Mesh | None,
) -> tuple[Any, Sums]:
    """The gradients of the mean objective, and summed losses, part by part of the batch.

    The objective is divided by the labels of the whole batch, which spares a pass over all gradients.
    """

    def objective(trained: Any, part: Batch, key: jax.Array) -> tuple[jax.Array, Sums]:
        params = assemble(trained, frozen, config)
        params = densely(params, model.dtype) if mesh is None else unsplit(mesh, params)
        sums = summed(model, params, part, config, key)
        return sums.objective / count, sums

    gradient = jax.grad(objective, has_aux=True)
    if config.accumulate == 1:
        return gradient(trained, batch, key)

    def add(total: Any, given: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(trained, *given)), None

    keys = jax.random.split(key, config.accumulate)
    parts = jax.tree.map(lambda leaf: _parts(leaf, config.accumulate), batch)
    zeros = jax.eval_shape(gradient, trained, jax.tree.map(lambda leaf: leaf[0], parts), keys[0])
    total, _ = jax.lax.scan(add, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), zeros), (parts, keys))
    return total


def _parts(leaf: jax.Array, count: int) -> jax.Array:
    """[B, ...] to [count, B / count, ...], every count-th row together, so that rows stay on their devices."""
    return jnp.asarray(leaf).reshape(-1, count, *leaf.shape[1:]).swapaxes(0, 1)


def _averaged(average: Any, trained: Any, config: TrainingConfig) -> Any:
    decay = config.average
    return None if decay is None else jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, trained)


def halve_rate(state: TrainState) -> TrainState:
    """The state after a plateau of validation: the same, at half the rate."""
    return TrainState(state.step, state.trained, state.moments, state.average, state.rate_scale * 0.5)
