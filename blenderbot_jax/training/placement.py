"""Where a training's arrays lie: on one device, or over a mesh, parameters and what belongs to them alike."""

from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from blenderbot_jax.parallel import shardings
from blenderbot_jax.training.config import TrainingConfig
from blenderbot_jax.training.step import TrainState, init_state


def place_state(params: Any, config: TrainingConfig, mesh: Mesh | None = None) -> tuple[TrainState, Any]:
    """The state before the first update, where it is to lie.

    Args:
        params: of the model, placed already.
        config: how to train.
        mesh: from `make_mesh`; moments and means then lie as the parameters they belong to, adapters on every device.
            None leaves everything on one device.

    Returns:
        The state, and its shardings for `compile_step`: None without a mesh.
    """
    begin = partial(init_state, config=config)
    if mesh is None:
        return jax.jit(begin)(params), None
    placed = shardings(mesh, jax.eval_shape(begin, params))
    return jax.jit(begin, out_shardings=placed)(params), placed
