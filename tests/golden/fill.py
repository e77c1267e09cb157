"""Weights by formula: every tensor a sine of its index and of its name, so that golden numbers need no weight file."""

import json
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blenderbot_jax.checkpoint.names import flatten, source_name, target_of, unflatten
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.model import BlenderbotForConditionalGeneration, Params

GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("appendix_a.json").read_text(encoding="utf-8"))
"""Settings, inputs, forward results and generated sequences, as printed by transformers."""


def golden_model(name: str) -> BlenderbotForConditionalGeneration:
    """The model of one column of the golden numbers: "blenderbot", "small_unscaled" or "small_scaled"."""
    return BlenderbotForConditionalGeneration(BlenderbotConfig.from_dict(GOLDEN["config"] | GOLDEN["columns"][name]))


def golden_params(model: BlenderbotForConditionalGeneration, eos_bias: float | None = 3.0) -> Params:
    """The parameters of the golden numbers.

    Args:
        model: any model of either architecture.
        eos_bias: the final logits bias of token 2; None leaves the formula's.
    """
    shapes = flatten(jax.eval_shape(model.init_params, jax.random.key(0)))
    flat = {path: _leaf(path, leaf.shape) for path, leaf in shapes.items()}
    if eos_bias is not None:
        flat["final_logits_bias"] = flat["final_logits_bias"].at[0, 2].set(eos_bias)
    return unflatten(flat)


def _leaf(path: str, shape: tuple[int, ...]) -> jax.Array:
    name = source_name(path)
    target = target_of(name)
    assert target is not None
    tensor = tensor_by_formula(name, shape[::-1] if target.transposed else shape)
    return jnp.asarray(tensor.T if target.transposed else tensor)


def tensor_by_formula(name: str, shape: tuple[int, ...]) -> np.ndarray:
    i = np.arange(np.prod(shape), dtype=np.float64)
    wave = np.sin(0.37 * i * (1 + 0.013 * (i % 7)) + 0.11 * (zlib.crc32(name.encode()) % 997)).reshape(shape)
    if name.endswith(("norm.weight", "layernorm_embedding.weight")):
        wave = 1 + 0.1 * wave
    elif name == "final_logits_bias":
        wave = 0.5 * wave
    else:
        wave = (0.3 if len(shape) == 2 else 0.1) * wave
    return wave.astype(np.float32)
