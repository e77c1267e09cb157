"""generate: from a caller's prompts to replies."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import numpy as np

from blenderbot_jax.checks import Refusals, concrete, refuse_arguments
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.generation.config import GenerationConfig
from blenderbot_jax.generation.decode import decode
from blenderbot_jax.generation.inputs import check_context, check_key
from blenderbot_jax.generation.plan import LENGTH_BUCKETS
from blenderbot_jax.generation.processors import Constraint, CustomProcessor
from blenderbot_jax.generation.replay import Recording
from blenderbot_jax.generation.request import request
from blenderbot_jax.generation.sampling import Replies, prompt_keys
from blenderbot_jax.generation.speculation import Draft
from blenderbot_jax.parallel import gathered, mesh_of, spread

# Arguments of transformers' generate -> the values that ask for nothing, and what to do instead.
_REFUSALS: Refusals = {
    "inputs": ((None,), "the prompts are input_ids"),
    "generation_config": ((None,), "say config=GenerationConfig(...)"),
    "logits_processor": ((None,), "say processors=(f, ...), pure functions of (scores, step)"),
    "stopping_criteria": ((None,), "say stop_sequences=[[ids], ...]; a compiled loop calls no Python"),
    "streamer": ((None,), "a compiled loop calls no Python: decode in pieces, each with the last as decoder_input_ids"),
    "assistant_model": ((None,), "say draft=Draft(model, params), or leave it out"),
    "tokenizer": ((None,), "decoding knows ids alone: pass stop_sequences=[[ids], ...]"),
    "synced_gpus": ((None, False), "leave it out"),
    "negative_prompt_ids": ((None,), "guidance is not implemented: combine scores in processors="),
    "negative_prompt_attention_mask": ((None,), "guidance is not implemented: combine scores in processors="),
    "use_model_defaults": ((None, False), "a config says all there is: GenerationConfig.from_pretrained(folder)"),
    "custom_generate": ((None,), "write the loop with encode, prefill and decode_step"),
    "decoder_attention_mask": ((None,), "all rows of decoder_input_ids have one length"),
    "decoder_inputs_embeds": ((None,), "replies begin with ids: pass decoder_input_ids"),
    "past_key_values": ((None,), "continue from ids: pass the reply so far as decoder_input_ids"),
}


class GenerativeModel(Protocol):
    """What decoding needs of a model: a hashable module with `encode`, `prefill` and `decode_step`."""

    config: BlenderbotConfig

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a method on parameters."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GenerateOutput:
    """Replies for B prompts, R each, best first.

    What stands below `token_log_probs` is None unless the configuration asks for it (`output_scores`, `output_logits`,
    `output_attentions`, `output_hidden_states`). T is max_length - 1: the last token is never read.
    """

    sequences: jax.Array
    """[B, R, max_length] int32: the start token (or the decoder's prompt), the reply, its end token, then pad."""
    lengths: jax.Array
    """[B, R] int32: tokens up to and with the end token, start or prompt included."""
    scores: jax.Array
    """[B, R] float32: summed log-probabilities; under beams divided by generated tokens ** length_penalty."""
    token_log_probs: jax.Array
    """[B, R, max_length] float32: each token's log-probability after the rules; 0 in the prompt and after the end."""
    step_scores: jax.Array | None = None
    """[B, R, max_length, V] float32: at place t, the scores after the rules that token t was chosen by."""
    step_logits: jax.Array | None = None
    """[B, R, max_length, V] float32: at place t, the model's own logits for token t."""
    decoder_attentions: tuple[jax.Array, ...] | None = None
    """L arrays [B, R, N, T, T]: where in the reply each place looks."""
    cross_attentions: tuple[jax.Array, ...] | None = None
    """L arrays [B, R, N, T, S]: where in the prompt each place of the reply looks."""
    decoder_hidden_states: tuple[jax.Array, ...] | None = None
    """L + 1 arrays [B, R, T, D]."""
    encoder_attentions: tuple[jax.Array, ...] | None = None
    """L arrays [B, N, S, S]."""
    encoder_hidden_states: tuple[jax.Array, ...] | None = None
    """L + 1 arrays [B, S, D]."""
    rounds: jax.Array | None = None
    """Scalar int32, with a draft: the model's steps, each of which gave 1 to `draft.tokens` + 1 tokens of every row."""


def generate(
    model: GenerativeModel,
    params: Any,
    input_ids: Any = None,
    attention_mask: Any = None,
    *,
    config: GenerationConfig,
    key: jax.Array | None = None,
    decoder_input_ids: Any = None,
    encoder_outputs: Any = None,
    encoder_attention_mask: Any = None,
    inputs_embeds: Any = None,
    processors: Sequence[CustomProcessor] = (),
    prefix_allowed_tokens_fn: Constraint | None = None,
    stop_sequences: Sequence[Sequence[int]] = (),
    widths: Sequence[int] = LENGTH_BUCKETS,
    draft: Draft | None = None,
    context_ids: Any = None,
    **others: Any,
) -> GenerateOutput:
    """Decode replies.

    Args:
        model: a `BlenderbotForConditionalGeneration`, or a `BlenderbotForCausalLM`, which continues `input_ids`.
        params: its parameters.
        input_ids: [B, S] prompts.
        attention_mask: [B, S], 1 where a token is kept; None keeps what is not the pad token.
        config: how to decode.
        key: a `jax.random.key`; needed for sampling, refused otherwise.
        decoder_input_ids: [B, P] that every reply begins with; the start token is put in front where it is missing (but
            not in traced ids, whose values are unknown).
        encoder_outputs: [B, S, D] from `encode`, instead of running the encoder; rules that look at the prompt's ids
            need `input_ids` beside it. For a causal model: what its cross-attention reads.
        encoder_attention_mask: [B, S] over `encoder_outputs`, for a causal model.
        inputs_embeds: [B, S, D] from `embed_source`, instead of ids.
        processors: pure functions (scores [B, K, V], step) -> scores, after the configuration's rules and before those
            of sampling. A function is part of the program; `jax.tree_util.Partial(f, arrays)` keeps arrays data.
        prefix_allowed_tokens_fn: a pure function (step) -> bool [B, K, V], the tokens that may come next.
        stop_sequences: sequences of ids, each of which ends a reply as `</s>` does.
        widths: what prompts are padded to, ascending, one program each; `choose_buckets` finds those that fit some
            lengths best. Past the last the library's own go on.
        draft: a smaller model that drafts tokens for this one to confirm, greedily or with the same key: the replies
            are the same up to rounding, and may come sooner. Not for beams.
        context_ids: B rows of ids, of any lengths: what `encoder_no_repeat_ngram_size` and `encoder_repetition_penalty`
            look at in place of the prompts, such as whole conversations that the prompts hold the end of.
        others: further arguments of transformers, refused by name unless they ask for nothing.

    Returns:
        A `GenerateOutput`.

    Raises:
        ValueError: ids out of the vocabulary, prompts or replies longer than the model's positions, a key too many or
            too few. Values are checked where they are concrete, so not inside another `jit`.
        TypeError: an argument there is nothing to do for, with what to do instead.

    Example:
        >>> batch = tokenizer(["Hello there!", "Do you like music?"])
        >>> out = generate(model, params, batch.input_ids, batch.attention_mask, config=GenerationConfig(num_beams=4))
        >>> replies = tokenizer.batch_decode(out.sequences[:, 0], skip_special_tokens=True)
        >>> len(replies)
        2
    """
    _refuse(others)
    check_key(config, key)
    check_context(config, context_ids)
    given = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "decoder_input_ids": decoder_input_ids,
        "encoder_outputs": encoder_outputs,
        "encoder_attention_mask": encoder_attention_mask,
        "inputs_embeds": inputs_embeds,
    }
    rules = processors, prefix_allowed_tokens_fn, stop_sequences
    batch = request(model.config, config, given, *rules, widths, draft, context_ids)
    keys = None if key is None else prompt_keys(key, batch.inputs.shape[0])
    inputs, task, keys = spread(mesh_of(params), (batch.inputs, batch.task, keys), rows=batch.inputs.shape[0])
    replies, recording = gathered(decode(model, batch.plan, params, inputs, task, keys, draft))
    return _cropped(replies, recording, batch.shape, batch.max_length)


