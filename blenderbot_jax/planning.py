"""What a run will take: memory of each device and time of each step, from the architecture and the mesh alone.

Weights, gradients and what an optimiser keeps are counted leaf by leaf, as `parallel` splits them. Activations, caches
and times are formulas, held to compiled programs by `tests/test_planning.py`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, PartitionSpec

from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.lora import LoraConfig, init_lora
from blenderbot_jax.memory import decoding_memory
from blenderbot_jax.model import BlenderbotForConditionalGeneration
from blenderbot_jax.parallel import AXES, partition_specs

Optimizer = Literal["adamw", "adafactor", "lora"]
SIZES: Mapping[str, Callable[[], BlenderbotConfig]] = {
    "90m": BlenderbotConfig.blenderbot_small_90m,
    "400m": BlenderbotConfig.blenderbot_400m_distill,
    "1b": BlenderbotConfig.blenderbot_1b_distill,
    "3b": BlenderbotConfig.blenderbot_3b,
    "9b": BlenderbotConfig.blenderbot_9b,
}
"""The published sizes by the names that plans and presets use."""
_FLOAT32 = 4


@dataclass(frozen=True)
class Layout:
    """How many devices there are along each axis of the mesh."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for name in AXES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} counts devices, so it is at least 1, not {getattr(self, name)}")

    @classmethod
    def of(cls, devices: int, *, fsdp: int | None = None, tensor: int = 1) -> "Layout":
        """A layout of so many devices; what neither `fsdp` nor `tensor` takes, `fsdp` does if it is None, else `data`.

        Raises:
            ValueError: sizes that do not divide the devices.

        Example:
            >>> Layout.of(8, tensor=2)
            Layout(data=1, fsdp=4, tensor=2)
        """
        parts = tensor * (fsdp or 1)
        if min(devices, tensor, fsdp or 1) < 1 or devices % parts:
            raise ValueError(f"{devices} devices do not come out even over fsdp={fsdp or 1} x tensor={tensor}")
        return cls(1, devices // tensor, tensor) if fsdp is None else cls(devices // parts, fsdp, tensor)

    @property
    def devices(self) -> int:
        """All of them."""
        return self.data * self.fsdp * self.tensor

    @property
    def mesh(self) -> AbstractMesh:
        """The mesh, without devices."""
        return AbstractMesh((self.data, self.fsdp, self.tensor), AXES)

    def rows(self, batch: int) -> int:
        """Rows of a batch that one device works on.

        Raises:
            ValueError: a batch that does not come out even.
        """
        parts = self.data * self.fsdp
        if batch % parts:
            raise ValueError(
                f"a batch of {batch} rows does not come out even over data={self.data} x fsdp={self.fsdp}: choose a "
                f"multiple of {parts}"
            )
        return batch // parts


@dataclass(frozen=True)
class Machine:
    """What one device can do; the defaults are those of NVIDIA's data sheet of the H100 SXM, for bfloat16."""

    flops: float = 989e12
    """Floating-point operations a second."""
    bandwidth: float = 3.35e12
    """Bytes a second between a device and its memory."""
    link: float = 450e9
    """Bytes a second from a device to the others."""
    efficiency: float = 0.4
    """Share of `flops` and of the bandwidths that programs reach."""


@dataclass(frozen=True)
class Plan:
    """What one device holds at the peak, and what one step takes."""

    layout: Layout
    parts: Mapping[str, int]
    """Bytes by what they are for."""
    flops: float
    """Of a device in a step."""
    traffic: float
    """Bytes that a device reads from its memory in a step, at the least."""
    exchanged: float
    """Bytes that a device sends to others in a step."""
    tokens: int
    """That a step of all devices deals with: read and written in training, written in decoding."""

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())

    def seconds(self, machine: Machine) -> float:
        """How long a step takes: its products or its reading, whichever is longer, and the exchange."""
        work = max(self.flops / machine.flops, self.traffic / machine.bandwidth)
        return (work + self.exchanged / machine.link) / machine.efficiency


