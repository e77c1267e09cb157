"""Speculative decoding: a small model drafts some tokens, and the model itself reads them all in one step.

Both choose with the same function and the same noise. Plain decoding chooses the token at place t as the argmax of
scores_t + g_t, where g_t is Gumbel noise drawn from the row's key and t, or 0 where nothing is drawn; the draft takes
the argmax of its own scores + the same g_t. A guess is kept if it is what the model chooses there. So what comes out is
what plain decoding gives with the same key, token for token, whatever the draft is. (Up to rounding: a step that reads
several tokens rounds otherwise than one that reads one, and where two scores differ by no more than that, either may
win.)

Sources: Leviathan, Kalman, Matias 2023, "Fast inference from transformers via speculative decoding", for the round of
drafting and reading; Daliri, Musco, Suresh 2024, "Coupling without communication and drafter-invariant speculative
decoding", for the shared noise. Distributions at a total variation of d agree there with a probability of at least
(1 - d) / (1 + d).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from blenderbot_jax.cache import over_caches, rewind
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.generation.config import GenerationConfig, ParlaiConfig
from blenderbot_jax.generation.fields import is_count
from blenderbot_jax.generation.inputs import Inputs
from blenderbot_jax.generation.plan import Plan
from blenderbot_jax.generation.sampling import (
    Replies,
    RowState,
    as_replies,
    choose,
    extend,
    row_keys,
    start_rows,
    unfinished,
)
from blenderbot_jax.generation.task import Task

# read(tokens [B, K, T], cache) -> (logits [B, K, T, V] float32, cache)
ReadFunction = Callable[[jax.Array, Any], tuple[jax.Array, Any]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Draft:
    """A smaller model over the same vocabulary that drafts what the model itself then confirms.

    It pays where a step of the model takes long beside one of the draft, where the two often agree, and in small
    batches: the rows of a batch go on together, by the least that was right in any of them.

    Args:
        model: the smaller one, or an `Ensemble`; with an encoder if the model has one.
        params: its parameters, in whatever form `generate` takes.
        tokens: drafted a round. The model reads one more than that in a step.

    Raises:
        ValueError: tokens below 1.

    Example:
        >>> draft = Draft(model, quantize(params), tokens=3)
        >>> out = generate(model, params, [[300, 2]], config=GenerationConfig(max_length=12), draft=draft)
        >>> out.sequences.shape
        (1, 1, 12)
    """

    model: Any = field(metadata={"static": True})
    params: Any
    tokens: int = field(default=4, metadata={"static": True})

    def __post_init__(self) -> None:
        if not is_count(self.tokens, 1):
            raise ValueError(f"tokens counts those drafted a round, so it is at least 1, not {self.tokens!r}")


def check_draft(draft: Draft, model: BlenderbotConfig, config: GenerationConfig, inputs: Inputs | None = None) -> None:
    """Refuse what a draft cannot do, before anything is compiled.

    Args:
        draft: to be used.
        model: the architecture of the model whose replies are wanted.
        config: how it decodes.
        inputs: its prompts, where they may be given otherwise than as ids.

    Raises:
        TypeError: not a `Draft`.
        ValueError: beams, or ParlAI's decoding; a draft with another vocabulary, of the other kind or with fewer
            positions; a prompt that only the model itself can read.
    """
    if not isinstance(draft, Draft):
        raise TypeError(f"draft is a Draft(model, params), not {type(draft).__name__}")
    if isinstance(config, ParlaiConfig):
        raise ValueError(
            "a draft is for greedy decoding and sampling as transformers does them, not for ParlAI's: take "
            "GenerationConfig(...), or leave the draft out"
        )
    if (config.num_beams or 1) > 1:
        raise ValueError(
            f"a draft is for greedy decoding and sampling, and num_beams={config.num_beams} searches: "
            "config.replace(num_beams=1), or leave the draft out"
        )
    own = draft.model.config
    if own.vocab_size != model.vocab_size:
        raise ValueError(
            f"a draft shares the model's tokens, but its vocabulary has {own.vocab_size} and the model's "
            f"{model.vocab_size}: take a model of the same family"
        )
    if own.is_encoder_decoder != model.is_encoder_decoder:
        raise ValueError(
            f"a draft reads what the model reads: is_encoder_decoder is {own.is_encoder_decoder} for the draft and "
            f"{model.is_encoder_decoder} for the model"
        )
    if own.max_position_embeddings < model.max_position_embeddings:
        raise ValueError(
            f"a draft goes as far as the model, but it knows {own.max_position_embeddings} positions and the model "
            f"{model.max_position_embeddings}"
        )
    if inputs is None:
        return
    if model.is_encoder_decoder and inputs.source_ids is None:
        raise ValueError("a draft encodes prompts for itself: pass input_ids (beside encoder_outputs, if you like)")
    if not model.is_encoder_decoder and inputs.encoded is not None:
        raise ValueError("encoder_outputs are the model's own, and a draft cannot read them: leave the draft out")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _State:
    """The loop's state: both models have read what the rows hold, the draft maybe but for the last two tokens."""

    rows: RowState
    draft_cache: Any
    rounds: jax.Array
    """Scalar int32."""


