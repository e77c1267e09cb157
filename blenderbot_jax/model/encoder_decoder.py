"""BlenderbotModel: encoder and decoder, their inputs and the cache between steps."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from blenderbot_jax.cache import CacheShape, DecoderCache, init_cache
from blenderbot_jax.checks import (
    as_array,
    check_embeds,
    check_ids,
    check_mask,
    check_one_of,
    check_positions,
    concrete,
    refuse_arguments,
)
from blenderbot_jax.layers import Embedding
from blenderbot_jax.model.base import FORWARD_REFUSALS, Pretrained
from blenderbot_jax.native import attends
from blenderbot_jax.outputs import EncoderOutput, Seq2SeqModelOutput, as_encoder_output
from blenderbot_jax.transformer import Decoder, Encoder, States


class BlenderbotModel(Pretrained):
    """Encoder and decoder without a head.

    Args:
        config: the architecture, pre-norm or post-norm.
        dtype: the dtype of the computation; parameters of another dtype are cast where they are used.
        cache_dtype: the dtype of the keys and values kept between steps, and of the products with them; None: `dtype`.
        remat: compute each layer again in the backward pass, which then keeps the states between layers alone.
    """

    _root: ClassVar[str] = "model/"

    def setup(self) -> None:
        c = self.config
        self.shared = Embedding(c.vocab_size, c.d_model, c.init_std, self.dtype, zero_row=c.pad_token_id)
        self.encoder = Encoder(c, self.dtype, self.remat)
        self.decoder = Decoder(c, self.dtype, self.remat)

    def __call__(
        self,
        input_ids: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        decoder_input_ids: jax.Array | None = None,
        *,
        decoder_attention_mask: jax.Array | None = None,
        encoder_outputs: Any = None,
        inputs_embeds: jax.Array | None = None,
        decoder_inputs_embeds: jax.Array | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        **others: Any,
    ) -> Seq2SeqModelOutput:
        """Run encoder and decoder.

        Args:
            input_ids: [B, S]; or `inputs_embeds`, or `encoder_outputs`.
            attention_mask: [B, S], 1 where a token is kept; None keeps all.
            decoder_input_ids: [B, T], starting with the decoder's start token; or `decoder_inputs_embeds`.
            decoder_attention_mask: [B, T]; None keeps all. Attention is causal in any case.
            encoder_outputs: [B, S, D] from `encode`, instead of running the encoder; a tuple that begins with it will
                do, and so will a record that holds it, with the states and attentions that it has.
            inputs_embeds: [B, S, D], used as they are: the method `embed_source` gives those of ids, already scaled.
            decoder_inputs_embeds: [B, T, D], likewise those of the method `embed_target`.
            output_hidden_states: also return the states after each layer.
            output_attentions: also return the attention weights of each layer.
            others: further arguments of transformers, refused by name unless they ask for nothing.

        Raises:
            ValueError: ids out of the vocabulary (where they are concrete), too many positions, shapes that do not fit.
            TypeError: an argument there is nothing to do for, with what to do instead.
        """
        refuse_arguments(type(self).__name__, others, FORWARD_REFUSALS)
        if encoder_outputs is None:
            encoder = self.run_encoder(input_ids, attention_mask, inputs_embeds)
        else:
            check_one_of({"encoder_outputs": encoder_outputs, "inputs_embeds": inputs_embeds})
            encoder = self.given_encoder(encoder_outputs)
        encoded = encoder.last_hidden_state
        states, attentions, cross = self.run_decoder(
            decoder_input_ids, decoder_attention_mask, decoder_inputs_embeds, encoded, attention_mask
        )
        return Seq2SeqModelOutput(
            last_hidden_state=states[-1],
            encoder_last_hidden_state=encoded,
            decoder_hidden_states=states if output_hidden_states else None,
            decoder_attentions=attentions if output_attentions else None,
            cross_attentions=cross if output_attentions else None,
            encoder_hidden_states=encoder.hidden_states if output_hidden_states else None,
            encoder_attentions=encoder.attentions if output_attentions else None,
        )

    def encode(
        self,
        input_ids: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        *,
        inputs_embeds: jax.Array | None = None,
    ) -> jax.Array:
        """[B, S] ids, or their embeddings [B, S, D], to the encoder's output [B, S, D]."""
        return self.run_encoder(input_ids, attention_mask, inputs_embeds).last_hidden_state

    def prefill(
        self,
        encoded: jax.Array | None,
        attention_mask: jax.Array | None = None,
        *,
        capacity: int,
        beams: int = 1,
        ancestry: bool | None = None,
        target_mask: jax.Array | None = None,
        batch: int | None = None,
        native: bool = False,
    ) -> DecoderCache:
        """Compute the cross-attention keys and values of a batch, once, around an empty cache.

        Args:
            encoded: [B, S, D] from `encode`; None for a decoder that stands alone.
            attention_mask: [B, S]; None keeps all.
            capacity: C, the most tokens that will be decoded, at most `max_position_embeddings`.
            beams: K, rows decoded per prompt.
            ancestry: keep an ancestry table rather than gather the cache when beams are reordered; None does so for
                more than one beam.
            target_mask: [B, C], 0 at the pads of a prompt that is going to be written; None keeps all.
            batch: B, where there is no `encoded` to tell it.
            native: lay the cache out for native kernels, if they take its dtype and the width of its heads.
        """
        check_positions("the cache", capacity, self.config.max_position_embeddings)
        if capacity < 1 or beams < 1:
            raise ValueError(f"capacity and beams must be at least 1, not {capacity} and {beams}")
        if encoded is None and batch is None:
            raise ValueError("without the encoder's output, prefill needs batch=B")
        keys, values, source_mask = (), (), jnp.ones((batch or 1, 0), bool)
        if encoded is not None:
            source_mask = _mask_over("attention_mask", attention_mask, encoded)
            cross = self.decoder.cross_keys_values(encoded.astype(self.dtype))
            keys, values = jax.tree.map(lambda one: one.astype(self.cache_dtype or self.dtype), cross)
        if target_mask is not None:
            check_mask("target_mask", target_mask, "the cache", (source_mask.shape[0], capacity))
            target_mask = jnp.asarray(target_mask).astype(bool)
        return init_cache(
            keys,
            values,
            source_mask,
            shape=self._cache_shape(),
            beams=beams,
            capacity=capacity,
            ancestry=beams > 1 if ancestry is None else ancestry,
            target_mask=target_mask,
            native=native and attends(self.cache_dtype or self.dtype, self.config.decoder_head_dim),
        )

    def decode_step(self, tokens: jax.Array, cache: DecoderCache) -> tuple[jax.Array, DecoderCache]:
        """[B, K, T] new tokens to their final hidden states [B, K, T, D], and the cache that holds them."""
        B, K, T = tokens.shape
        length = concrete(cache.length)
        if cache.capacity < T or (length is not None and int(length.max()) + T > cache.capacity):
            raise ValueError(
                f"the cache has room for {cache.capacity} tokens; {T} more do not fit: prefill a larger one"
            )
        if (cache.source_mask.shape[0], cache.beams) != (B, K):
            raise ValueError(
                f"tokens [B, K, T] must match the cache's B={cache.source_mask.shape[0]}, K={cache.beams}, "
                f"not {list(tokens.shape)}"
            )
        check_ids("tokens", tokens.reshape(B * K, T), self.config.vocab_size)
        return self.decoder.step(self.embed_target(tokens), cache)

    def _cache_shape(self) -> CacheShape:
        c = self.config
        dtype = self.cache_dtype or self.dtype
        return CacheShape(c.decoder_layers, c.decoder_attention_heads, c.decoder_head_dim, dtype)

    def embed_source(self, ids: jax.Array) -> jax.Array:
        """[..., S] ids to the embeddings [..., S, D] that the encoder reads, scaled as the config says."""
        c = self.config
        return self._scaled(self.shared(ids) if c.tie_word_embeddings else self.encoder.embed_own(ids))

    def embed_target(self, ids: jax.Array) -> jax.Array:
        """[..., T] ids to the embeddings [..., T, D] that the decoder reads, scaled as the config says."""
        c = self.config
        embeds = self.shared(ids) if c.tie_word_embeddings else self.decoder.embed_own(ids)
        return self._scaled(embeds) if c.normalize_before or c.scale_decoder_embedding else embeds

    def logits(self, h: jax.Array) -> jax.Array:
        """[..., D] to [..., V] float32: products with the unscaled, tied embeddings."""
        return self.shared.attend(h)

    def given_encoder(self, encoder_outputs: Any) -> EncoderOutput:
        """What the caller hands on in place of the encoder's work, checked, its last states in the model's dtype."""
        given = as_encoder_output(encoder_outputs)
        check_embeds("encoder_outputs", given.last_hidden_state, self.config.d_model)
        return dataclasses.replace(given, last_hidden_state=jnp.asarray(given.last_hidden_state).astype(self.dtype))

    def run_encoder(
        self, input_ids: jax.Array | None, attention_mask: jax.Array | None, inputs_embeds: jax.Array | None
    ) -> EncoderOutput:
        """Ids or embeddings to the encoder's output, all states and attentions with it."""
        check_one_of({"input_ids": input_ids, "inputs_embeds": inputs_embeds}, "or encoder_outputs, what `encode` gave")
        embeds = self._embeds("input", input_ids, inputs_embeds, self.embed_source)
        if self.is_initializing() and not self.config.tie_word_embeddings:
            # Published untied files hold it, so the tree does; nothing looks anything up in it.
            _ = self.shared.embedding
        states, attentions = self.encoder(embeds, _mask_over("attention_mask", attention_mask, embeds))
        return EncoderOutput(states[-1], states, attentions)

    def run_decoder(
        self,
        ids: jax.Array | None,
        mask: jax.Array | None,
        embeds: jax.Array | None,
        encoded: jax.Array | None,
        source_mask: jax.Array | None,
        name: str = "decoder_input",
    ) -> tuple[States, States, States]:
        """Ids or embeddings to the decoder's states and its self- and cross-attentions.

        Args:
            ids: [B, T], or None.
            mask: [B, T], or None for all kept.
            embeds: [B, T, D], or None.
            encoded: [B, S, D], or None for a decoder that stands alone.
            source_mask: [B, S], or None for all kept.
            name: what the caller calls the ids, without `_ids`.
        """
        start = f"the reply so far, starting with decoder_start_token_id={self.config.decoder_start_token_id}"
        check_one_of({f"{name}_ids": ids, f"{name}s_embeds": embeds}, start)
        h = self._embeds(name, ids, embeds, self.embed_target)
        if mask is not None:
            check_mask(f"{name.removesuffix('input')}attention_mask", mask, f"{name}_ids", h.shape[:2])
            mask = jnp.asarray(mask).astype(bool)
        cross_mask = None
        if encoded is not None:
            if encoded.shape[0] != h.shape[0]:
                raise ValueError(
                    f"the encoder's output is for a batch of {encoded.shape[0]}, {name}_ids for one of {h.shape[0]}"
                )
            cross_mask = _mask_over("the mask of the encoder's output", source_mask, encoded)
        return self.decoder(h, mask, encoded, cross_mask)

    def _embeds(self, name: str, ids: jax.Array | None, embeds: jax.Array | None, embed: Any) -> jax.Array:
        limit, ids = self.config.max_position_embeddings, as_array(f"{name}_ids", ids)
        if ids is None:
            check_embeds(f"{name}s_embeds", embeds, self.config.d_model)
            h = jnp.asarray(embeds).astype(self.dtype)
            check_positions(f"{name}s_embeds", h.shape[1], limit)
            return h
        check_ids(f"{name}_ids", ids, self.config.vocab_size)
        check_positions(f"{name}_ids", ids.shape[1], limit)
        return embed(jnp.asarray(ids))

    def _scaled(self, embeds: jax.Array) -> jax.Array:
        return embeds * self.config.d_model**0.5 if self.config.scale_embedding else embeds

    def example_inputs(self) -> dict[str, Any]:
        """The smallest inputs that reach every parameter."""
        ids = jnp.zeros((1, 1), jnp.int32)
        return {"input_ids": ids, "decoder_input_ids": ids}


def _mask_over(name: str, mask: jax.Array | None, source: jax.Array) -> jax.Array:
    """The mask as [B, S] bool over source states [B, S, D]; all True without one."""
    if mask is None:
        return jnp.ones(source.shape[:2], bool)
    check_mask(name, mask, "the source", source.shape[:2])
    return jnp.asarray(mask).astype(bool)


class BlenderbotSmallModel(BlenderbotModel):
    """`BlenderbotModel` under the name transformers gives the 90M architecture; the config tells them apart."""
