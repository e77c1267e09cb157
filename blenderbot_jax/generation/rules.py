"""The rules that penalise, bar or force tokens, whether or not tokens are drawn.

Each takes scores [B, K, V] (log-probabilities under beams, raw logits otherwise), the step so far, the settings and the
plan, and returns scores. The three that bar a few tokens, whatever their scores, return these tokens instead, so that
one write bars them all. Formulas and their order of operations are those of transformers 5 (`logits_process.py`).
"""

import jax
import jax.numpy as jnp

from blenderbot_jax.generation.plan import Plan, Settings
from blenderbot_jax.generation.step import Step, among, last, mark, tails_match

# Tokens [B, K, M], and [B, K, M] which of them are barred.
Barred = tuple[jax.Array, jax.Array]


def sequence_bias(scores: jax.Array, step: Step, settings: Settings, plan: Plan) -> jax.Array:
    """Add each sequence's bias to its last token where its other tokens end the reply so far."""
    del plan
    sequences = settings.sequence_bias_ids
    matches = tails_match(step.tokens, step.length, sequences[..., :-1])
    added = jnp.where(matches, settings.sequence_biases[:, None], 0)
    B, K, V = scores.shape
    # Unused places end in -1; an index past the end is dropped.
    ends = jnp.where(sequences[..., -1] < 0, V, sequences[..., -1])
    places = (jnp.arange(B)[:, None, None], jnp.arange(K)[:, None], ends[:, None])
    return scores + jnp.zeros_like(scores).at[places].add(added.astype(scores.dtype), mode="drop")


def encoder_repetition_penalty(scores: jax.Array, step: Step, settings: Settings, plan: Plan) -> jax.Array:
    """Scores of the prompt's tokens gain by the penalty; the caller's own pads count as tokens."""
    del plan
    assert step.source_ids is not None
    own = jnp.arange(step.source_ids.shape[-1]) < settings.source_width[:, None]
    seen = mark((scores.shape[0], 1, scores.shape[-1]), step.source_ids[:, None], own[:, None])
    return _rescale(scores, seen, settings.encoder_repetition_factor)


def repetition_penalty(scores: jax.Array, step: Step, settings: Settings, plan: Plan) -> jax.Array:
    """Scores of tokens already in the reply are divided by the penalty if positive, multiplied if negative.

    Source: Keskar et al. 2019, "CTRL"; the treatment of negative scores is that of transformers.
    """
    del plan
    seen = mark(scores.shape, step.tokens, jnp.arange(step.tokens.shape[-1]) < step.length)
    return _rescale(scores, seen, settings.repetition_penalty)


def no_repeat_ngram(step: Step, settings: Settings, plan: Plan) -> Barred:
    """The tokens that would repeat an n-gram of the reply; the start token counts as part of it."""
    del settings
    return _completions(step, step.tokens, step.length[None], plan.no_repeat_ngram_size)


def encoder_no_repeat_ngram(step: Step, settings: Settings, plan: Plan) -> Barred:
    """The tokens that would complete an n-gram of the prompt; its `</s>` and the caller's own pads count."""
    assert step.source_ids is not None
    prompts = step.source_ids[:, None, :]
    return _completions(step, prompts, settings.source_width, plan.encoder_no_repeat_ngram_size)


def bad_words(step: Step, settings: Settings, plan: Plan) -> Barred:
    """The last token of every word whose other tokens end the reply so far."""
    del plan
    words = settings.bad_words
    matches = tails_match(step.tokens, step.length, words[..., :-1])
    ends = words[:, None, :, -1]
    return jnp.broadcast_to(ends, matches.shape), matches & (ends >= 0)


def min_length(scores: jax.Array, step: Step, settings: Settings, plan: Plan) -> jax.Array:
    """Bar the end tokens while the reply, decoder prompt included, is shorter than `min_length`."""
    del plan
    too_short = step.length < settings.min_length[:, None, None]
    return jnp.where(too_short & among(settings.eos_tokens, scores.shape[-1]), -jnp.inf, scores)


def forced_bos(scores: jax.Array, step: Step, settings: Settings, plan: Plan) -> jax.Array:
    """Let nothing but the forced token follow a lone start token, at no cost; a longer decoder prompt is past that."""
    del plan
    return jnp.where(step.length == 1, _only(settings.forced_bos_token[:, None], scores), scores)


