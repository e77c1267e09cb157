"""The parts of the transformer: Linear, LayerNorm, Embedding, attention, encoder layer, decoder layer.

Shapes: B batch, K beams, T query length, S key length, N heads, H head width, D model width, C cache capacity.
Dropout and layerdrop are on exactly when `apply` is given `rngs={"dropout": key}`.
"""

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from blenderbot_jax import native
from blenderbot_jax.attention import attention_weights, gather_values
from blenderbot_jax.cache import Owners, Segments, Sight, append, by_beam, by_history
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.kernels import DType, matmul, matmul_each, precision_for

KeysValues = tuple[jax.Array, jax.Array]

# 1.0 below the largest float16 by the margin of transformers' encoder, which clamps where float16 would overflow.
_EPSILON = 1e-5
_FLOAT16_LIMIT = 65504.0 - 1000.0


def gelu(x: jax.Array) -> jax.Array:
    """The exact gelu by erf, as PyTorch computes it: a fifth of the time that `jax.nn.gelu` takes by erfc on CPUs.

    Example:
        >>> [f"{value:.4f}" for value in gelu(jnp.array([-1.0, 2.0]))]
        ['-0.1587', '1.9545']
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


ACTIVATION_FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}


def dropout(module: nn.Module, x: jax.Array, rate: float) -> jax.Array:
    """Zero a share of `x` and scale up the rest, if the caller gave a dropout key."""
    if rate == 0 or not module.has_rng("dropout"):
        return x
    if rate == 1:
        return jnp.zeros_like(x)
    keep = jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)


def layerdrop(module: nn.Module, before: jax.Array, after: jax.Array, rate: float) -> jax.Array:
    """Undo a whole layer with probability `rate`, if the caller gave a dropout key."""
    if rate == 0 or not module.has_rng("dropout"):
        return after
    return jnp.where(jax.random.bernoulli(module.make_rng("dropout"), rate), before, after)


class Linear(nn.Module):
    """`x @ kernel + bias`, kernel [in, out].

    An existing kernel is read without linen's shape check, so that it may be any registered leaf `matmul` accepts.
    """

    features: int
    init_std: float
    dtype: DType
    use_bias: bool = True
    accumulate: DType = None
    """dtype of the result; None: `dtype`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.has_variable("params", "kernel"):
            kernel = self.get_variable("params", "kernel")
        else:
            shape = (x.shape[-1], self.features)
            kernel = self.param("kernel", nn.initializers.normal(self.init_std), shape, jnp.float32)
        product = matmul(x.astype(self.dtype), kernel, self.accumulate)
        if not self.use_bias:
            return product
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return product + bias.astype(product.dtype)


