"""BlenderbotModel and BlenderbotForConditionalGeneration, as thin Flax modules.

A model holds no weights. `model.apply({"params": params}, ...)` is a pure function of a plain nested dict whose layout
`docs/params.md` fixes; it goes through `jit`, `grad`, `vmap` and `shard_map` as it is.
"""

import os
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from blenderbot_jax.cache import DecoderCache, init_cache
from blenderbot_jax.checkpoint import CheckpointError, fetch, load_params
from blenderbot_jax.checks import check_ids, check_positions, check_same_shape, concrete
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.layers import DType, Embedding
from blenderbot_jax.outputs import Seq2SeqLMOutput, Seq2SeqModelOutput
from blenderbot_jax.transformer import Decoder, Encoder

IGNORED_LABEL = -100
Params = dict[str, Any]


class Pretrained(nn.Module):
    """What the models share: random and published parameters."""

    config: BlenderbotConfig
    dtype: DType = jnp.float32

    if TYPE_CHECKING:
        # linen's own annotation admits a second result, which only mutable collections bring.
        def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...

    _root: ClassVar[str] = ""
    """Where the model's parameters stand in the tree of the model with head."""

    @classmethod
    def from_pretrained(
        cls, name_or_folder: str | os.PathLike[str], *, dtype: DType = jnp.float32, **hub_options: Any
    ) -> tuple[Self, Params]:
        """Load a checkpoint.

        Args:
            name_or_folder: a folder in the published layout, a name on the Hugging Face Hub, or "demo", the bundled
                model.
            dtype: of the stored parameters and of the computation.
            hub_options: `revision`, `cache_dir`, `local_files_only`, `token`.

        Returns:
            The model and its parameters, a plain nested dict of arrays.

        Raises:
            CheckpointNotFoundError: no such folder, and no such model to be had.
            CheckpointError: the weights are damaged or do not fit the configuration; every misfit is named.

        Example:
            >>> model, params = BlenderbotForConditionalGeneration.from_pretrained("demo")
        """
        folder = fetch(name_or_folder, **hub_options)
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} holds no config.json, so it is no checkpoint folder")
        model = cls(BlenderbotConfig.from_json(folder / "config.json"), dtype)
        expected = jax.eval_shape(model.init_params, jax.random.key(0))
        return model, load_params(folder, model.config, expected, dtype, root=cls._root)

    def init_params(self, key: jax.Array, dtype: DType = jnp.float32) -> Params:
        """Random parameters as the published models were begun: N(0, init_std), zero biases, a zero pad row.

        Args:
            key: a `jax.random.key`.
            dtype: storage; float32 is what training wants.
        """
        return _init_params(self, key, dtype)


