"""Encoder and decoder: positions, a stack of layers, and the norms that frame it."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from blenderbot_jax.cache import DecoderCache, positions, sight_of_slots, sight_of_source
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.layers import DecoderLayer, DType, Embedding, EncoderLayer, LayerNorm, dropout
from blenderbot_jax.masks import causal_mask, padding_mask, positions_from_mask

States = tuple[jax.Array, ...]


class Stack(nn.Module):
    """The layers of one side, at the paths `layers/0`, `layers/1`, ..."""

    config: BlenderbotConfig
    layer: type[EncoderLayer] | type[DecoderLayer]
    depth: int
    dtype: DType
    remat: bool = False

    def setup(self) -> None:
        layer = nn.remat(self.layer) if self.remat else self.layer
        self.blocks = [layer(self.config, self.dtype, name=str(i)) for i in range(self.depth)]

    def __call__(self, h: jax.Array, *context: Any) -> tuple[States, tuple[States, ...]]:
        """All layers at once.

        Returns:
            The states before the first layer and after each one, L + 1 arrays [B, T, D], and for each kind of attention
            that a layer has, the weights [B, N, T, S] of the L layers.
        """
        states, weights = [h], []
        for block in self.blocks:
            h, *layer_weights = block(h, *context)
            states.append(h)
            weights.append(layer_weights)
        return tuple(states), tuple(zip(*weights, strict=True))

    def cross_keys_values(self, encoded: jax.Array) -> tuple[States, States]:
        """Keys and values of the encoder's output, L arrays [B, N, S, H] each."""
        pairs = [block.cross_keys_values(encoded) for block in self.blocks]
        return tuple(keys for keys, _ in pairs), tuple(values for _, values in pairs)

    def step(self, h: jax.Array, cache: DecoderCache) -> tuple[jax.Array, DecoderCache]:
        """h [B, K, T, D] through all layers, writing T tokens to the cache."""
        T = h.shape[2]
        # Made once a step: without the barrier XLA makes it anew in every layer, a kernel each on a GPU.
        sights = jax.lax.optimization_barrier(sight_of_slots(cache, T)), sight_of_source(cache)
        keys, values = [], []
        for i, block in enumerate(self.blocks):
            slots = cache.self_keys[i], cache.self_values[i]
            cross = (cache.cross_keys[i], cache.cross_values[i]) if cache.cross_keys else None
            h, (layer_keys, layer_values) = block.step(h, slots, cross, cache.length, *sights)
            keys.append(layer_keys)
            values.append(layer_values)
        return h, dataclasses.replace(cache, self_keys=tuple(keys), self_values=tuple(values), length=cache.length + T)


class Side(nn.Module):
    """What encoder and decoder share: positions, a norm, and embeddings of their own where they are not tied."""

    config: BlenderbotConfig
    dtype: DType
    remat: bool = False

    def frame(self) -> None:
        """Make the parts, from a subclass's `setup`."""
        c = self.config
        self.embed_positions = Embedding(c.max_position_embeddings, c.d_model, c.init_std, self.dtype)
        if c.normalize_before:
            self.layer_norm = LayerNorm(self.dtype)
        else:
            self.layernorm_embedding = LayerNorm(self.dtype)
        if not c.tie_word_embeddings:
            self.embed_tokens = Embedding(c.vocab_size, c.d_model, c.init_std, self.dtype, zero_row=c.pad_token_id)

    def embed_own(self, ids: jax.Array) -> jax.Array:
        """[..., T] ids to this side's own, untied embeddings [..., T, D]."""
        return self.embed_tokens(ids)

    def finish(self, h: jax.Array) -> jax.Array:
        """The last states: normalised in the pre-norm architecture."""
        return self.layer_norm(h) if self.config.normalize_before else h


class Encoder(Side):
    """Positions, encoder layers, and the final norm of the pre-norm architecture."""

    def setup(self) -> None:
        self.frame()
        self.layers = Stack(self.config, EncoderLayer, self.config.encoder_layers, self.dtype, self.remat)

    def __call__(self, embeds: jax.Array, attention_mask: jax.Array) -> tuple[States, States]:
        """Scaled embeddings [B, S, D] and mask [B, S] to the hidden states, the last one final, and attentions."""
        h = embeds + self.embed_positions(positions_from_mask(attention_mask))
        if not self.config.normalize_before:
            h = self.layernorm_embedding(h)
        states, weights = self.layers(dropout(self, h, self.config.dropout), padding_mask(attention_mask))
        return (*states[:-1], self.finish(states[-1])), weights[0] if weights else ()


class Decoder(Side):
    """Positions, decoder layers, and the final norm of the pre-norm architecture."""

    def setup(self) -> None:
        self.frame()
        self.layers = Stack(self.config, DecoderLayer, self.config.decoder_layers, self.dtype, self.remat)

    def __call__(
        self,
        embeds: jax.Array,
        decoder_mask: jax.Array | None,
        encoded: jax.Array | None,
        attention_mask: jax.Array | None,
    ) -> tuple[States, States, States]:
        """Scaled embeddings [B, T, D] to the hidden states, the last one final, self- and cross-attentions."""
        T = embeds.shape[1]
        mask, places = causal_mask(T), jnp.arange(T)[None]
        if decoder_mask is not None:
            mask, places = mask & padding_mask(decoder_mask), positions_from_mask(decoder_mask)
        h = dropout(self, self._with_positions(embeds, places), self.config.dropout)
        cross_mask = None if attention_mask is None else padding_mask(attention_mask)
        states, weights = self.layers(h, mask, encoded, cross_mask)
        self_weights, cross_weights = weights or ((), ())
        return (*states[:-1], self.finish(states[-1])), self_weights, () if encoded is None else cross_weights

    def step(self, embeds: jax.Array, cache: DecoderCache) -> tuple[jax.Array, DecoderCache]:
        """Scaled embeddings [B, K, T, D] of new tokens to their final hidden states."""
        h = self._with_positions(embeds, positions(cache, embeds.shape[2]))
        h, cache = self.layers.step(h, cache)
        return self.finish(h), cache

    def cross_keys_values(self, encoded: jax.Array) -> tuple[States, States]:
        """Keys and values of the encoder's output for every layer."""
        return self.layers.cross_keys_values(encoded)

    def _with_positions(self, embeds: jax.Array, places: jax.Array) -> jax.Array:
        # The post-norm decoder normalises before it adds positions, its encoder after: the weights were trained so.
        if not self.config.normalize_before:
            embeds = self.layernorm_embedding(embeds)
        return embeds + self.embed_positions(places)
