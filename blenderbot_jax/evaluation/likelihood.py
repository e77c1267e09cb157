"""How likely a model finds the replies of a corpus: loss, perplexity and token accuracy over batches of fixed shape."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blenderbot_jax.checks import check_ids
from blenderbot_jax.dense import densely
from blenderbot_jax.model import IGNORED_LABEL, shift_tokens_right
from blenderbot_jax.model.objective import label_log_probs
from blenderbot_jax.parallel import mesh_of

_NAMES = ("input_ids", "attention_mask", "labels")


@dataclass(frozen=True)
class Likelihood:
    """What was counted over replies that were given; figures of parts add up to those of the whole.

    Example:
        >>> whole = Likelihood(nats=6.0, correct=1, tokens=2, examples=1) + Likelihood(0.0, 2, 2, 1)
        >>> whole.loss, round(whole.perplexity, 3), whole.token_accuracy
        (1.5, 4.482, 0.75)
    """

    nats: float = 0.0
    """Sum of -log p(token)."""
    correct: int = 0
    """Tokens that the model finds likeliest of all, given the ones before them."""
    tokens: int = 0
    """Tokens counted, end tokens included."""
    examples: int = 0
    """Replies with at least one token that counts."""

    @property
    def loss(self) -> float:
        """Mean of -log p(token) in nats; nan of nothing."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp(loss), by token."""
        # exp of more is no float64.
        return math.exp(self.loss) if not self.loss > 709 else math.inf

    @property
    def token_accuracy(self) -> float:
        """The share of tokens that the model finds likeliest; nan of nothing."""
        return self.correct / self.tokens if self.tokens else math.nan

    def __add__(self, other: "Likelihood") -> "Likelihood":
        return Likelihood(
            self.nats + other.nats,
            self.correct + other.correct,
            self.tokens + other.tokens,
            self.examples + other.examples,
        )


def likelihood(model: Any, params: Any, batches: Iterable[Mapping[str, Any]]) -> Likelihood:
    """Measure a model on replies that are given, without dropout.

    A program is compiled for each shape of batch, so a validation that runs again compiles nothing. Sums of a batch are
    float32 on the device, sums over batches float64; the next batch runs while the last one is fetched.

    Args:
        model: a `BlenderbotForConditionalGeneration` or an `Ensemble`, in any dtype; logits are float32.
        params: its parameters, sharded or not.
        batches: of `input_ids` and `attention_mask` [B, S], and `labels` [B, T] with -100 where nothing counts: in
            padding, and in rows that only fill a batch. numpy, or arrays that lie where the caller put them.

    Returns:
        Sums over all batches, with the means among its properties.

    Raises:
        ValueError: ids out of the vocabulary in numpy arrays, a batch that lacks an array, or no token that counts.

    Example:
        >>> batch = {"input_ids": [[300, 2]], "attention_mask": [[1, 1]], "labels": [[310, 320, 2, -100]]}
        >>> found = likelihood(model, params, [{name: np.array(rows) for name, rows in batch.items()}])
        >>> found.tokens, found.examples, found.perplexity > 1
        (3, 1, True)
    """
    total, pending = Likelihood(), None
    whole = isinstance(params, Mapping) and mesh_of(params) is None
    for batch in batches:
        # Fetched one batch late, so that the device need not wait for the host.
        running = _sums(model, whole, params, _checked(model, batch))
        total += _fetched(pending)
        pending = running
    total += _fetched(pending)
    if not total.tokens:
        raise ValueError("there is no token to measure: there are no batches, or all their labels are -100")
    return total


def _checked(model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The three arrays of a batch; ids that would be clamped in silence are refused where they can be read."""
    missing = [name for name in _NAMES if name not in batch]
    if missing:
        raise ValueError(f"a batch has {', '.join(_NAMES)}; this one lacks {', '.join(missing)}")
    for name, ignored in (("input_ids", None), ("labels", IGNORED_LABEL)):
        if isinstance(batch[name], np.ndarray):
            check_ids(name, batch[name], model.config.vocab_size, ignore=ignored)
    return {name: batch[name] for name in _NAMES}


@partial(jax.jit, static_argnums=(0, 1))
def _sums(model: Any, whole: bool, params: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
    """Scalars, so that every process of a sharded program holds them: nats, correct, tokens, examples.

    Parameters that lie whole on one device are multiplied as training multiplies them.
    """
    params = densely(params, model.dtype) if whole else params
    labels = jnp.asarray(batch["labels"])
    read = shift_tokens_right(labels, model.config)
    logits = model.apply({"params": params}, batch["input_ids"], batch["attention_mask"], read).logits
    counted = labels != IGNORED_LABEL
    correct = counted & (logits.argmax(-1) == labels)
    return -label_log_probs(logits, labels).sum(), correct.sum(), counted.sum(), counted.any(axis=1).sum()


def _fetched(sums: tuple[jax.Array, ...] | None) -> Likelihood:
    if sums is None:
        return Likelihood()
    nats, *counts = jax.device_get(sums)
    return Likelihood(float(nats), *map(int, counts))