class BlenderbotModel(Pretrained):
    """Encoder and decoder without a head.

    Args:
        config: the architecture, pre-norm or post-norm.
        dtype: the dtype of the computation; parameters of another dtype are cast where they are used.
    """

    _root: ClassVar[str] = "model/"

    def setup(self) -> None:
        c = self.config
        self.shared = Embedding(c.vocab_size, c.d_model, c.init_std, self.dtype, zero_row=c.pad_token_id)
        self.encoder = Encoder(c, self.dtype)
        self.decoder = Decoder(c, self.dtype)

    def __call__(
        self,
        input_ids: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        decoder_input_ids: jax.Array | None = None,
        *,
        decoder_attention_mask: jax.Array | None = None,
        encoder_outputs: jax.Array | None = None,
        output_hidden_states: bool = False,
    ) -> Seq2SeqModelOutput:
        """Run encoder and decoder.

        Args:
            input_ids: [B, S]; may be left out when `encoder_outputs` is given.
            attention_mask: [B, S], 1 where a token is kept; None keeps all.
            decoder_input_ids: [B, T], starting with the decoder's start token.
            decoder_attention_mask: [B, T]; None keeps all. Attention is causal in any case.
            encoder_outputs: [B, S, D] from `encode`, instead of running the encoder.
            output_hidden_states: also return the states after each layer.

        Raises:
            ValueError: ids out of the vocabulary (where they are concrete), too many positions, shapes that do not fit.
        """
        if decoder_input_ids is None:
            raise ValueError(
                "decoder_input_ids is required: pass the reply so far, starting with "
                f"decoder_start_token_id={self.config.decoder_start_token_id}, or labels to compute a loss"
            )
        check_ids("decoder_input_ids", decoder_input_ids, self.config.vocab_size)
        check_positions("decoder_input_ids", decoder_input_ids.shape[1], self.config.max_position_embeddings)
        if decoder_attention_mask is not None:
            check_same_shape(
                "decoder_attention_mask", decoder_attention_mask, "decoder_input_ids", decoder_input_ids.shape
            )
        encoder_states = self._encoder_states(input_ids, attention_mask, encoder_outputs)
        encoded = encoder_states[-1]
        states = self.decoder(
            self._embed_target(decoder_input_ids),
            None if decoder_attention_mask is None else jnp.asarray(decoder_attention_mask).astype(bool),
            encoded,
            _mask_over(attention_mask, encoded),
        )
        return Seq2SeqModelOutput(
            last_hidden_state=states[-1],
            encoder_last_hidden_state=encoded,
            decoder_hidden_states=states if output_hidden_states else None,
            encoder_hidden_states=encoder_states if output_hidden_states and encoder_outputs is None else None,
        )

    def encode(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """[B, S] ids to the encoder's output [B, S, D]."""
        return self._encoder_states(input_ids, attention_mask, None)[-1]

    def prefill(
        self,
        encoded: jax.Array,
        attention_mask: jax.Array | None = None,
        *,
        capacity: int,
        beams: int = 1,
        ancestry: bool | None = None,
    ) -> DecoderCache:
        """Compute the cross-attention keys and values of a batch, once, around an empty cache.

        Args:
            encoded: [B, S, D] from `encode`.
            attention_mask: [B, S]; None keeps all.
            capacity: C, the most tokens that will be decoded, at most `max_position_embeddings`.
            beams: K, rows decoded per prompt.
            ancestry: keep an ancestry table rather than gather the cache when beams are reordered; None does so for
                more than one beam.
        """
        check_positions("the cache", capacity, self.config.max_position_embeddings)
        if capacity < 1 or beams < 1:
            raise ValueError(f"capacity and beams must be at least 1, not {capacity} and {beams}")
        mask = _mask_over(attention_mask, encoded)
        keys, values = self.decoder.cross_keys_values(encoded.astype(self.dtype))
        table = beams > 1 if ancestry is None else ancestry
        return init_cache(keys, values, mask, beams=beams, capacity=capacity, ancestry=table)

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
        return self.decoder.step(self._embed_target(tokens), cache)

    def logits(self, h: jax.Array) -> jax.Array:
        """[..., D] to [..., V] float32: products with the unscaled embeddings."""
        return self.shared.attend(h)

    def _encoder_states(
        self, input_ids: jax.Array | None, attention_mask: jax.Array | None, encoder_outputs: jax.Array | None
    ) -> tuple[jax.Array, ...]:
        if encoder_outputs is not None:
            return (encoder_outputs.astype(self.dtype),)
        if input_ids is None:
            raise ValueError("input_ids is required (or encoder_outputs, the result of `encode`)")
        check_ids("input_ids", input_ids, self.config.vocab_size)
        check_positions("input_ids", input_ids.shape[1], self.config.max_position_embeddings)
        embeds = self._scaled(self.shared(input_ids))
        return self.encoder(embeds, _mask_over(attention_mask, embeds))

    def _embed_target(self, ids: jax.Array) -> jax.Array:
        embeds = self.shared(ids)
        scaled = self.config.normalize_before or self.config.scale_decoder_embedding
        return self._scaled(embeds) if scaled else embeds

    def _scaled(self, embeds: jax.Array) -> jax.Array:
        return embeds * self.config.d_model**0.5 if self.config.scale_embedding else embeds


class BlenderbotForConditionalGeneration(Pretrained):
    """Encoder, decoder, and the head that gives logits over the vocabulary.

    Args:
        config: the architecture, pre-norm or post-norm.
        dtype: the dtype of the computation; `model.clone(dtype=jnp.bfloat16)` computes in another one.

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
        self.model = BlenderbotModel(self.config, self.dtype)
        shape = (1, self.config.vocab_size)
        self.final_logits_bias = self.param("final_logits_bias", nn.initializers.zeros, shape, jnp.float32)

    def __call__(
        self,
        input_ids: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        decoder_input_ids: jax.Array | None = None,
        *,
        decoder_attention_mask: jax.Array | None = None,
        encoder_outputs: jax.Array | None = None,
        labels: jax.Array | None = None,
        output_hidden_states: bool = False,
    ) -> Seq2SeqLMOutput:
        """Logits for every target position, and the loss if labels are given.

        Args:
            input_ids: [B, S]; may be left out when `encoder_outputs` is given.
            attention_mask: [B, S], 1 where a token is kept; None keeps all.
            decoder_input_ids: [B, T], starting with the decoder's start token; made from `labels` when left out.
            decoder_attention_mask: [B, T]; None keeps all. Attention is causal in any case.
            encoder_outputs: [B, S, D] from `encode`, instead of running the encoder.
            labels: [B, T], the token each position should predict; -100 is left out of the loss, pad is not.
            output_hidden_states: also return the states after each layer.

        Raises:
            ValueError: ids out of the vocabulary (where they are concrete), too many positions, shapes that do not fit.
        """
        if labels is not None:
            check_ids("labels", labels, self.config.vocab_size, ignore=IGNORED_LABEL)
            if decoder_input_ids is None:
                decoder_input_ids = shift_tokens_right(labels, self.config)
            check_same_shape("labels", labels, "decoder_input_ids", decoder_input_ids.shape)
        out = self.model(
            input_ids,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            output_hidden_states=output_hidden_states,
        )
        logits = self._logits(out.last_hidden_state)
        return Seq2SeqLMOutput(
            logits=logits,
            encoder_last_hidden_state=out.encoder_last_hidden_state,
            loss=None if labels is None else cross_entropy(logits, labels),
            decoder_hidden_states=out.decoder_hidden_states,
            encoder_hidden_states=out.encoder_hidden_states,
        )

    def encode(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """[B, S] ids to the encoder's output [B, S, D]."""
        return self.model.encode(input_ids, attention_mask)

    def prefill(self, encoded: jax.Array, attention_mask: jax.Array | None = None, **settings: Any) -> DecoderCache:
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
        return self._logits(h), cache

    def _logits(self, h: jax.Array) -> jax.Array:
        # A buffer in PyTorch, so it takes no gradient here either.
        bias = jax.lax.stop_gradient(self.final_logits_bias).astype(jnp.float32)
        return self.model.logits(h) + bias[0]


def shift_tokens_right(labels: jax.Array, config: BlenderbotConfig) -> jax.Array:
    """Make decoder inputs of labels: the start token first, everything one place later, -100 replaced by pad.

    Args:
        labels: [B, T].
        config: for `decoder_start_token_id` and `pad_token_id`.

    Returns:
        [B, T].
    """
    labels = jnp.asarray(labels)
    start = jnp.full((labels.shape[0], 1), config.decoder_start_token_id, labels.dtype)
    shifted = jnp.concatenate([start, labels[:, :-1]], axis=1)
    return jnp.where(shifted == IGNORED_LABEL, config.pad_token_id or 0, shifted)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean of -log p(label) in nats over the labels that are not -100; 0 if there are none.

    Args:
        logits: [B, T, V] float32.
        labels: [B, T].
    """
    labels = jnp.asarray(labels)
    counted = labels != IGNORED_LABEL
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counted, labels, 0))
    return jnp.where(counted, losses, 0).sum() / jnp.maximum(counted.sum(), 1).astype(losses.dtype)


def resize_token_embeddings(
    model: BlenderbotForConditionalGeneration, params: Params, vocab_size: int, key: jax.Array
) -> tuple[BlenderbotForConditionalGeneration, Params]:
    """Change the number of tokens, for a tokenizer that gained or lost some.

    New rows are drawn around the mean of the old ones, with 1e-9 of their covariance, as transformers does by default:
    the new tokens start out unlikely rather than loud. Their biases are zero.

    Args:
        model, params: the model and its parameters; neither is changed.
        vocab_size: the new V.
        key: a `jax.random.key`.

    Returns:
        A model for the new vocabulary, and its parameters.

    Example:
        >>> larger, more = resize_token_embeddings(model, params, len(tokenizer) + 2, jax.random.key(0))
        >>> len(more["model"]["shared"]["embedding"]) - len(tokenizer)
        2
    """
    resized = model.clone(config=model.config.replace(vocab_size=vocab_size))
    table, bias = params["model"]["shared"]["embedding"], params["final_logits_bias"]
    added = max(vocab_size - table.shape[0], 0)
    table, bias = table[:vocab_size], bias[:, :vocab_size]
    if added:
        old = table.astype(jnp.float32)
        centred = old - old.mean(axis=0)
        # A random mix of the centred rows has exactly their covariance; no matrix has to be factored.
        mix = jax.random.normal(key, (added, len(old))) * (1e-9 / len(old)) ** 0.5
        rows = old.mean(axis=0) + jnp.matmul(mix, centred, precision=jax.lax.Precision.HIGHEST)
        table = jnp.concatenate([table, rows.astype(table.dtype)])
        bias = jnp.concatenate([bias, jnp.zeros((1, added), bias.dtype)], axis=1)
    inner = {**params["model"], "shared": {"embedding": table}}
    return resized, {**params, "model": inner, "final_logits_bias": bias}


@partial(jax.jit, static_argnums=(0, 2))
def _init_params(model: nn.Module, key: jax.Array, dtype: DType) -> Params:
    ids = jnp.zeros((1, 1), jnp.int32)
    params = model.init(key, ids, None, ids)["params"]
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def _mask_over(attention_mask: jax.Array | None, source: jax.Array) -> jax.Array:
    """The mask as [B, S] bool over source states [B, S, D]; all True without one."""
    if attention_mask is None:
        return jnp.ones(source.shape[:2], bool)
    check_same_shape("attention_mask", attention_mask, "the source", source.shape[:2])
    return jnp.asarray(attention_mask).astype(bool)


class BlenderbotSmallModel(BlenderbotModel):
    """`BlenderbotModel` under the name transformers gives the 90M architecture; the config tells them apart."""


class BlenderbotSmallForConditionalGeneration(BlenderbotForConditionalGeneration):
    """`BlenderbotForConditionalGeneration` under the name transformers gives the 90M architecture."""
