"""What only drawing uses: temperature, and the rules that cut the unlikely tokens off.

They take and return what the other rules do (`rules.py`). Each keeps at least one token; beam sampling keeps one more
than there are end tokens, so that a beam can run on. Formulas and their order of operations are those of transformers 5
(`logits_process.py`), thresholds and ties among them.

A compiler may compute a value twice, and the two may differ in the last bit. So no rule compares a score with a
threshold that was taken from another copy of the scores: that could cut off the very token that set it. Thresholds and
what they are compared with come out of one sort.
"""

import jax
import jax.numpy as jnp

from blenderbot_jax.generation.plan import Plan, Settings
from blenderbot_jax.generation.step import Step, mark

_TOP_H_TOKENS = 100


def temperature(scores: jax.Array, step: Step, settings: Settings, plan: Plan) -> jax.Array:
    """Divide the scores."""
    del step, plan
    return scores / settings.temperature[:, None, None]


def top_h(scores: jax.Array, step: Step, settings: Settings, plan: Plan) -> jax.Array:
    """Keep the likeliest tokens while their part of the entropy stays within a share of it; the likeliest always stays.

    Only the 100 likeliest are looked at, and the entropy is theirs. Source: Potraghloo et al. 2025, "Top-H Decoding".
    """
    del step, plan
    best, tokens = jax.lax.top_k(scores, min(_TOP_H_TOKENS, scores.shape[-1]))
    log_probs = jax.nn.log_softmax(best, axis=-1)
    probs = jax.nn.softmax(log_probs, axis=-1)
    limit = _entropy(log_probs, probs) * settings.top_h[:, None, None]
    # What has no probability has no part; infinity keeps it out without a NaN.
    parts = jnp.where(probs > 0, -probs * jnp.log(probs), jnp.inf)
    kept = (jnp.cumsum(parts, axis=-1) <= limit).at[..., 0].set(True)
    return jnp.where(mark(scores.shape, tokens, kept), scores, -jnp.inf)


def top_k(scores: jax.Array, step: Step, settings: Settings, plan: Plan) -> jax.Array:
    """Keep the k best scores, and those equal to the k-th. Source: Fan et al. 2018."""
    del step
    return likeliest(scores, settings.top_k, _least(settings, plan))


def likeliest(scores: jax.Array, k: jax.Array, least: int = 1) -> jax.Array:
    """Keep the best scores [B, K, V], `k` [1 or B] but no fewer than `least`, and those equal to the last of them."""
    V = scores.shape[-1]
    ascending, order = _sorted(scores)
    k = jnp.clip(k, min(least, V), V)
    place = jnp.broadcast_to(V - k[:, None, None], (*scores.shape[:-1], 1))
    return _drop(scores, ascending < jnp.take_along_axis(ascending, place, axis=-1), order)


def top_p(scores: jax.Array, step: Step, settings: Settings, plan: Plan) -> jax.Array:
    """Drop the unlikeliest tokens that together hold at most 1 - p; the likeliest always stays.

    Among equal scores the later token stays longer. Source: Holtzman et al. 2020, "The Curious Case of Neural Text
    Degeneration".
    """
    del step
    return nucleus(scores, settings.top_p_tail[:, None, None], _least(settings, plan))


def nucleus(scores: jax.Array, tail: jax.Array, least: int = 1) -> jax.Array:
    """Drop the unlikeliest of the tokens [B, K, V] that together hold at most `tail`, 1 - p, but keep the `least` best.

    Args:
        scores: [B, K, V].
        tail: in a shape that broadcasts to [B, K, 1].
        least: how many stay in any case.
    """
    ascending, order = _sorted(scores)
    below = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1)
    dropped = (below <= tail).at[..., -least:].set(False)
    return _drop(scores, dropped, order)


def min_p(scores: jax.Array, step: Step, settings: Settings, plan: Plan) -> jax.Array:
    """Drop tokens less than a fraction as likely as the likeliest. Source: Nguyen et al. 2024, "Min-p Sampling"."""
    del step
    probs = jax.nn.softmax(scores, axis=-1)
    dropped = probs < settings.min_p[:, None, None] * probs.max(axis=-1, keepdims=True)
    best = jax.lax.top_k(probs, min(_least(settings, plan), scores.shape[-1]))[1]
    return jnp.where(dropped & ~mark(scores.shape, best, True), -jnp.inf, scores)


def typical_p(scores: jax.Array, step: Step, settings: Settings, plan: Plan) -> jax.Array:
    """Keep the tokens whose surprise is nearest to the entropy until they hold p; ties with the last one stay.

    Source: Meister et al. 2022, "Locally Typical Sampling".
    """
    del step
    log_probs = jax.nn.log_softmax(scores, axis=-1)
    distance, order = _sorted(jnp.abs(-log_probs - _entropy(log_probs, jnp.exp(log_probs))))
    held = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(scores, order, axis=-1), axis=-1), axis=-1)
    count = (held < settings.typical_p[:, None, None]).sum(axis=-1, keepdims=True)
    final = jnp.take_along_axis(distance, jnp.minimum(count, scores.shape[-1] - 1), axis=-1)
    return _drop(scores, (distance > final).at[..., : _least(settings, plan)].set(False), order)


def epsilon_cutoff(scores: jax.Array, step: Step, settings: Settings, plan: Plan) -> jax.Array:
    """Drop tokens of less than a probability. Source: Hewitt et al. 2022, "Truncation Sampling"."""
    del step
    return _drop_below(scores, settings.epsilon_cutoff[:, None, None], settings, plan)


def eta_cutoff(scores: jax.Array, step: Step, settings: Settings, plan: Plan) -> jax.Array:
    """Drop tokens of less than min(eta, sqrt(eta) * exp(-entropy)). Source: Hewitt et al. 2022, eta sampling."""
    del step
    log_probs = jax.nn.log_softmax(scores, axis=-1)
    entropy = _entropy(log_probs, jax.nn.softmax(log_probs, axis=-1))
    eta = settings.eta_cutoff[:, None, None]
    return _drop_below(scores, jnp.minimum(eta, jnp.sqrt(eta) * jnp.exp(-entropy)), settings, plan)


def _drop_below(scores: jax.Array, threshold: jax.Array, settings: Settings, plan: Plan) -> jax.Array:
    """Drop tokens of less than a probability, but none of the best scores, ties with the last of them included."""
    ascending, order = _sorted(scores)
    floor = ascending[..., -min(_least(settings, plan), scores.shape[-1]), None]
    return _drop(scores, (jax.nn.softmax(ascending, axis=-1) < threshold) & (ascending < floor), order)


def _sorted(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Values in ascending order, the earlier of equal ones first, and the tokens [B, K, V] they belong to."""
    tokens = jax.lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1)
    ordered, order = jax.lax.sort((values, tokens), num_keys=1)
    return ordered, order


def _drop(scores: jax.Array, dropped: jax.Array, order: jax.Array) -> jax.Array:
    """Bar the tokens `order` where `dropped`, [B, K, V] each in the order of a sort."""
    return jnp.where(jnp.put_along_axis(dropped, order, dropped, axis=-1, inplace=False), -jnp.inf, scores)


def _entropy(log_probs: jax.Array, probs: jax.Array) -> jax.Array:
    """[B, K, 1]; what has no probability has no part."""
    return -jnp.where(probs > 0, log_probs * probs, 0).sum(axis=-1, keepdims=True)


def _least(settings: Settings, plan: Plan) -> int:
    """How many tokens a rule leaves at least."""
    return max(2, settings.eos_tokens.shape[-1] + 1) if plan.mode == "beam_sample" else 1