def plan_training(
    config: BlenderbotConfig,
    layout: Layout = Layout(),
    *,
    batch_size: int = 32,
    source: int = 128,
    target: int = 128,
    dtype: Any = jnp.bfloat16,
    optimizer: Optimizer = "adamw",
    remat: bool = False,
) -> Plan:
    """Plan one update of the weights.

    Weights, gradients and moments are in float32, and computation in `dtype`. With "lora" the weights are frozen and
    kept in `dtype`, and adapters of the default `LoraConfig` are trained by Adam.

    Args:
        config: the architecture.
        layout: devices along each axis.
        batch_size: B, rows of an update over all devices.
        source: S, tokens of a prompt.
        target: T, tokens of a reply.
        dtype: of the computation.
        optimizer: what is kept for each weight: two moments ("adamw"), rows and columns of one ("adafactor"), or two
            for each number of the adapters ("lora").
        remat: compute each layer again in the backward pass, so that little more than its input is kept.

    Raises:
        ValueError: a batch or a parameter that does not come out even, lengths past the model's positions, a dtype or
            an optimiser that there is not.

    Example:
        >>> plan = plan_training(BlenderbotConfig.blenderbot_3b(), Layout(fsdp=8), optimizer="adafactor")
        >>> plan.parts["weights"], plan.parts["optimiser"] < plan.parts["weights"] / 100
        (1354814752, True)
    """
    _check_lengths(config, source, target)
    itemsize = _itemsize(dtype)
    weights = _shapes(config)
    trained = _adapters(weights) if optimizer == "lora" else weights
    held = _per_device(weights, layout)
    rows = layout.rows(batch_size)
    frozen = optimizer == "lora"
    gradients = _per_device(trained, layout) * _FLOAT32
    logits = _LOGITS * rows * target * _share(config.vocab_size, layout.tensor) * _FLOAT32
    activations = logits + _activations(config, rows, source, target, itemsize, layout.tensor, remat)
    parts = {
        "weights": held * (itemsize if frozen else _FLOAT32),
        # What products read, where that is not what is kept.
        "weights in computation": 0 if frozen or itemsize == _FLOAT32 else held * itemsize,
        # Without remat they are kept from the forward pass to the backward pass.
        "gathered weights": _gathered(config, itemsize, layout, whole=0 if remat else held),
        "optimiser": _per_device(_moments(trained, optimizer), layout) * _FLOAT32,
        "gradients": gradients,
        # The backward pass lets them go as gradients come.
        "activations, beyond gradients": max(activations - gradients, 0),
    }
    flops = training_flops(config, batch_size, source, target, remat=remat, frozen=frozen) / layout.devices
    return Plan(
        layout,
        parts,
        flops=flops,
        traffic=3 * parts["weights"],
        exchanged=_exchanged(config, layout, rows, source, target, itemsize, _per_device(trained, layout)),
        tokens=batch_size * (source + target),
    )


