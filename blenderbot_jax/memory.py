"""The memory that decoding takes, from the architecture alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blenderbot_jax.checkpoint.names import SHARED, flatten, lacks_head
from blenderbot_jax.config import BlenderbotConfig

_FLOAT32 = 4


@dataclass(frozen=True)
class DecodingMemory:
    """Bytes that are held at the peak of decoding a batch."""

    weights: int
    cache: int
    """Keys and values of the decoder, what it wrote and what it reads of the prompts."""
    logits: int
    """Of one step, float32."""
    encoder: int
    """What one of its layers works with: attention weights in float32, and the feed-forward part."""

    @property
    def total(self) -> int:
        """Their sum."""
        return self.weights + self.cache + self.logits + self.encoder


def decoding_memory(
    config: BlenderbotConfig,
    weights: int,
    *,
    batch: int,
    beams: int,
    capacity: int,
    source: int | None = None,
    itemsize: int = _FLOAT32,
    cache_itemsize: int | None = None,
    int8: bool = False,
) -> DecodingMemory:
    """Estimate the peak of `generate`: weights + cache + logits + what the encoder works with, in bytes.

    The cache is 2 L B K C D numbers, and 2 L B S D for the prompts; logits are B K V, the encoder's attention B N S S
    and its feed-forward part B S F. Where products are in 8 bits, sums in int32 stand beside logits and feed-forward
    part. What a CPU's programs take is at most 1.1 times that; their own code, a few megabytes, is not counted.

    Args:
        config: the architecture.
        weights: bytes, as from `weight_bytes`.
        batch: B.
        beams: K, or samples per prompt.
        capacity: C, the most tokens of a reply, rounded up as `generate` does.
        source: S, tokens of the longest prompt, rounded up likewise; the model's positions if None.
        itemsize: bytes of a number in the dtype of the computation.
        cache_itemsize: bytes of a number in the cache; those of the computation if None.
        int8: whether the kernels are in 8 bits.

    Example:
        >>> decoding_memory(BlenderbotConfig.blenderbot_3b(), 0, batch=1, beams=10, capacity=64, itemsize=2).cache
        188743680
    """
    S = 0 if not config.is_encoder_decoder else config.max_position_embeddings if source is None else source
    copies = 2 if int8 else 1
    attention = batch * config.encoder_attention_heads * S * S * _FLOAT32
    return DecodingMemory(
        weights=weights,
        cache=cache_numbers(config, batch, beams, capacity, S) * (cache_itemsize or itemsize),
        logits=batch * beams * config.vocab_size * _FLOAT32 * copies,
        encoder=attention + batch * S * config.encoder_ffn_dim * itemsize * copies,
    )


def cache_numbers(config: BlenderbotConfig, batch: int, beams: int, capacity: int, source: int | None = None) -> int:
    """The numbers in the keys and values of a decoder's cache: [B, K, C, D] and [B, S, D], twice in each of L layers.

    Args:
        config: the architecture.
        batch: B.
        beams: K.
        capacity: C, the most tokens of a reply.
        source: S, tokens of the longest prompt; the model's positions if None, 0 without an encoder.
    """
    if source is None:
        source = config.max_position_embeddings if config.is_encoder_decoder else 0
    return 2 * config.decoder_layers * batch * config.d_model * (beams * capacity + source)


def weight_bytes(tree: Mapping[str, Any], itemsize: int = _FLOAT32, *, int8: bool = False) -> int:
    """The bytes of a model's parameters.

    Args:
        tree: the parameters, not quantised, or anything of their shapes.
        itemsize: bytes of a number.
        int8: count kernels, and the copy of a tied embedding, as `quantize` stores them.

    Example:
        >>> weight_bytes(params) == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        True
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(dict(tree)).items()}
    kernels = [shape for path, shape in shapes.items() if path.endswith("/kernel")] if int8 else []
    others = sum(math.prod(shape) for path, shape in shapes.items() if not (int8 and path.endswith("/kernel")))
    if int8 and lacks_head(shapes):
        kernels.append(shapes[SHARED][::-1])
    return others * itemsize + sum(math.prod(shape) + _FLOAT32 * shape[-1] for shape in kernels)