def forced_eos(scores: jax.Array, step: Step, settings: Settings, plan: Plan) -> jax.Array:
    """Let nothing but the forced end tokens stand in the last place, at no cost."""
    del plan
    is_last = step.length == settings.max_length[:, None, None] - 1
    return jnp.where(is_last, _only(settings.forced_eos_tokens, scores), scores)


def remove_invalid_values(scores: jax.Array, step: Step, settings: Settings, plan: Plan) -> jax.Array:
    """NaN becomes 0, an infinity the greatest or least finite number.

    A token that an earlier rule has barred then stands at the least finite number, as in transformers: it loses to
    every other, and is found where there is no other.
    """
    del step, settings, plan
    limits = jnp.finfo(scores.dtype)
    return jnp.nan_to_num(scores, nan=0.0, posinf=limits.max, neginf=limits.min)


def exponential_decay_length_penalty(scores: jax.Array, step: Step, settings: Settings, plan: Plan) -> jax.Array:
    """After a number of new tokens, raise the end tokens by |score| * (factor ** (tokens since) - 1)."""
    del plan
    table = settings.length_decay
    generated = jnp.broadcast_to(step.length - settings.prompt_length, table.shape[:1])
    growth = jnp.take_along_axis(table, generated[:, None], axis=1)[..., None]
    # A barred end token stays barred, and no infinity meets a zero.
    raised = among(settings.eos_tokens, scores.shape[-1]) & jnp.isfinite(scores)
    return jnp.where(raised, scores + jnp.abs(scores) * growth, scores)


def suppress_tokens(scores: jax.Array, step: Step, settings: Settings, plan: Plan) -> jax.Array:
    """Bar some tokens."""
    del step, plan
    return jnp.where(_listed(settings.suppress_tokens, scores.shape[-1]), -jnp.inf, scores)


def begin_suppress_tokens(scores: jax.Array, step: Step, settings: Settings, plan: Plan) -> jax.Array:
    """Bar some tokens as the first of a reply; where a first token is forced, as the second."""
    del plan
    begins = step.length == settings.begin_length[:, None, None]
    return jnp.where(begins & _listed(settings.begin_suppress_tokens, scores.shape[-1]), -jnp.inf, scores)


def renormalize_logits(scores: jax.Array, step: Step, settings: Settings, plan: Plan) -> jax.Array:
    """Make the scores log-probabilities."""
    del step, settings, plan
    return jax.nn.log_softmax(scores, axis=-1)


def _rescale(scores: jax.Array, seen: jax.Array, penalty: jax.Array) -> jax.Array:
    """Scores of seen tokens, divided by the penalty [1 or B] if positive, multiplied if negative."""
    penalty = penalty[:, None, None]
    return jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)


def _only(tokens: jax.Array, scores: jax.Array) -> jax.Array:
    """0 at the tokens [1 or B, E], -inf elsewhere: [1 or B, 1, V]."""
    return jnp.where(among(tokens, scores.shape[-1]), jnp.zeros((), scores.dtype), -jnp.inf)


def _listed(tokens: jax.Array, V: int) -> jax.Array:
    """A bool array [1 or B, 1, V], True at the tokens [1 or B, W]; -1 is no token."""
    return mark((tokens.shape[0], 1, V), tokens[:, None], tokens[:, None] >= 0)


def _completions(step: Step, text: jax.Array, width: jax.Array, n: int) -> Barred:
    """What would complete an n-gram of `text` [B, 1 or K, S], of which the first `width` [1 or B] places count."""
    # A text that is shorter than an n-gram has no place for one to start.
    starts = max(text.shape[-1] - n + 1, 0)
    recent = last(step.tokens, step.length, n - 1)
    matches = (jnp.arange(starts) + n <= width[:, None])[:, None] & (step.length >= n - 1)
    for i in range(n - 1):
        matches = matches & (text[..., i : i + starts] == recent[..., i : i + 1])
    shape = (*step.tokens.shape[:2], starts)
    return jnp.broadcast_to(text[..., n - 1 : n - 1 + starts], shape), jnp.broadcast_to(matches, shape)
