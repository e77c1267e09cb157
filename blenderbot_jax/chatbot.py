"""Chatbot: text in, text out."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from blenderbot_jax.dialogue import Conversation, EncodedConversation
from blenderbot_jax.generation import GenerationConfig, generate
from blenderbot_jax.pretrained import Checkpoint
from blenderbot_jax.tokenizer import BlenderbotSmallTokenizer, BlenderbotTokenizer


@dataclass(frozen=True)
class Alternative:
    """One of the replies a search found."""

    text: str
    score: float


@dataclass(frozen=True)
class Response:
    """A reply, and what led to it."""

    text: str
    """The best reply; empty if the model ended it at once."""
    score: float
    """Log-probability in nats, over generated tokens ** length_penalty under beams."""
    conversation: Conversation
    """The conversation with the reply as its last turn (without one, if the reply is empty)."""
    dropped_turns: int
    """Turns that did not fit and were not read, the oldest ones."""
    dropped_tokens: int
    """Tokens cut from the front of the newest turn, which alone was too long; 0 otherwise."""
    alternatives: tuple[Alternative, ...]
    """All `num_return_sequences` replies, best first, this one included."""


@dataclass(frozen=True)
class Chatbot:
    """A checkpoint that talks.

    The first reply of each kind compiles a program, which takes seconds; later ones of about the same length do not.

    Args:
        checkpoint: model, parameters and tokenizer.
        generation_config: how to decode.

    Example:
        >>> bot = Chatbot.from_pretrained("demo")
        >>> reply = bot.reply("Hello, how are you?")
        >>> isinstance(reply, str)
        True
    """

    checkpoint: Checkpoint
    generation_config: GenerationConfig

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | os.PathLike[str],
        *,
        dtype: Any = jnp.float32,
        generation_config: GenerationConfig | None = None,
        **hub_options: Any,
    ) -> Self:
        """Load a folder, a hub name, or "demo".

        Args:
            name_or_folder: what to load.
            dtype: of the stored parameters and of the computation.
            generation_config: how to decode; the checkpoint's own if None.
            hub_options: `revision`, `cache_dir`, `local_files_only`, `token`.
        """
        checkpoint = Checkpoint.from_pretrained(name_or_folder, dtype=dtype, **hub_options)
        return cls(checkpoint, generation_config or checkpoint.generation_config)

    def configured(self, **changes: Any) -> Self:
        """The same bot with some fields of its generation config changed."""
        return replace(self, generation_config=self.generation_config.replace(**changes))

    def reply(self, text: str, *, key: jax.Array | None = None) -> str:
        """Answer one utterance.

        Args:
            text: what the user says.
            key: a `jax.random.key`, needed if the bot samples.
        """
        return self.respond(Conversation().add("user", text), key=key).text

    def replies(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = 8,
        key: jax.Array | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[str]:
        """Answer many utterances, each on its own; utterances of about the same length are decoded together.

        Args:
            texts: what the users say.
            batch_size: the most utterances decoded together.
            key: a `jax.random.key`, needed if the bot samples.
            on_progress: called with the number of utterances just answered, after each batch.

        Returns:
            One reply per utterance, in their order.
        """
        if isinstance(texts, str):
            raise TypeError("replies takes a list of texts; reply answers a single one")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        chats = [Conversation().add("user", text) for text in texts]
        encoded = [self.checkpoint.encode(chat) for chat in chats]
        answers = [""] * len(texts)
        for number, rows in enumerate(_by_length(encoded, batch_size)):
            batch_key = None if key is None else jax.random.fold_in(key, number)
            for row, found in zip(rows, self._decode([encoded[row] for row in rows], batch_key), strict=True):
                answers[row] = found[0].text
            if on_progress:
                on_progress(len(rows))
        return answers

    def respond(self, conversation: Conversation, *, key: jax.Array | None = None) -> Response:
        """Continue a conversation.

        Args:
            conversation: what was said so far; it is not changed.
            key: a `jax.random.key`, needed if the bot samples.
        """
        encoded = self.checkpoint.encode(conversation)
        [found] = self._decode([encoded], key)
        best = found[0]
        return Response(
            text=best.text,
            score=best.score,
            conversation=conversation.add("bot", best.text) if best.text else conversation,
            dropped_turns=encoded.dropped_turns,
            dropped_tokens=encoded.dropped_tokens,
            alternatives=found,
        )

    def _decode(self, encoded: Sequence[EncodedConversation], key: jax.Array | None) -> list[tuple[Alternative, ...]]:
        """All replies to each prompt, best first."""
        tokenizer = self.checkpoint.tokenizer
        ids, mask = _right_padded(encoded)
        out = jax.device_get(
            generate(self.checkpoint.model, self.checkpoint.params, ids, mask, config=self.generation_config, key=key)
        )
        return [
            tuple(
                Alternative(_presentable(tokenizer, ids[:length]), float(score))
                for ids, length, score in zip(*row, strict=True)
            )
            for row in zip(out.sequences, out.lengths, out.scores, strict=True)
        ]


def _presentable(tokenizer: BlenderbotTokenizer | BlenderbotSmallTokenizer, ids: np.ndarray) -> str:
    """A reply as people write: the 90M model's tokens know no spaces, so those before punctuation are closed up."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=True).strip()


def _right_padded(encoded: Sequence[EncodedConversation]) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as ids and mask, [B, S] int32 each."""
    lengths = np.array([len(prompt.input_ids) for prompt in encoded])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, np.int32)
    ids[mask] = np.concatenate([prompt.input_ids for prompt in encoded])
    return ids, mask.astype(np.int32)


def _by_length(encoded: Sequence[EncodedConversation], batch_size: int) -> Iterator[list[int]]:
    """Row numbers in batches, shortest prompts first."""
    order = sorted(range(len(encoded)), key=lambda row: len(encoded[row].input_ids))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