def _refuse(others: dict[str, Any]) -> None:
    for name in others:
        if name in GenerationConfig.__dataclass_fields__:
            raise TypeError(f"generate takes {name} in its config: GenerationConfig({name}=...), or config.replace")
    refuse_arguments("generate", others, _REFUSALS)


def _cropped(replies: Replies, recording: Recording, shape: tuple[int, int, int], length: int) -> GenerateOutput:
    """The caller's own part of a bucket."""
    B, S, _ = shape
    T = length - 1
    layers = partial(jax.tree.map, is_leaf=lambda leaf: leaf is None)
    return GenerateOutput(
        sequences=_crop(replies.tokens, np.s_[:B, :, :length]),
        lengths=_crop(replies.lengths, np.s_[:B]),
        scores=_crop(replies.scores, np.s_[:B]),
        token_log_probs=_crop(replies.log_probs, np.s_[:B, :, :length]),
        step_scores=_crop(recording.scores, np.s_[:B, :, :length]),
        step_logits=_crop(recording.logits, np.s_[:B, :, :length]),
        decoder_attentions=layers(lambda a: _crop(a, np.s_[:B, :, :, :T, :T]), recording.decoder_attentions),
        cross_attentions=layers(lambda a: _crop(a, np.s_[:B, :, :, :T, :S]), recording.cross_attentions),
        decoder_hidden_states=layers(lambda a: _crop(a, np.s_[:B, :, :T]), recording.decoder_hidden_states),
        encoder_attentions=layers(lambda a: _crop(a, np.s_[:B, :, :S, :S]), recording.encoder_attentions),
        encoder_hidden_states=layers(lambda a: _crop(a, np.s_[:B, :S]), recording.encoder_hidden_states),
        rounds=recording.rounds,
    )


def _crop(array: Any, part: Any) -> Any:
    """Cut in numpy and put back, because slicing and `jnp.asarray` compile a program for every size."""
    if array is None:
        return None
    values = concrete(array)
    return array[part] if values is None else jax.device_put(values[part])
