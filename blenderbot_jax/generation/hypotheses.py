"""Hypotheses of a search: those that run and those that have ended, in the same arrays.

A step makes each new one from an old one, with or without one more token, so that one gather moves them all.
"""

from dataclasses import dataclass
from typing import Self

import jax
import jax.numpy as jnp

from blenderbot_jax.generation.ranking import pick


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Beams:
    """Some hypotheses per prompt, M of them, all that is known of one in one row."""

    rows: jax.Array
    """[B, M, 2 C + 3] int32: tokens, the bits of their float32 log-probabilities, those of the score, length, done."""

    @classmethod
    def of(
        cls, tokens: jax.Array, log_probs: jax.Array, scores: jax.Array, lengths: jax.Array, done: jax.Array
    ) -> Self:
        """Hypotheses from their parts, in the shapes that they are given back in; lengths may be one for all."""
        ends = jnp.stack([_bits(scores), jnp.broadcast_to(lengths, scores.shape), done.astype(jnp.int32)], axis=-1)
        return cls(jnp.concatenate([tokens, _bits(log_probs), ends], axis=-1))

    @property
    def tokens(self) -> jax.Array:
        """[B, M, C] int32."""
        return self.rows[..., : self._capacity]

    @property
    def log_probs(self) -> jax.Array:
        """[B, M, C] float32, one per token."""
        return _floats(self.rows[..., self._capacity : -3])

    @property
    def scores(self) -> jax.Array:
        """[B, M] float32: summed log-probabilities while running, length-normalised once finished."""
        return _floats(self.rows[..., -3])

    @property
    def lengths(self) -> jax.Array:
        """[B, M] int32, start token included."""
        return self.rows[..., -2]

    @property
    def done(self) -> jax.Array:
        """[B, M] bool: the hypothesis has ended."""
        return self.rows[..., -1] != 0

    @property
    def first_half(self) -> Self:
        """The first M / 2 of them: in a search, those that run."""
        return type(self)(self.rows[:, : self.rows.shape[1] // 2])

    @property
    def second_half(self) -> Self:
        """The others: in a search, those that have ended."""
        return type(self)(self.rows[:, self.rows.shape[1] // 2 :])

    @property
    def _capacity(self) -> int:
        return (self.rows.shape[-1] - 3) // 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Successors:
    """What may stand in the next step's places: m per prompt, each an old hypothesis with or without one more token."""

    sources: jax.Array
    """[B, m] int32, which of the 2 K hypotheses it continues."""
    grows: jax.Array
    """[B, m] bool: with one more token."""
    tokens: jax.Array
    """[B, m] int32, that token."""
    log_probs: jax.Array
    """[B, m] float32, its log-probability."""
    scores: jax.Array
    """[B, m] float32."""
    done: jax.Array
    """[B, m] bool."""

    @classmethod
    def continuing(
        cls, parents: jax.Array, tokens: jax.Array, log_probs: jax.Array, scores: jax.Array, done: jax.Array
    ) -> Self:
        """Running hypotheses with one more token each."""
        return cls(parents, jnp.ones_like(done), tokens, log_probs, scores, done)

    @classmethod
    def staying(cls, beams: Beams, first: int) -> Self:
        """Hypotheses as they are; `first` is the place of the first of them among the 2 K."""
        done, scores = beams.done, beams.scores
        rows = jnp.broadcast_to(jnp.arange(first, first + done.shape[1], dtype=jnp.int32), done.shape)
        return cls(
            sources=rows,
            grows=jnp.zeros_like(done),
            tokens=jnp.zeros_like(rows),
            log_probs=jnp.zeros_like(scores),
            scores=scores,
            done=done,
        )

    def at(self, places: jax.Array) -> Self:
        """Those at `places` [B, m']."""
        return jax.tree.map(lambda leaf: pick(leaf, places), self)

    def then(self, others: Self) -> Self:
        """These, and the others behind them."""
        return jax.tree.map(lambda mine, other: jnp.concatenate([mine, other], axis=1), self, others)


def grown(beams: Beams, successors: Successors, length: jax.Array) -> Beams:
    """The hypotheses of the next step.

    Args:
        beams: those of this step.
        successors: what becomes of them.
        length: scalar int32, tokens of those that run; a new token is written there.
    """
    grows = successors.grows
    old = Beams(pick(beams.rows, successors.sources))
    here = grows[..., None] & (jnp.arange(old.tokens.shape[-1]) == length)
    return Beams.of(
        tokens=jnp.where(here, successors.tokens[..., None], old.tokens),
        log_probs=jnp.where(here, successors.log_probs[..., None], old.log_probs),
        scores=successors.scores,
        lengths=jnp.where(grows, length + 1, old.lengths),
        done=successors.done,
    )


def picked(scores: jax.Array, places: jax.Array) -> jax.Array:
    """Entries of [B, K, V] at flat places [B, M]."""
    return jnp.take_along_axis(scores.reshape(len(places), -1), places, axis=1)


def _bits(values: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(values, jnp.int32)


def _floats(bits: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
