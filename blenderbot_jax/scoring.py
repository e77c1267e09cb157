"""Scoring: how likely a model finds each token of a reply that is given."""

from functools import partial
from typing import Any

import jax
import numpy as np

from blenderbot_jax.checks import check_ids, check_mask
from blenderbot_jax.model import IGNORED_LABEL, Params
from blenderbot_jax.model.conditional import LanguageModel
from blenderbot_jax.model.objective import label_log_probs

_ARRAYS = {"labels", "input_ids", "decoder_input_ids", "attention_mask", "encoder_attention_mask"}
_CAUSAL_REFUSALS = {
    "decoder_input_ids": "a causal model's decoder reads input_ids: put them there",
    "decoder_inputs_embeds": "a causal model's decoder reads inputs_embeds: put them there",
}
_SEQ2SEQ_REFUSALS = {
    "encoder_attention_mask": "it is a causal model's: here the mask over encoder_outputs is attention_mask",
}


def token_log_probs(
    model: LanguageModel,
    params: Params,
    input_ids: Any,
    attention_mask: Any,
    labels: Any,
    *,
    decoder_input_ids: Any = None,
    inputs_embeds: Any = None,
    decoder_inputs_embeds: Any = None,
    encoder_outputs: Any = None,
    encoder_attention_mask: Any = None,
) -> jax.Array:
    """Compute the log-probability of every token of a reply, given the prompt and the tokens before it.

    A pure function without dropout: it goes through `jit`, `grad`, `vmap` and `shard_map`, and is differentiable to the
    parameters and to all embeddings. The sum over T is log p(reply); exp(-mean) is the perplexity.

    Args:
        model: a `BlenderbotForConditionalGeneration`; or a `BlenderbotForCausalLM`, whose `input_ids`, mask and
            embeddings are the decoder's, [B, T], and whose labels are not shifted, as in its forward pass: labels[:, t]
            is what should follow input_ids[:, t].
        params: its parameters.
        input_ids: [B, S]; None with `inputs_embeds` or `encoder_outputs`.
        attention_mask: [B, S], 1 where a token is kept; None keeps all.
        labels: [B, T], the reply with its end token and without a start token; -100 is left out.
        decoder_input_ids: [B, T], what the decoder reads; None makes them of the labels, with pad where those are -100.
            Give them to leave out tokens that later ones are still to see.
        inputs_embeds: [B, S, D] from `embed_source`, instead of ids.
        decoder_inputs_embeds: [B, T, D] from `embed_target`, instead of the decoder's ids.
        encoder_outputs: [B, S, D] from `encode`, instead of running the encoder; for a causal model, what its
            cross-attention reads.
        encoder_attention_mask: [B, S] over `encoder_outputs`, for a causal model.

    Returns:
        [B, T] float32, log p(label) in nats; 0 where the label is -100.

    Raises:
        ValueError: ids out of the vocabulary (where they are concrete), too many positions, shapes that do not fit.
        TypeError: a model without a head, or an argument of the other kind of model.

    Example:
        >>> batch, replies = tokenizer(["Hello there!"]), tokenizer(["Hi, how are you?"])
        >>> log_probs = token_log_probs(model, params, batch.input_ids, batch.attention_mask, replies.input_ids)
        >>> log_probs.shape == replies.input_ids.shape, bool((log_probs < 0).all())
        (True, True)
    """
    given = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "decoder_input_ids": decoder_input_ids,
        "inputs_embeds": inputs_embeds,
        "decoder_inputs_embeds": decoder_inputs_embeds,
        "encoder_outputs": encoder_outputs,
        "encoder_attention_mask": encoder_attention_mask,
    }
    if not isinstance(model, LanguageModel):
        raise TypeError(
            f"only a model with a head gives probabilities, and {type(model).__name__} has none: load a "
            "BlenderbotForConditionalGeneration or a BlenderbotForCausalLM"
        )
    inputs = _model_inputs(model, checked(model, given))
    return _log_probs(model, params, inputs)


def checked(model: LanguageModel, given: dict[str, Any]) -> dict[str, Any]:
    """Refuse ids and masks with impossible values while they can be read: inside `jit` only shapes are checked.

    Args:
        model: for its vocabulary.
        given: arguments by name, `labels` among them; None stands for one that was left out.

    Returns:
        The same, with lists of ids made arrays.
    """
    arrays, size = dict(given), model.config.vocab_size
    check_ids("labels", given["labels"], size, ignore=IGNORED_LABEL)
    for name in ("input_ids", "decoder_input_ids"):
        if given.get(name) is not None:
            check_ids(name, given[name], size)
    for name in ("attention_mask", "encoder_attention_mask"):
        if given.get(name) is not None:
            # The forward pass compares its shape with that of what it lies over.
            check_mask(name, given[name], "itself", np.shape(given[name]))
    for name in _ARRAYS & given.keys():
        if isinstance(given[name], list | tuple):
            arrays[name] = np.asarray(given[name])
    return arrays


def _model_inputs(model: LanguageModel, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments under the names of the model's forward pass."""
    seq2seq = model.config.is_encoder_decoder
    for name, way_out in (_SEQ2SEQ_REFUSALS if seq2seq else _CAUSAL_REFUSALS).items():
        if given[name] is not None:
            raise TypeError(f"{name} means nothing to a {type(model).__name__}: {way_out}")
        del given[name]
    if not seq2seq:
        given["encoder_hidden_states"] = given.pop("encoder_outputs")
    return given


@partial(jax.jit, static_argnums=0)
def _log_probs(model: LanguageModel, params: Params, inputs: dict[str, Any]) -> jax.Array:
    return label_log_probs(model.apply({"params": params}, **inputs).logits, inputs["labels"])
