"""The rules that bend a step's scores, as pure functions.

Each takes scores [B, K, V] (log-probabilities under beams, raw logits otherwise), the step so far and the settings, and
returns scores. `ORDER` is the order of transformers' `_get_logits_processor`; sampling's own rules come last.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from blenderbot_jax.generation.plan import Plan, Settings


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Step:
    """What the rules may look at."""

    tokens: jax.Array
    """[B, K, C] int32: the replies so far; meaningless from `length` on."""
    length: jax.Array
    """Scalar int32: tokens so far, start token included."""
    source_ids: jax.Array
    """[B, S] int32: the prompts."""


Processor = Callable[[jax.Array, Step, Settings, Plan], jax.Array]


def process(scores: jax.Array, step: Step, settings: Settings, plan: Plan) -> jax.Array:
    """Apply the plan's rules in their order."""
    for name in plan.processors:
        scores = ORDER[name](scores, step, settings, plan)
    return scores


def repetition_penalty(scores: jax.Array, step: Step, settings: Settings, plan: Plan) -> jax.Array:
    """Scores of tokens already in the reply are divided by the penalty if positive, multiplied if negative."""
    del plan
    seen = _mark(scores.shape, step.tokens, jnp.arange(step.tokens.shape[-1]) < step.length)
    penalty = settings.repetition_penalty[:, None, None]
    return jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)


def no_repeat_ngram(scores: jax.Array, step: Step, settings: Settings, plan: Plan) -> jax.Array:
    """Bar the tokens that would repeat an n-gram of the reply; the start token counts as part of it."""
    del settings
    return _bar_completions(scores, step, step.tokens, step.length[None], plan.no_repeat_ngram_size)


def encoder_no_repeat_ngram(scores: jax.Array, step: Step, settings: Settings, plan: Plan) -> jax.Array:
    """Bar the tokens that would complete an n-gram of the prompt; its `</s>` and the caller's own pads count."""
    prompts = step.source_ids[:, None, :]
    return _bar_completions(scores, step, prompts, settings.source_width, plan.encoder_no_repeat_ngram_size)


def bad_words(scores: jax.Array, step: Step, settings: Settings, plan: Plan) -> jax.Array:
    """Bar the last token of every word whose other tokens end the reply so far."""
    del plan
    words = settings.bad_words[:, None]
    *_, n = words.shape
    recent = _last(step, n - 1)[:, :, None, :]
    # Places before the reply's first token never match; unused places of a short word match anything.
    exists = jnp.arange(n - 1) >= n - 1 - step.length
    prefix = words[..., :-1]
    matches = ((prefix < 0) | (exists & (prefix == recent))).all(axis=-1) & (words[..., -1] >= 0)
    last = jnp.broadcast_to(words[..., -1], matches.shape)
    return _bar(scores, last, matches)


def min_length(scores: jax.Array, step: Step, settings: Settings, plan: Plan) -> jax.Array:
    """Bar the end tokens while the reply, start token included, is shorter than `min_length`."""
    del plan
    too_short = step.length < settings.min_length[:, None]
    is_end = (jnp.arange(scores.shape[-1]) == settings.eos_tokens[..., None]).any(axis=1)
    return jnp.where((too_short & is_end)[:, None], -jnp.inf, scores)


def forced_eos(scores: jax.Array, step: Step, settings: Settings, plan: Plan) -> jax.Array:
    """Let nothing but the forced end tokens stand in the last place, at no cost."""
    del plan
    is_last = step.length == settings.max_length[:, None, None] - 1
    is_end = (jnp.arange(scores.shape[-1]) == settings.forced_eos_tokens[..., None]).any(axis=1)[:, None]
    return jnp.where(is_last, jnp.where(is_end, jnp.zeros_like(scores), -jnp.inf), scores)


def temperature(scores: jax.Array, step: Step, settings: Settings, plan: Plan) -> jax.Array:
    """Divide the scores."""
    del step, plan
    return scores / settings.temperature[:, None, None]


def top_k(scores: jax.Array, step: Step, settings: Settings, plan: Plan) -> jax.Array:
    """Keep the k best scores, and those equal to the k-th."""
    del step, plan
    ascending = jnp.sort(scores, axis=-1)
    place = jnp.broadcast_to(scores.shape[-1] - settings.top_k[:, None, None], (*scores.shape[:-1], 1))
    return jnp.where(scores < jnp.take_along_axis(ascending, place, axis=-1), -jnp.inf, scores)


def top_p(scores: jax.Array, step: Step, settings: Settings, plan: Plan) -> jax.Array:
    """Drop the unlikeliest tokens that together hold at most 1 - p; the likeliest always stays."""
    del step, plan
    order = jnp.argsort(scores, axis=-1)
    below = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(scores, order, axis=-1), axis=-1), axis=-1)
    dropped = (below <= 1 - settings.top_p[:, None, None]).at[..., -1].set(False)
    return jnp.where(jnp.put_along_axis(dropped, order, dropped, axis=-1, inplace=False), -jnp.inf, scores)


ORDER: dict[str, Processor] = {
    "repetition_penalty": repetition_penalty,
    "no_repeat_ngram": no_repeat_ngram,
    "encoder_no_repeat_ngram": encoder_no_repeat_ngram,
    "bad_words": bad_words,
    "min_length": min_length,
    "forced_eos": forced_eos,
    "temperature": temperature,
    "top_k": top_k,
    "top_p": top_p,
}


def _last(step: Step, count: int) -> jax.Array:
    """The last `count` tokens [B, K, count]; places before the first hold whatever stands at the front."""
    places = step.length - count + jnp.arange(count)
    return jnp.take(step.tokens, jnp.maximum(places, 0), axis=-1)


def _bar_completions(scores: jax.Array, step: Step, text: jax.Array, width: jax.Array, n: int) -> jax.Array:
    """Bar what would complete an n-gram of `text` [B, 1 or K, S], of which the first `width` [1 or B] places count."""
    if text.shape[-1] < n:
        return scores
    starts = text.shape[-1] - n + 1
    recent = _last(step, n - 1)
    matches = (jnp.arange(starts) + n <= width[:, None])[:, None] & (step.length >= n - 1)
    for i in range(n - 1):
        matches = matches & (text[..., i : i + starts] == recent[..., i : i + 1])
    matches, following = jnp.broadcast_arrays(matches, text[..., n - 1 :])
    shape = (*scores.shape[:2], starts)
    return _bar(scores, jnp.broadcast_to(following, shape), jnp.broadcast_to(matches, shape))


def _bar(scores: jax.Array, tokens: jax.Array, where: jax.Array) -> jax.Array:
    """Set the scores of `tokens` [B, K, M] to -inf where `where` [B, K, M] holds."""
    return jnp.where(_mark(scores.shape, tokens, where), -jnp.inf, scores)


def _mark(shape: tuple[int, ...], tokens: jax.Array, where: jax.Array) -> jax.Array:
    """A bool array [B, K, V], True at `tokens` [B, K, M] where `where` holds."""
    B, K, V = shape
    # An index past the end is dropped, so unwanted tokens mark nothing.
    places = jnp.where(where, tokens, V)
    return (
        jnp.zeros(shape, bool).at[jnp.arange(B)[:, None, None], jnp.arange(K)[:, None], places].set(True, mode="drop")
    )