def plan_generation(
    config: BlenderbotConfig,
    layout: Layout = Layout(),
    *,
    batch_size: int = 1,
    beams: int = 10,
    source: int = 128,
    target: int = 64,
    dtype: Any = jnp.bfloat16,
) -> Plan:
    """Plan one step of decoding: a token for each beam.

    Args:
        config: the architecture.
        layout: devices along each axis.
        batch_size: B, prompts decoded together; over `data` and `fsdp` they are split if they come out even.
        beams: K.
        source: S, tokens of a prompt.
        target: C, the most tokens of a reply.
        dtype: of the weights and of the computation.

    Raises:
        ValueError: as `plan_training`.

    Example:
        >>> plan = plan_generation(BlenderbotConfig.blenderbot_9b(), Layout(tensor=8))
        >>> f"{plan.parts['weights'] / 1e9:.2f} GB"
        '2.36 GB'
    """
    _check_lengths(config, source, target)
    itemsize = _itemsize(dtype)
    parts_of_batch = layout.data * layout.fsdp
    rows = batch_size if batch_size % parts_of_batch else batch_size // parts_of_batch
    weights = _per_device(_shapes(config), layout) * itemsize
    # Heads, feed-forward part and vocabulary are split over `tensor`: what is counted by them is a share of the whole.
    whole = decoding_memory(config, 0, batch=rows, beams=beams, capacity=target, source=source, itemsize=itemsize)
    heads = _share(config.decoder_attention_heads, layout.tensor) / config.decoder_attention_heads
    parts = {
        "weights": weights,
        "gathered weights": _gathered(config, itemsize, layout),
        "cache": math.ceil(whole.cache * heads),
        "logits": math.ceil(whole.logits * _share(config.vocab_size, layout.tensor) / config.vocab_size),
        "activations": math.ceil(whole.encoder / layout.tensor),
    }
    D, T = config.d_model, layout.tensor
    sums = 3 * config.decoder_layers * 2 * (T - 1) / T * rows * beams * D * itemsize
    gathers = (layout.fsdp - 1) * weights
    return Plan(
        layout,
        parts,
        flops=2 * rows * beams * _decoder_numbers(config) / T,
        traffic=weights * layout.fsdp + parts["cache"],
        exchanged=sums + gathers,
        tokens=batch_size,
    )


def training_flops(
    config: BlenderbotConfig, batch: int, source: int, target: int, *, remat: bool = False, frozen: bool = False
) -> float:
    """The operations of an update, on all devices: two for each number of a product, thrice that with its gradients.

    Args:
        config: the architecture.
        batch: B.
        source: S.
        target: T.
        remat: the forward pass is made twice.
        frozen: no gradients to the weights are made.

    Example:
        >>> f"{training_flops(BlenderbotConfig.blenderbot_400m_distill(), 1, 128, 128):.2e}"
        '2.86e+11'
    """
    D, S, T = config.d_model, source, target
    L_enc, L_dec = config.encoder_layers, config.decoder_layers
    encoder = S * (4 * D * D + 2 * D * config.encoder_ffn_dim) + 2 * S * S * D
    decoder = T * (6 * D * D + 2 * D * config.decoder_ffn_dim) + S * 2 * D * D + 2 * T * (T + S) * D
    forward = 2 * batch * (L_enc * encoder + L_dec * decoder + T * D * config.vocab_size)
    return forward * (3 - frozen + remat)


def _check_lengths(config: BlenderbotConfig, source: int, target: int) -> None:
    for name, length in (("source", source), ("target", target)):
        if not 1 <= length <= config.max_position_embeddings:
            raise ValueError(
                f"this model knows positions for {config.max_position_embeddings} tokens, so {name} is between 1 and "
                f"that, not {length}"
            )


def _itemsize(dtype: Any) -> int:
    if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise ValueError(f"dtype is float32, bfloat16 or float16, not {dtype}")
    return jnp.dtype(dtype).itemsize


@cache
def _shapes(config: BlenderbotConfig) -> Any:
    return jax.eval_shape(BlenderbotForConditionalGeneration(config).init_params, jax.random.key(0))


def _adapters(weights: Any) -> Any:
    return jax.eval_shape(lambda params: init_lora(params, LoraConfig(), jax.random.key(0)), weights)


def _moments(trained: Any, optimizer: Optimizer) -> Any:
    return jax.eval_shape(make_scaling(optimizer).init, trained)


def make_scaling(optimizer: Optimizer) -> optax.GradientTransformation:
    """The part of an optimiser that keeps something for each weight.

    Raises:
        ValueError: an optimiser that there is not.
    """
    match optimizer:
        case "adamw" | "lora":
            return optax.scale_by_adam()
        case "adafactor":
            return optax.scale_by_factored_rms()
        case _:
            raise ValueError(f"optimizer is adamw, adafactor or lora, not {optimizer!r}")


