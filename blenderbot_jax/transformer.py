"""Encoder and decoder: positions, a stack of layers, and the norms that frame it."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from blenderbot_jax.cache import DecoderCache, self_attention_mask
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.layers import DecoderLayer, DType, Embedding, EncoderLayer, LayerNorm, dropout
from blenderbot_jax.masks import causal_mask, padding_mask, positions_from_mask


class Stack(nn.Module):
    """The layers of one side, at the paths `layers/0`, `layers/1`, ..."""

    config: BlenderbotConfig
    layer: type[EncoderLayer] | type[DecoderLayer]
    depth: int
    dtype: DType

    def setup(self) -> None:
        self.blocks = [self.layer(self.config, self.dtype, name=str(i)) for i in range(self.depth)]

    def __call__(self, h: jax.Array, *context: jax.Array) -> tuple[jax.Array, ...]:
        """The states before the first layer and after each one, L + 1 arrays [B, T, D]."""
        states = [h]
        for block in self.blocks:
            states.append(block(states[-1], *context))
        return tuple(states)

    def cross_keys_values(self, encoded: jax.Array) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        """Keys and values of the encoder's output, L arrays [B, N, S, H] each."""
        keys, values = zip(*(block.cross_keys_values(encoded) for block in self.blocks), strict=True)
        return keys, values

    def step(self, h: jax.Array, cache: DecoderCache) -> tuple[jax.Array, DecoderCache]:
        """h [B, K, T, D] through all layers, writing T tokens to the cache."""
        T = h.shape[2]
        masks = self_attention_mask(cache, T), padding_mask(cache.source_mask)
        keys, values = [], []
        for i, block in enumerate(self.blocks):
            slots = cache.self_keys[i], cache.self_values[i]
            cross = cache.cross_keys[i], cache.cross_values[i]
            h, (layer_keys, layer_values) = block.step(h, slots, cross, cache.length, *masks)
            keys.append(layer_keys)
            values.append(layer_values)
        return h, dataclasses.replace(cache, self_keys=tuple(keys), self_values=tuple(values), length=cache.length + T)


class Encoder(nn.Module):
    """Positions, encoder layers, and the final norm of the pre-norm architecture."""

    config: BlenderbotConfig
    dtype: DType

    def setup(self) -> None:
        c = self.config
        self.embed_positions = Embedding(c.max_position_embeddings, c.d_model, c.init_std, self.dtype)
        self.layers = Stack(c, EncoderLayer, c.encoder_layers, self.dtype)
        if c.normalize_before:
            self.layer_norm = LayerNorm(self.dtype)
        else:
            self.layernorm_embedding = LayerNorm(self.dtype)

    def __call__(self, embeds: jax.Array, attention_mask: jax.Array) -> tuple[jax.Array, ...]:
        """Scaled embeddings [B, S, D] and mask [B, S] to the hidden states, the last one final."""
        h = embeds + self.embed_positions(positions_from_mask(attention_mask))
        if not self.config.normalize_before:
            h = self.layernorm_embedding(h)
        states = self.layers(dropout(self, h, self.config.dropout), padding_mask(attention_mask))
        return (*states[:-1], self.layer_norm(states[-1])) if self.config.normalize_before else states


class Decoder(nn.Module):
    """Positions, decoder layers, and the final norm of the pre-norm architecture."""

    config: BlenderbotConfig
    dtype: DType

    def setup(self) -> None:
        c = self.config
        self.embed_positions = Embedding(c.max_position_embeddings, c.d_model, c.init_std, self.dtype)
        self.layers = Stack(c, DecoderLayer, c.decoder_layers, self.dtype)
        if c.normalize_before:
            self.layer_norm = LayerNorm(self.dtype)
        else:
            self.layernorm_embedding = LayerNorm(self.dtype)

    def __call__(
        self, embeds: jax.Array, decoder_mask: jax.Array | None, encoded: jax.Array, attention_mask: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Scaled embeddings [B, T, D] to the hidden states, the last one final."""
        T = embeds.shape[1]
        mask, positions = causal_mask(T), jnp.arange(T)[None]
        if decoder_mask is not None:
            mask, positions = mask & padding_mask(decoder_mask), positions_from_mask(decoder_mask)
        h = dropout(self, self._with_positions(embeds, positions), self.config.dropout)
        states = self.layers(h, encoded, mask, padding_mask(attention_mask))
        return (*states[:-1], self._finish(states[-1]))

    def step(self, embeds: jax.Array, cache: DecoderCache) -> tuple[jax.Array, DecoderCache]:
        """Scaled embeddings [B, K, T, D] of new tokens to their final hidden states."""
        h = self._with_positions(embeds, cache.length + jnp.arange(embeds.shape[2]))
        h, cache = self.layers.step(h, cache)
        return self._finish(h), cache

    def cross_keys_values(self, encoded: jax.Array) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        """Keys and values of the encoder's output for every layer."""
        return self.layers.cross_keys_values(encoded)

    def _with_positions(self, embeds: jax.Array, positions: jax.Array) -> jax.Array:
        # The post-norm decoder normalises before it adds positions, its encoder after: the weights were trained so.
        if not self.config.normalize_before:
            embeds = self.layernorm_embedding(embeds)
        return embeds + self.embed_positions(positions)

    def _finish(self, h: jax.Array) -> jax.Array:
        return self.layer_norm(h) if self.config.normalize_before else h
