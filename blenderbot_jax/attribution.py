"""Attribution: which token of the prompt moved which token of the reply."""

from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from blenderbot_jax.checks import check_ids, check_mask
from blenderbot_jax.model import IGNORED_LABEL, BlenderbotForConditionalGeneration, Params
from blenderbot_jax.quantize import is_quantized
from blenderbot_jax.scoring import checked, token_log_probs

Method = Literal["gradient_x_input", "cross_attention"]
METHODS: tuple[Method, ...] = get_args(Method)


def attribution(
    model: BlenderbotForConditionalGeneration,
    params: Params,
    input_ids: Any,
    attention_mask: Any,
    labels: Any,
    *,
    method: Method = "gradient_x_input",
    layer: int | None = None,
    decoder_input_ids: Any = None,
) -> jax.Array:
    """Weigh every token of a prompt by what it did to every token of a reply.

    - `gradient_x_input` (Shrikumar et al. 2017, arXiv:1704.02685): the gradient of log p(labels[t]) to the embedding of
      token s, dotted with that embedding, as the encoder reads it: scaled, without its position. Signed, in nats:
      above 0 the token made labels[t] likelier. A row's sum is how fast log p changes as all embeddings are scaled. It
      costs one reverse pass for each reply token, one after the other, in the memory of one.
    - `cross_attention`: the share of attention that the place predicting labels[t] pays to place s of the encoder's
      output, mean over heads and layers. A row's sum is 1.

    Neither is proof of a cause: a gradient sees only small changes, and attention may be moved without changing what is
    predicted (Jain and Wallace 2019, arXiv:1902.10186); the encoder has mixed the tokens before attention looks.

    Args:
        model: encoder, decoder and head.
        params: its parameters.
        input_ids: [B, S].
        attention_mask: [B, S], 1 where a token is kept; None keeps all.
        labels: [B, T], the reply with its end token and without a start token; -100 is left out.
        method: one of `METHODS`.
        layer: with `cross_attention`, one layer instead of the mean of all; negative counts from the last.
        decoder_input_ids: [B, T], what the decoder reads; None makes them of the labels, with pad where those are -100.
            Give them to explain a few tokens of a reply and still read all of it.

    Returns:
        [B, T, S] float32; 0 where the label is -100 and at the prompt's padding.

    Raises:
        ValueError: another method, a layer the decoder does not have, gradients of quantised weights, and what
            `token_log_probs` refuses.
        TypeError: a model without encoder or head.

    Example:
        >>> batch, replies = tokenizer(["Do you like music?"]), tokenizer(["Yes, I do."])
        >>> weights = attribution(model, params, batch.input_ids, batch.attention_mask, replies.input_ids)
        >>> weights.shape == (1, replies.input_ids.shape[1], batch.input_ids.shape[1])
        True
    """
    _check_request(model, method, layer)
    check_ids("input_ids", input_ids, model.config.vocab_size)
    mask = np.ones(np.shape(input_ids), bool) if attention_mask is None else attention_mask
    check_mask("attention_mask", mask, "input_ids", np.shape(input_ids))
    given = {"input_ids": input_ids, "attention_mask": mask, "labels": labels, "decoder_input_ids": decoder_input_ids}
    inputs = checked(model, given)
    if method == "gradient_x_input":
        if is_quantized(params):
            raise ValueError("weights in 8 bits have no gradients: take method='cross_attention', or other weights")
        return _gradient_x_input(model, params, inputs)
    return _cross_attention(model, layer, params, inputs)


def _check_request(model: Any, method: str, layer: int | None) -> None:
    if not isinstance(model, BlenderbotForConditionalGeneration):
        raise TypeError(
            f"attribution leads from an encoder's tokens to a reply's, and {type(model).__name__} lacks encoder or "
            "head: load a BlenderbotForConditionalGeneration"
        )
    if method not in METHODS:
        raise ValueError(f"method is one of {', '.join(METHODS)}, not {method!r}")
    if layer is not None and method != "cross_attention":
        raise ValueError(f"layer={layer} picks a layer's attention, which {method} does not look at: leave it out")
    L = model.config.decoder_layers
    if method == "cross_attention" and not -L <= (layer or 0) < L:
        raise ValueError(f"layer={layer}, but this decoder has {L} layers, 0 to {L - 1}; -1 is the last")


@partial(jax.jit, static_argnums=0)
def _gradient_x_input(model: BlenderbotForConditionalGeneration, params: Params, inputs: dict[str, Any]) -> jax.Array:
    embeds = model.apply({"params": params}, inputs["input_ids"], method="embed_source")

    def log_probs(embeds: jax.Array) -> jax.Array:
        reply = {"decoder_input_ids": inputs["decoder_input_ids"], "inputs_embeds": embeds}
        return token_log_probs(model, params, None, inputs["attention_mask"], inputs["labels"], **reply)

    values, pull_back = jax.vjp(log_probs, embeds)
    places = jnp.arange(values.shape[1])

    def row(t: jax.Array) -> jax.Array:
        """[B, S] for place t: the rows of a batch do not touch, so one reverse pass serves them all."""
        [gradient] = pull_back(jnp.broadcast_to(places == t, values.shape).astype(values.dtype))
        return (gradient.astype(jnp.float32) * embeds.astype(jnp.float32)).sum(axis=-1)

    return _counted(jnp.moveaxis(jax.lax.map(row, places), 0, 1), inputs)


@partial(jax.jit, static_argnums=(0, 1))
def _cross_attention(
    model: BlenderbotForConditionalGeneration, layer: int | None, params: Params, inputs: dict[str, Any]
) -> jax.Array:
    attentions = model.apply({"params": params}, **inputs, output_attentions=True).cross_attentions
    layers = attentions if layer is None else attentions[layer:][:1]
    return _counted(jnp.stack([weights.mean(axis=1) for weights in layers]).mean(axis=0), inputs)


def _counted(weights: jax.Array, inputs: dict[str, Any]) -> jax.Array:
    """Weights [B, T, S] where the label counts and the source is no padding, 0 elsewhere."""
    labels, mask = jnp.asarray(inputs["labels"]), jnp.asarray(inputs["attention_mask"])
    return jnp.where((labels != IGNORED_LABEL)[:, :, None] & mask.astype(bool)[:, None, :], weights, 0)
