"""What is to be decoded, apart from the model: what replies begin with, the rules, and when a reply has ended."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from blenderbot_jax.generation.plan import Plan, Settings
from blenderbot_jax.generation.processors import Step, ends_with, process
from blenderbot_jax.generation.step import among

# ParlAI's own number for what must not be chosen; a finite one, so that sums of it keep their order.
BARRED = -1.0e20


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Task:
    """One batch of prompts and the rules their replies obey."""

    prompt: jax.Array
    """[B, W] int32, what every reply begins with, a start token at least; `settings.prompt_length` of the W count."""
    source_ids: jax.Array | None
    """[B, S] int32, for the rules that look at the encoder's prompt, or at what the caller gives in its place; None
    where only its encoding is known."""
    valid: jax.Array
    """[B] bool; rows that only fill the batch start finished."""
    settings: Settings
    constraint: Any = None
    """`jax.tree_util.Partial` of a `Constraint`, or None."""
    custom: tuple[Any, ...] = ()
    """`jax.tree_util.Partial`s of `CustomProcessor`s."""

    @property
    def prompt_length(self) -> jax.Array:
        """Scalar int32: tokens that replies begin with."""
        return self.settings.prompt_length[0]

    def first_tokens(self, plan: Plan) -> jax.Array:
        """[B, K, C] int32: the prompt, then pad."""
        B, W = self.prompt.shape
        padded = jnp.pad(self.prompt, ((0, 0), (0, max(plan.capacity - W, 0))))[:, : plan.capacity]
        tokens = jnp.where(jnp.arange(plan.capacity) < self.prompt_length, padded, self.settings.pad_token[:, None])
        return jnp.broadcast_to(tokens[:, None], (B, plan.rows, plan.capacity))

    def scored(self, logits: jax.Array, plan: Plan) -> jax.Array:
        """What the rules take, from a step's logits [B, K, V]: log-probabilities under beams, logits otherwise.

        ParlAI's are log-probabilities in any case, of logits without the start token, divided by the temperature.
        """
        if plan.mode != "parlai":
            return jax.nn.log_softmax(logits) if plan.searches else logits
        start = among(self.settings.start_token[:, None], logits.shape[-1])
        return jax.nn.log_softmax(jnp.where(start, BARRED, logits / self.settings.temperature[:, None, None]))

    def bend(self, scores: jax.Array, tokens: jax.Array, length: jax.Array, plan: Plan) -> jax.Array:
        """The scores [B, K, V] of what follows the first `length` tokens of each row [B, K, C], after all rules."""
        step = Step(tokens, length, self.source_ids, self.settings.prompt_length)
        return process(scores, step, self.settings, plan, self.constraint, self.custom)

    def ended(self, tokens: jax.Array, length: jax.Array, plan: Plan) -> jax.Array:
        """[B, K] bool: rows whose first `length` tokens end in an end token or a stop sequence, or are full."""
        return self.closed(tokens, length, plan) | (length >= self.settings.max_length[:, None])

    def closed(self, tokens: jax.Array, length: jax.Array, plan: Plan) -> jax.Array:
        """[B, K] bool: rows whose first `length` tokens end in an end token or a stop sequence."""
        settings = self.settings
        last = jax.lax.dynamic_index_in_dim(tokens, length - 1, axis=2, keepdims=False)
        end = (last[..., None] == settings.eos_tokens[:, None]).any(axis=-1)
        if plan.stops:
            end = end | ends_with(tokens, length, settings.stop_sequences)
        return end
