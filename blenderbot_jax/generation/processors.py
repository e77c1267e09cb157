"""The rules that bend a step's scores, in transformers' order, and the caller's own between them."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from blenderbot_jax.generation import cutoffs, rules
from blenderbot_jax.generation.plan import Plan, Settings
from blenderbot_jax.generation.step import Step, bar, ends_with

__all__ = ["ORDER", "Constraint", "CustomProcessor", "Processor", "Step", "ends_with", "process"]

Processor = Callable[[jax.Array, Step, Settings, Plan], jax.Array]
# (step) -> bool [B, K, V], or a shape that broadcasts to it: the tokens that may come next
Constraint = Callable[[Step], jax.Array]
# (scores [B, K, V], step) -> scores
CustomProcessor = Callable[[jax.Array, Step], jax.Array]

_BEFORE_BARS: dict[str, Processor] = {
    "sequence_bias": rules.sequence_bias,
    "encoder_repetition_penalty": rules.encoder_repetition_penalty,
    "repetition_penalty": rules.repetition_penalty,
}
_BARS: dict[str, Callable[[Step, Settings, Plan], rules.Barred]] = {
    "no_repeat_ngram": rules.no_repeat_ngram,
    "encoder_no_repeat_ngram": rules.encoder_no_repeat_ngram,
    "bad_words": rules.bad_words,
}
_BEFORE_CONSTRAINT: dict[str, Processor] = {"min_length": rules.min_length}
_BEFORE_CUSTOM: dict[str, Processor] = {
    "forced_bos": rules.forced_bos,
    "forced_eos": rules.forced_eos,
    "remove_invalid_values": rules.remove_invalid_values,
    "exponential_decay_length_penalty": rules.exponential_decay_length_penalty,
    "suppress_tokens": rules.suppress_tokens,
    "begin_suppress_tokens": rules.begin_suppress_tokens,
}
_AFTER_CUSTOM: dict[str, Processor] = {
    "temperature": cutoffs.temperature,
    "top_h": cutoffs.top_h,
    "top_k": cutoffs.top_k,
    "top_p": cutoffs.top_p,
    "min_p": cutoffs.min_p,
    "typical_p": cutoffs.typical_p,
    "epsilon_cutoff": cutoffs.epsilon_cutoff,
    "eta_cutoff": cutoffs.eta_cutoff,
    "renormalize_logits": rules.renormalize_logits,
}
# The order of transformers' `_get_logits_processor`. Its min_length and min_new_tokens are one rule here, because it
# overwrites the one where it finds the other.
ORDER: tuple[str, ...] = (*_BEFORE_BARS, *_BARS, *_BEFORE_CONSTRAINT, *_BEFORE_CUSTOM, *_AFTER_CUSTOM)


def process(
    scores: jax.Array,
    step: Step,
    settings: Settings,
    plan: Plan,
    constraint: Constraint | None = None,
    custom: Sequence[CustomProcessor] = (),
) -> jax.Array:
    """Apply the plan's rules in their order, and the caller's own among them.

    Args:
        scores: [B, K, V] float32: log-probabilities under beams, raw logits otherwise.
        step: the replies so far.
        settings, plan: how to decode.
        constraint: says which tokens may come next; it stands where transformers has `prefix_allowed_tokens_fn`, after
            `min_length` and before the forced tokens. Where it allows no token transformers raises; here every score
            of the row becomes -inf, because a compiled program cannot raise.
        custom: applied one after the other, after `begin_suppress_tokens` and before the rules of sampling.

    Returns:
        [B, K, V] float32.
    """

    def run(table: dict[str, Processor], scores: jax.Array) -> jax.Array:
        for name in plan.processors:
            if name in table:
                scores = table[name](scores, step, settings, plan)
        return scores

    scores = run(_BEFORE_BARS, scores)
    barred = [_BARS[name](step, settings, plan) for name in plan.processors if name in _BARS]
    if barred:
        tokens, where = (jnp.concatenate(parts, axis=-1) for parts in zip(*barred, strict=True))
        scores = bar(scores, tokens, where)
    scores = run(_BEFORE_CONSTRAINT, scores)
    if constraint is not None:
        scores = _constrained(scores, constraint(step), plan)
    scores = run(_BEFORE_CUSTOM, scores)
    for processor in custom:
        scores = processor(scores, step)
    return run(_AFTER_CUSTOM, scores)


def _constrained(scores: jax.Array, allowed: jax.Array, plan: Plan) -> jax.Array:
    """Bar what is not allowed; where that leaves nothing at all, the allowed tokens cost nothing instead.

    Nothing is left when every allowed token of a prompt's beams, or of a drawn row, had been barred before.
    """
    kept = jnp.where(allowed, scores, -jnp.inf)
    nothing_left = jnp.isneginf(kept.max(axis=-1, keepdims=True))
    if plan.searches:
        nothing_left = nothing_left.all(axis=1, keepdims=True)
    return jnp.where(nothing_left, jnp.where(allowed, jnp.zeros((), scores.dtype), -jnp.inf), kept)