class LayerNorm(nn.Module):
    """Normalise the last axis, eps 1e-5: float32 and two passes, whatever the dtype; by a native kernel on request."""

    dtype: DType

    @nn.compact
    def __call__(self, x: jax.Array, natively: bool = False) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        if natively:
            return native.layer_norm(x, scale, bias, _EPSILON).astype(self.dtype)
        x = x.astype(jnp.float32)
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(variance + _EPSILON)
        return (normal * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(self.dtype)


class Embedding(nn.Module):
    """A table [rows, D]: `__call__` looks rows up, `attend` gives logits against all of them."""

    rows: int
    features: int
    init_std: float
    dtype: DType
    zero_row: int | None = None

    def setup(self) -> None:
        self.embedding = self.param("embedding", self._init, (self.rows, self.features))

    def _init(self, key: jax.Array, shape: tuple[int, int]) -> jax.Array:
        table = self.init_std * jax.random.normal(key, shape, jnp.float32)
        return table if self.zero_row is None else table.at[self.zero_row].set(0)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """[...] ids to [..., D]."""
        rows = jnp.take(self.embedding, ids, axis=0).astype(self.dtype)
        if self.zero_row is None:
            return rows
        # As torch's padding_idx: looking the pad row up does not train it.
        return jnp.where((ids == self.zero_row)[..., None], jax.lax.stop_gradient(rows), rows)

    def attend(self, x: jax.Array) -> jax.Array:
        """[..., D] to [..., rows] products with every row, accumulated in float32."""
        return jnp.einsum(
            "...d,vd->...v",
            x,
            self.embedding.astype(x.dtype),
            precision=precision_for(x.dtype),
            preferred_element_type=jnp.float32,
        )


class Attention(nn.Module):
    """Multi-head attention with biases on all four projections."""

    config: BlenderbotConfig
    heads: int
    dtype: DType

    def setup(self) -> None:
        linear = partial(Linear, self.config.d_model, self.config.init_std, self.dtype)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = linear(), linear(), linear(), linear()

    def queries(self, x: jax.Array) -> jax.Array:
        """[B, ..., T, D] to [B, N, ..., T, H]."""
        return self._split_heads(self.q_proj(x))

    def keys_values(self, y: jax.Array) -> KeysValues:
        """[B, ..., S, D] to two arrays [B, N, ..., S, H]."""
        return self._split_heads(self.k_proj(y)), self._split_heads(self.v_proj(y))

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Queries [..., T, H] over keys [..., S, H] under a mask that broadcasts to [..., T, S].

        Returns:
            What the queries gather [..., T, H], and the weights [..., T, S] they gather it with.
        """
        weights = dropout(self, attention_weights(q, k, mask), self.config.attention_dropout)
        heads = jnp.einsum("...ts,...sh->...th", weights.astype(v.dtype), v, precision=precision_for(v.dtype))
        return heads, weights

    def output(self, heads: jax.Array) -> jax.Array:
        """[B, N, ..., T, H] to [B, ..., T, D]."""
        joined = jnp.moveaxis(heads, 1, -2)
        return self.out_proj(joined.reshape(*joined.shape[:-2], -1))

    def __call__(self, x: jax.Array, y: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Attend from x [B, T, D] to y [B, S, D]: the result [B, T, D] and the weights [B, N, T, S]."""
        heads, weights = self.attend(self.queries(x), *self.keys_values(y), mask)
        return self.output(heads), weights

    def over_source(self, x: jax.Array, keys: jax.Array, values: jax.Array, sight: Sight) -> jax.Array:
        """All beams over what their prompt shares: folded into the query axis, so that nothing is tiled by beam.

        x is [B, K, T, D], keys [B, N, H, S], values [B, N, S, H]; a mask broadcasts to [B, N, K * T, S].
        """
        if isinstance(sight, Owners):
            return self._natively(self.q_proj(x), keys, values, sight)
        q = self.queries(x)
        folded = q.reshape(*q.shape[:2], -1, q.shape[-1])
        return self.output(gather_values(folded, (keys,), (values,), sight).reshape(q.shape))

    def over_slots(
        self, x: jax.Array, slots: tuple[Segments, Segments], length: jax.Array, sight: Sight
    ) -> tuple[jax.Array, tuple[Segments, Segments]]:
        """Write new tokens, and let each beam look at its history, or, where a mask says who owns what, at all beams'.

        Args:
            x: [B, K, T, D].
            slots: segments of keys [G, N, H, C' * J] and of values [G, N, C' * J, H] written so far.
            length: scalar int32, tokens written before.
            sight: a mask [G or 1, 1, T * J, C * J]; or who owns what, for slots that are laid out so.

        Returns:
            What they found [B, K, T, D], and the slots with the new tokens written.
        """
        if isinstance(sight, Owners):
            return self._over_own_slots(x, slots, length, sight)
        slots = append(*slots, self.keys_values(x), length)
        q = self.queries(x)
        heads = gather_values(by_history(q, slots[0][0].shape[0]), *slots, sight)
        return self.output(by_beam(heads, q.shape)), slots

    def _over_own_slots(
        self, x: jax.Array, slots: tuple[Segments, Segments], length: jax.Array, owners: Owners
    ) -> tuple[jax.Array, tuple[Segments, Segments]]:
        weights = [linear.variables["params"] for linear in (self.q_proj, self.k_proj, self.v_proj)]
        products = matmul_each(x, [each["kernel"] for each in weights])
        q, *new = (product + each["bias"].astype(x.dtype) for product, each in zip(products, weights, strict=True))
        writers = owners.table.shape[1]
        keys, values = (native.append(part[0], rows, length, writers) for part, rows in zip(slots, new, strict=True))
        return self._natively(q, keys, values, owners), ((keys,), (values,))

    def _natively(self, q: jax.Array, keys: jax.Array, values: jax.Array, owners: Owners) -> jax.Array:
        """From queries [B, K, T, D] as they are projected to the result."""
        return self.out_proj(native.attention(q, keys, values, *owners).astype(q.dtype))

    def _split_heads(self, x: jax.Array) -> jax.Array:
        split = x.reshape(*x.shape[:-1], self.heads, x.shape[-1] // self.heads)
        return jnp.moveaxis(split, -2, 1)


class TransformerLayer(nn.Module):
    """What both kinds of layer share: the residual rule of the architecture, and the feed-forward part."""

    config: BlenderbotConfig
    dtype: DType

    def enter(self, norm: LayerNorm, h: jax.Array, natively: bool = False) -> jax.Array:
        """What a sublayer sees: normalised in Blenderbot, as it is in BlenderbotSmall."""
        return norm(h, natively) if self.config.normalize_before else h

    def leave(self, norm: LayerNorm, h: jax.Array, change: jax.Array, natively: bool = False) -> jax.Array:
        """Add what a sublayer found; BlenderbotSmall normalises the sum."""
        total = h + dropout(self, change, self.config.dropout)
        return total if self.config.normalize_before else norm(total, natively)

    def feed_forward(self, x: jax.Array) -> jax.Array:
        """fc2(activation(fc1(x))); the subclass owns fc1 and fc2."""
        hidden = ACTIVATION_FUNCTIONS[self.config.activation_function](self.fc1(x))
        return self.fc2(dropout(self, hidden, self.config.activation_dropout))

    def after_attention(self, h: jax.Array, natively: bool = False) -> jax.Array:
        """The feed-forward sublayer, which ends a layer; the subclass owns its norm."""
        x = self.enter(self.final_layer_norm, h, natively)
        return self.leave(self.final_layer_norm, h, self.feed_forward(x), natively)


class EncoderLayer(TransformerLayer):
    """Self-attention and feed-forward."""

    def setup(self) -> None:
        c = self.config
        self.self_attn = Attention(c, c.encoder_attention_heads, self.dtype)
        self.self_attn_layer_norm = LayerNorm(self.dtype)
        self.fc1 = Linear(c.encoder_ffn_dim, c.init_std, self.dtype)
        self.fc2 = Linear(c.d_model, c.init_std, self.dtype)
        self.final_layer_norm = LayerNorm(self.dtype)

    def __call__(self, h: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """h [B, S, D] under mask [B, 1, 1, S] to the next h, and the attention weights [B, N, S, S]."""
        x = self.enter(self.self_attn_layer_norm, h)
        change, weights = self.self_attn(x, x, mask)
        out = self.after_attention(self.leave(self.self_attn_layer_norm, h, change))
        if self.dtype == jnp.float16:
            out = jnp.clip(out, -_FLOAT16_LIMIT, _FLOAT16_LIMIT)
        return layerdrop(self, h, out, self.config.encoder_layerdrop), weights


class DecoderLayer(TransformerLayer):
    """Causal self-attention, attention to the encoder's output, and feed-forward."""

    def setup(self) -> None:
        c = self.config
        self.self_attn = Attention(c, c.decoder_attention_heads, self.dtype)
        self.self_attn_layer_norm = LayerNorm(self.dtype)
        self.encoder_attn = Attention(c, c.decoder_attention_heads, self.dtype)
        self.encoder_attn_layer_norm = LayerNorm(self.dtype)
        self.fc1 = Linear(c.decoder_ffn_dim, c.init_std, self.dtype)
        self.fc2 = Linear(c.d_model, c.init_std, self.dtype)
        self.final_layer_norm = LayerNorm(self.dtype)

    def __call__(
        self, h: jax.Array, self_mask: jax.Array, encoded: jax.Array | None, cross_mask: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """All target places at once.

        Args:
            h: [B, T, D].
            self_mask: [B or 1, 1, T, T].
            encoded: [B, S, D], or None for a decoder that stands alone.
            cross_mask: [B, 1, 1, S], or None likewise.

        Returns:
            The next h, the self-attention weights [B, N, T, T], and the cross-attention weights [B, N, T, S] or None.
        """
        x = self.enter(self.self_attn_layer_norm, h)
        change, self_weights = self.self_attn(x, x, self_mask)
        out, cross_weights = self.leave(self.self_attn_layer_norm, h, change), None
        if encoded is not None and cross_mask is not None:
            x = self.enter(self.encoder_attn_layer_norm, out)
            change, cross_weights = self.encoder_attn(x, encoded, cross_mask)
            out = self.leave(self.encoder_attn_layer_norm, out, change)
        out = layerdrop(self, h, self.after_attention(out), self.config.decoder_layerdrop)
        return out, self_weights, cross_weights

    def cross_keys_values(self, encoded: jax.Array) -> KeysValues:
        """[B, S, D] to the keys and values [B, N, S, H] that every step will attend to."""
        return self.encoder_attn.keys_values(encoded)

    def step(
        self,
        h: jax.Array,
        self_slots: tuple[Segments, Segments],
        cross: KeysValues | None,
        length: jax.Array,
        self_sight: Sight,
        cross_sight: Sight,
    ) -> tuple[jax.Array, tuple[Segments, Segments]]:
        """T new tokens for every beam.

        Args:
            h: [B, K, T, D].
            self_slots: segments of keys [G, N, H, C' * J] and of values [G, N, C' * J, H] written so far.
            cross: keys [B, N, H, S] and values [B, N, S, H] of the encoder's output, or None for a decoder that stands
                alone.
            length: scalar int32, slots written before.
            self_sight: as `Attention.over_slots` takes it.
            cross_sight: as `Attention.over_source` does.

        Returns:
            The hidden states [B, K, T, D] and the slots with the new tokens written.
        """
        natively = isinstance(self_sight, Owners)
        x = self.enter(self.self_attn_layer_norm, h, natively)
        change, slots = self.self_attn.over_slots(x, self_slots, length, self_sight)
        out = self.leave(self.self_attn_layer_norm, h, change, natively)
        if cross is not None:
            x = self.enter(self.encoder_attn_layer_norm, out, natively)
            change = self.encoder_attn.over_source(x, *cross, cross_sight)
            out = self.leave(self.encoder_attn_layer_norm, out, change, natively)
        return self.after_attention(out, natively), slots