def _per_device(tree: Any, layout: Layout) -> int:
    """Numbers of a tree that each device holds."""
    sizes = layout.mesh.shape
    specs = jax.tree.leaves(partition_specs(tree, layout.mesh), is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))
    total = 0
    for leaf, spec in zip(jax.tree.leaves(tree), specs, strict=True):
        names = [name for entry in spec for name in ((entry,) if isinstance(entry, str) else entry or ())]
        total += math.prod(leaf.shape) // math.prod(sizes[name] for name in names)
    return total


def _share(size: int, parts: int) -> int:
    """What a device has of an axis that is split if it comes out even, and whole otherwise."""
    return size if size % parts else size // parts


def _layer_numbers(config: BlenderbotConfig) -> int:
    """Numbers in the kernels of a decoder layer."""
    return 8 * config.d_model**2 + 2 * config.d_model * config.decoder_ffn_dim


def _decoder_numbers(config: BlenderbotConfig) -> int:
    """Numbers that a step of decoding multiplies: all of the decoder's but the keys and values of the prompt."""
    D = config.d_model
    layer = 6 * D * D + 2 * D * config.decoder_ffn_dim
    return config.decoder_layers * layer + D * config.vocab_size


def _gathered(config: BlenderbotConfig, itemsize: int, layout: Layout, whole: int = 0) -> int:
    """All parameters whole along `fsdp`; or, while they are multiplied with, a layer and the embeddings."""
    if layout.fsdp == 1:
        return 0
    if whole:
        return whole * layout.fsdp * itemsize
    return (_layer_numbers(config) + config.vocab_size * config.d_model) * itemsize // layout.tensor


# Numbers kept for the backward pass, fitted to compiled programs: for each sublayer states that are whole on every
# device, for each attention its projections and weights, and what stands around the activation.
_STATES, _PROJECTIONS, _WEIGHTS, _HIDDEN = 5.5, 4, 2, 4
# Logits, their softmax and their gradient.
_LOGITS = 3


def _activations(config: BlenderbotConfig, rows: int, S: int, T: int, itemsize: int, tensor: int, remat: bool) -> int:
    """What the backward pass needs of the forward pass, but for the logits, in bytes of one device."""
    D = config.d_model
    encoder = _kept(config.encoder_attention_heads, config.encoder_ffn_dim, D, S, (S,), itemsize, tensor)
    decoder = _kept(config.decoder_attention_heads, config.decoder_ffn_dim, D, T, (T, S), itemsize, tensor)
    if not remat:
        return math.ceil(rows * (config.encoder_layers * encoder + config.decoder_layers * decoder))
    inputs = D * itemsize * (config.encoder_layers * S + config.decoder_layers * T)
    return math.ceil(rows * (inputs + max(encoder, decoder)))


def _kept(heads: int, width: int, D: int, T: int, keys: tuple[int, ...], itemsize: int, tensor: int) -> float:
    """Bytes of one row in one layer, over T queries and as many keys as each of its attentions has."""
    states = _STATES * (len(keys) + 1) * T * D
    share = _share(heads, tensor) / heads
    # Half of the projections are of queries, half of keys.
    projections = _PROJECTIONS / 2 * (len(keys) * T + sum(keys)) * D * share
    hidden = _HIDDEN * T * _share(width, tensor)
    return (states + projections + hidden) * itemsize + _WEIGHTS * heads * share * T * sum(keys) * _FLOAT32


def _exchanged(
    config: BlenderbotConfig, layout: Layout, rows: int, S: int, T: int, itemsize: int, trained: int
) -> float:
    """Bytes that a device sends in an update: gradients along `data`, weights along `fsdp`, states along `tensor`."""
    data, fsdp, tensor = ((n - 1) / n for n in (layout.data, layout.fsdp, layout.tensor))
    weights = _per_device(_shapes(config), layout) * layout.fsdp
    sums = config.encoder_layers * 2 * S + config.decoder_layers * 3 * T
    return (
        2 * data * trained * _FLOAT32
        + fsdp * (2 * weights * itemsize + trained * layout.fsdp * _FLOAT32)
        # A sum of each sublayer, forward and backward; sending and gathering count as one each.
        + 2 * 2 * tensor * rows * config.d_model * itemsize * sums
    )
