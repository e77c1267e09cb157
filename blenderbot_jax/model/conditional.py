"""BlenderbotForConditionalGeneration: encoder, decoder, and the head that gives logits over the vocabulary."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from blenderbot_jax.cache import DecoderCache
from blenderbot_jax.checks import check_ids, check_same_shape
from blenderbot_jax.layers import Linear
from blenderbot_jax.model.base import Pretrained
from blenderbot_jax.model.encoder_decoder import BlenderbotModel
from blenderbot_jax.model.objective import IGNORED_LABEL, cross_entropy, shift_tokens_right
from blenderbot_jax.outputs import Seq2SeqLMOutput


class LanguageModel(Pretrained):
    """What the two models with a head share: the head, and the methods that decoding uses."""

    def setup(self) -> None:
        self.model = BlenderbotModel(self.config, self.dtype, self.cache_dtype, self.remat)
        if not self.config.tie_word_embeddings or self.has_variable("params", "lm_head"):
            c = self.config
            self.lm_head = Linear(c.vocab_size, c.init_std, self.dtype, use_bias=False, accumulate=jnp.float32)

    def prefill(self, encoded: jax.Array | None, attention_mask: Any = None, **settings: Any) -> DecoderCache:
        """An empty cache around the keys and values of the encoder's output; see `BlenderbotModel.prefill`."""
        return self.model.prefill(encoded, attention_mask, **settings)

    def decode_step(self, tokens: jax.Array, cache: DecoderCache) -> tuple[jax.Array, DecoderCache]:
        """Continue every beam by T >= 1 tokens.

        Args:
            tokens: [B, K, T].
            cache: from `prefill` or the step before.

        Returns:
            Logits [B, K, T, V] float32 for what follows each token, and the cache that holds them.
        """
        h, cache = self.model.decode_step(tokens, cache)
        return self.head(h), cache

    def embed_target(self, ids: jax.Array) -> jax.Array:
        """[..., T] ids to the embeddings [..., T, D] that the decoder reads, scaled as the config says."""
        return self.model.embed_target(ids)

    def head(self, h: jax.Array) -> jax.Array:
        """[..., D] final states to logits [..., V] float32."""
        packed = not self.config.tie_word_embeddings or self.has_variable("params", "lm_head")
        return self.lm_head(h) if packed else self.model.logits(h)

    def kept(self, h: jax.Array, logits_to_keep: int, labels: jax.Array | None) -> jax.Array:
        """The states [B, T', D] whose logits are wanted: the last `logits_to_keep`, or all for 0."""
        if isinstance(logits_to_keep, bool) or not isinstance(logits_to_keep, int) or logits_to_keep < 0:
            raise TypeError(
                f"logits_to_keep is a static whole number (0 for all, n for the last n), not {logits_to_keep!r}: "
                "shapes are fixed when a program is compiled; index the logits with an array afterwards"
            )
        if logits_to_keep and labels is not None:
            raise ValueError("a loss needs all logits: leave out logits_to_keep, or labels")
        return h[:, -logits_to_keep:]


