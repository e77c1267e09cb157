"""Ensemble: several models that decode one reply together, by the mean of what each holds likely."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.model import BlenderbotForConditionalGeneration
from blenderbot_jax.outputs import Seq2SeqLMOutput

# What members must agree on, since tokens pass between them.
_SHARED = ("vocab_size", "pad_token_id", "eos_token_id", "decoder_start_token_id")


@dataclass(frozen=True)
class Ensemble:
    """Models over one vocabulary whose distributions are averaged at every step, inside the beam.

    It stands wherever `generate` and `token_log_probs` take a model; its parameters are a tuple, one tree per member.
    Members may differ in size and in architecture.

    Args:
        members: the models.
        weights: of the members, positive; None weighs all alike.

    Raises:
        ValueError: no members, members of different vocabularies, or weights that do not fit.

    Example:
        >>> pair = Ensemble((model, model))
        >>> out = generate(pair, (params, params), [[300, 2]], config=GenerationConfig(num_beams=4))
        >>> out.sequences.shape
        (1, 1, 21)
    """

    members: tuple[BlenderbotForConditionalGeneration, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", tuple(self.members))
        if not self.members:
            raise ValueError("an ensemble has at least one member")
        for name in _SHARED:
            values = {getattr(member.config, name) for member in self.members}
            if len(values) > 1:
                raise ValueError(f"the members of an ensemble share their tokens, but {name} is {sorted(values)}")
        if not all(member.config.is_encoder_decoder for member in self.members):
            raise ValueError("the members of an ensemble are BlenderbotForConditionalGeneration models")
        if self.weights is not None:
            object.__setattr__(self, "weights", tuple(map(float, self.weights)))
            if len(self.weights) != len(self.members) or not all(0 < w < math.inf for w in self.weights):
                raise ValueError(f"weights are one positive number per member, not {self.weights}")

    @property
    def config(self) -> BlenderbotConfig:
        """The first member's, with the positions that all members have."""
        least = min(member.config.max_position_embeddings for member in self.members)
        return self.members[0].config.replace(max_position_embeddings=least)

    def apply(self, variables: Any, *args: Any, method: str | None = None, **kwargs: Any) -> Any:
        """Run a method of every member: "encode", "prefill", "decode_step", or the forward pass.

        Args:
            variables: `{"params": (tree, ...)}`.
            args, kwargs: what the members' own method takes. What an earlier call gave back is a tuple again, one part
                per member.

        Returns:
            A tuple with each member's result; of logits, the logarithm of the mean probability.
        """
        if kwargs.get("inputs_embeds") is not None or kwargs.get("decoder_inputs_embeds") is not None:
            raise ValueError("the members of an ensemble have embeddings of their own: pass ids")
        run = self._runner(variables, method)
        if method == "encode":
            return run(lambda one: one(*args, **kwargs))
        if method == "prefill":
            encoded, *rest = args
            return run(lambda one, h: one(h, *rest, **kwargs), self._parts(encoded))
        if method == "decode_step":
            tokens, caches = args
            steps = run(lambda one, cache: one(tokens, cache), self._parts(caches))
            return self._mean([logits for logits, _ in steps]), tuple(cache for _, cache in steps)
        if method is None:
            return self._forward(run, *args, **kwargs)
        raise ValueError(f"an ensemble has no method {method!r}")

    def _forward(self, run: Callable[..., Any], *args: Any, encoder_outputs: Any = None, **kwargs: Any) -> Any:
        for name in ("output_attentions", "output_hidden_states", "labels"):
            if kwargs.pop(name, None) not in (None, False):
                raise ValueError(f"an ensemble gives no {name}: ask its members")
        encoded = (None,) * len(self.members) if encoder_outputs is None else self._parts(encoder_outputs)
        outputs = run(lambda one, h: one(*args, encoder_outputs=h, **kwargs), encoded)
        states = tuple(out.encoder_last_hidden_state for out in outputs)
        return Seq2SeqLMOutput(self._mean([out.logits for out in outputs]), states)  # pyright: ignore[reportArgumentType]

    def _runner(self, variables: Any, method: str | None) -> Callable[..., tuple[Any, ...]]:
        params = variables["params"]
        if not isinstance(params, tuple | list) or len(params) != len(self.members):
            raise ValueError(f"an ensemble's parameters are a tuple of {len(self.members)} trees, one per member")

        def run(call: Callable[..., Any], *parts: tuple[Any, ...]) -> tuple[Any, ...]:
            results = []
            for i, member in enumerate(self.members):

                def one(*args: Any, member: Any = member, tree: Any = params[i], **kwargs: Any) -> Any:
                    return member.apply({"params": tree}, *args, method=method, **kwargs)

                results.append(call(one, *(part[i] for part in parts)))
            return tuple(results)

        return run

    def _parts(self, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, tuple) or len(value) != len(self.members):
            raise ValueError("the members of an ensemble each encode for themselves: pass input_ids")
        return value

    def _mean(self, logits: list[jax.Array]) -> jax.Array:
        """The logarithm of the members' mean distribution."""
        weights = jnp.asarray(self.weights or (1.0,) * len(logits), jnp.float32)
        weights = weights / weights.sum()
        stacked = jnp.stack([jax.nn.log_softmax(one) for one in logits], axis=-1)
        return jax.nn.logsumexp(stacked, axis=-1, b=weights)