@dataclass(frozen=True)
class _Rounds:
    """What a round needs beside its state."""

    read: ReadFunction
    draft_read: ReadFunction
    tokens: int
    """Drafted a round."""
    room: int
    """Tokens that either cache holds."""
    task: Task
    plan: Plan
    keys: jax.Array | None

    def advance(self, state: _State) -> _State:
        """Draft, read, and keep what both agree on and one token more."""
        rows = state.rows
        guesses, draft_cache = self._guess(rows.tokens, rows.length, state.draft_cache)
        # Close to the end of the cache the step begins earlier and reads again what it has read.
        first = jnp.minimum(rows.length - 1, self.room - self.tokens - 1)
        window = jax.lax.dynamic_slice_in_dim(guesses, first, self.tokens + 1, axis=2)
        logits, cache = self.read(window, _rewound(rows.cache, first))
        kept = self._keep(dataclasses.replace(rows, cache=None), guesses, logits, first)
        return _State(dataclasses.replace(kept, cache=cache), draft_cache, state.rounds + 1)

    def _guess(self, tokens: jax.Array, length: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        """The rows [B, K, C] with what the draft puts behind their first `length` tokens, and its cache."""
        width = min(2, self.room)

        def go_on(place: jax.Array, state: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
            guesses, cache = state
            # After a round whose guesses were all right, the draft has not read the last two tokens; a step that reads
            # two takes as long as one that reads one.
            first = jnp.maximum(place - width, 0)
            latest = jax.lax.dynamic_slice_in_dim(guesses, first, width, axis=2)
            logits, cache = self.draft_read(latest, _rewound(cache, first))
            scores = self.task.bend(_at(logits, place - 1 - first), guesses, place, self.plan)
            return guesses.at[:, :, place].set(choose(scores, place, self.keys)), cache

        end = jnp.minimum(length + self.tokens, self.task.settings.max_length.max())
        return jax.lax.fori_loop(length, end, go_on, (tokens, cache))

    def _keep(self, rows: RowState, guesses: jax.Array, logits: jax.Array, first: jax.Array) -> RowState:
        """Append what the model chooses, for as long as it is what it has read.

        Args:
            rows: without their cache.
            guesses: [B, K, C], of which the model has read those at `first` to `first + tokens`.
            logits: [B, K, tokens + 1, V] for what follows each of these.
            first: scalar int32.
        """

        def may_go_on(state: tuple[RowState, jax.Array]) -> jax.Array:
            rows, agreed = state
            return agreed & unfinished(rows, self.plan)

        def append(state: tuple[RowState, jax.Array]) -> tuple[RowState, jax.Array]:
            rows, _ = state
            place = rows.length
            rows = extend(rows, _at(logits, place - 1 - first), self.keys, self.task, self.plan)
            agreed = (rows.finished | (_at(rows.tokens, place) == _at(guesses, place))).all()
            return rows, agreed & (place <= first + self.tokens)

        return jax.lax.while_loop(may_go_on, append, (rows, jnp.array(True)))[0]


def speculate(
    read: ReadFunction,
    cache: Any,
    draft_read: ReadFunction,
    draft_cache: Any,
    task: Task,
    plan: Plan,
    key: jax.Array | None,
    *,
    tokens: int,
    room: int,
) -> tuple[Replies, jax.Array]:
    """Decode greedily, or draw, as `decode_rows` does with the same key, in fewer steps of the model.

    Args:
        read: some tokens per row in, logits for what follows each of them out.
        cache: what `read` takes and gives back; it holds all but the last token of the prompt, in a single segment.
        draft_read, draft_cache: the same of the draft.
        task: what to decode.
        plan: how.
        key: as `decode_rows` takes it.
        tokens: drafted a round.
        room: tokens that both caches have room for, C at most.

    Returns:
        The replies, and the rounds they took: steps of the model.
    """
    rows = start_rows(cache, task, plan)
    keys = None if key is None else row_keys(key, *rows.finished.shape)
    rounds = _Rounds(read, draft_read, min(tokens, room - 1), room, task, plan, keys)
    state = _State(rows, draft_cache, jnp.int32(0))
    end = jax.lax.while_loop(lambda state: unfinished(state.rows, plan), rounds.advance, state)
    return as_replies(end.rows), end.rounds


def _rewound(cache: Any, length: jax.Array) -> Any:
    return over_caches(lambda one: rewind(one, length), cache)


def _at(array: jax.Array, place: jax.Array) -> jax.Array:
    """The part [B, K, ...] of an array [B, K, T, ...] at one of the T."""
    return jax.lax.dynamic_index_in_dim(array, place, axis=2, keepdims=False)