class BlenderbotForConditionalGeneration(LanguageModel):
    """Encoder, decoder, and the head that gives logits over the vocabulary.

    Args:
        config: the architecture, pre-norm or post-norm.
        dtype: the dtype of the computation; `model.clone(dtype=jnp.bfloat16)` computes in another one.
        cache_dtype: the dtype of the keys and values kept between steps, and of the products with them; None: `dtype`.
        remat: compute each layer again in the backward pass, which then keeps the states between layers alone.

    Example:
        >>> config = BlenderbotConfig(vocab_size=32, d_model=8, encoder_layers=1, decoder_layers=1,
        ...     encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16)
        >>> model = BlenderbotForConditionalGeneration(config)
        >>> params = model.init_params(jax.random.key(0))
        >>> ids = jnp.array([[5, 6, 2]])
        >>> model.apply({"params": params}, ids, None, jnp.array([[1, 7]])).logits.shape
        (1, 2, 32)
    """

    def setup(self) -> None:
        super().setup()
        shape = (1, self.config.vocab_size)
        self.final_logits_bias = self.param("final_logits_bias", nn.initializers.zeros, shape, jnp.float32)

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
        labels: jax.Array | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        logits_to_keep: int = 0,
        **others: Any,
    ) -> Seq2SeqLMOutput:
        """Logits for every target position, and the loss if labels are given.

        Args:
            input_ids: [B, S]; or `inputs_embeds`, or `encoder_outputs`.
            attention_mask: [B, S], 1 where a token is kept; None keeps all.
            decoder_input_ids: [B, T], starting with the decoder's start token; made from `labels` when left out.
            decoder_attention_mask: [B, T]; None keeps all. Attention is causal in any case.
            encoder_outputs: [B, S, D] from `encode`, instead of running the encoder; a tuple that begins with it will
                do, and so will a record that holds it, with the states and attentions that it has.
            inputs_embeds: [B, S, D], used as they are: the method `embed_source` gives those of ids, already scaled.
            decoder_inputs_embeds: [B, T, D], likewise those of the method `embed_target`.
            labels: [B, T], the token each position should predict; -100 is left out of the loss, pad is not.
            output_hidden_states: also return the states after each layer.
            output_attentions: also return the attention weights of each layer.
            logits_to_keep: n > 0 computes the logits of the last n positions only.
            others: further arguments of transformers, refused by name unless they ask for nothing.

        Raises:
            ValueError: ids out of the vocabulary (where they are concrete), too many positions, shapes that do not fit.
            TypeError: an argument there is nothing to do for, with what to do instead.
        """
        if labels is not None:
            check_ids("labels", labels, self.config.vocab_size, ignore=IGNORED_LABEL)
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = shift_tokens_right(labels, self.config)
        out = self.model(
            input_ids,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            **others,
        )
        logits = self.head(self.kept(out.last_hidden_state, logits_to_keep, labels))
        if labels is not None:
            check_same_shape("labels", labels, "the decoder's input", logits.shape[:2])
        return Seq2SeqLMOutput(
            logits=logits,
            encoder_last_hidden_state=out.encoder_last_hidden_state,
            loss=None if labels is None else cross_entropy(logits, labels),
            decoder_hidden_states=out.decoder_hidden_states,
            decoder_attentions=out.decoder_attentions,
            cross_attentions=out.cross_attentions,
            encoder_hidden_states=out.encoder_hidden_states,
            encoder_attentions=out.encoder_attentions,
        )

    def encode(
        self,
        input_ids: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        *,
        inputs_embeds: jax.Array | None = None,
    ) -> jax.Array:
        """[B, S] ids, or their embeddings [B, S, D], to the encoder's output [B, S, D]."""
        return self.model.encode(input_ids, attention_mask, inputs_embeds=inputs_embeds)

    def embed_source(self, ids: jax.Array) -> jax.Array:
        """[..., S] ids to the embeddings [..., S, D] that the encoder reads, scaled as the config says."""
        return self.model.embed_source(ids)

    def head(self, h: jax.Array) -> jax.Array:
        """[..., D] final states to logits [..., V] float32."""
        # A buffer in PyTorch, so it takes no gradient here either.
        bias = jax.lax.stop_gradient(self.final_logits_bias).astype(jnp.float32)
        return super().head(h) + bias[0]

    def example_inputs(self) -> dict[str, Any]:
        """The smallest inputs that reach every parameter."""
        ids = jnp.zeros((1, 1), jnp.int32)
        return {"input_ids": ids, "decoder_input_ids": ids}


class BlenderbotSmallForConditionalGeneration(BlenderbotForConditionalGeneration):
    """`BlenderbotForConditionalGeneration` under the name transformers gives the 90M architecture."""
