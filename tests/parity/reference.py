"""The same model twice: a transformers model with random weights, and ours with the same weights."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from blenderbot_jax.checkpoint.names import flatten, target_of, unflatten
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.model import BlenderbotForConditionalGeneration, Params
from blenderbot_jax.outputs import Seq2SeqLMOutput

TOLERANCE = 1e-4


def reference_model(config: BlenderbotConfig, *, seed: int = 0, scale: float = 0.3, **settings: Any) -> torch.nn.Module:
    """A transformers model in eval mode, every tensor random, biases, norms and final_logits_bias among them.

    Args:
        config: ours; transformers is given its `config.json`.
        seed: of the weights.
        scale: standard deviation of the weights.
        settings: further fields of the transformers config.
    """
    family = "Blenderbot" if config.normalize_before else "BlenderbotSmall"
    values = {**config.to_dict(), "attn_implementation": "eager", **settings}
    model = getattr(transformers, f"{family}ForConditionalGeneration")(
        getattr(transformers, f"{family}Config").from_dict(values)
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
            tensor.normal_(0.0, scale, generator=generator)
            if name.endswith("norm.weight") or name.endswith("layernorm_embedding.weight"):
                tensor.add_(1.0)
    return model.eval()


def params_from(model: torch.nn.Module) -> Params:
    """Our parameters with the values of a transformers model."""
    return _tree({name: tensor.detach() for name, tensor in model.state_dict().items()})


def gradients_from(model: torch.nn.Module) -> Params:
    """The gradients of a transformers model in the shape of our parameters; zero for the buffer final_logits_bias."""
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    return _tree(grads | {"final_logits_bias": torch.zeros_like(model.final_logits_bias)})


def _tree(tensors: dict[str, torch.Tensor]) -> Params:
    flat = {}
    for name, tensor in tensors.items():
        target = target_of(name)
        assert target is not None, f"no row of the table of names knows {name}"
        if not target.alias:
            flat[target.path] = jnp.asarray((tensor.T if target.transposed else tensor).numpy().copy())
    return unflatten(flat)


def pair(
    config: BlenderbotConfig, **settings: Any
) -> tuple[torch.nn.Module, BlenderbotForConditionalGeneration, Params]:
    """A transformers model, our model, and our parameters with the same weights; see `reference_model`."""
    reference = reference_model(config, **settings)
    params, model = params_from(reference), BlenderbotForConditionalGeneration(config)
    expected = jax.eval_shape(model.init_params, jax.random.key(0))
    assert {k: v.shape for k, v in flatten(params).items()} == {k: v.shape for k, v in flatten(expected).items()}
    return reference, model, params


@partial(jax.jit, static_argnums=0)
def forward(model: BlenderbotForConditionalGeneration, params: Params, inputs: dict[str, Any]) -> Seq2SeqLMOutput:
    """Our model on keyword inputs, compiled once per shape, with all hidden states."""
    return model.apply({"params": params}, **inputs, output_hidden_states=True)


def right_padded(rng: np.random.Generator, lengths: list[int], vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Random ids in rows of the given lengths that end in </s>, padded on the right; and their mask."""
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    ids = np.where(mask, rng.integers(3, vocab_size, mask.shape), 0)
    ids[np.arange(len(lengths)), np.array(lengths) - 1] = 2
    return ids.astype(np.int32), mask.astype(np.int32)


def as_torch(**arrays: np.ndarray | None) -> dict[str, torch.Tensor]:
    """Keyword arguments for a transformers model."""
    return {name: torch.from_numpy(np.asarray(array, np.int64)) for name, array in arrays.items() if array is not None}


def largest_difference(ours: Any, theirs: Any, where: np.ndarray | None = None) -> float:
    """max |ours - theirs|, over the positions [B, T] of `where` if given."""
    difference = np.abs(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64))
    return float(difference.max() if where is None else difference[where.astype(bool)].max())
