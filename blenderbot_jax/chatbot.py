"""Chatbot: text in, text out."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from blenderbot_jax.dialogue import Conversation, EncodedConversation
from blenderbot_jax.generation import Draft, GenerationConfig, ParlaiConfig
from blenderbot_jax.generation.many import Packing, generate_many
from blenderbot_jax.generation.phrases import block_list
from blenderbot_jax.preparation import prepare
from blenderbot_jax.pretrained import Checkpoint
from blenderbot_jax.warm import warm_up

_Prompt = tuple[Conversation, EncodedConversation]
# Of inputs that are refused, as many are named.
_NAMED = 5


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
        packing: how many inputs are put together, and what prompts are padded to.
        draft: a smaller model that drafts, for bots that search no beams; `with_draft` makes one of a checkpoint.

    Example:
        >>> bot = Chatbot.from_pretrained("demo")
        >>> reply = bot.reply("Hello, how are you?")
        >>> isinstance(reply, str)
        True
    """

    checkpoint: Checkpoint
    generation_config: GenerationConfig
    packing: Packing = field(default_factory=Packing)
    draft: Draft | None = None

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | os.PathLike[str],
        *,
        dtype: Any = jnp.float32,
        generation_config: GenerationConfig | None = None,
        draft: str | os.PathLike[str] | None = None,
        **hub_options: Any,
    ) -> Self:
        """Load a folder, a hub name, or "demo".

        Args:
            name_or_folder: what to load.
            dtype: of the stored parameters and of the computation.
            generation_config: how to decode; the checkpoint's own if None.
            draft: a smaller model of the same vocabulary, likewise; see `with_draft`.
            hub_options: what else `Checkpoint.from_pretrained` takes: `quantize`, `cache_dtype`, and `revision` (of the
                first), `cache_dir`, `local_files_only`, `token`.

        Raises:
            CheckpointNotFoundError, CheckpointError, ValueError: as `Checkpoint.from_pretrained` and `with_draft` do.
        """
        checkpoint = Checkpoint.from_pretrained(name_or_folder, dtype=dtype, **hub_options)
        bot = cls(checkpoint, generation_config or checkpoint.generation_config)
        if draft is None:
            return bot
        shared = {name: value for name, value in hub_options.items() if name != "revision"}
        return bot.with_draft(Checkpoint.from_pretrained(draft, dtype=dtype, **shared))

    def configured(self, **changes: Any) -> Self:
        """The same bot with some fields of its generation config changed."""
        return replace(self, generation_config=self.generation_config.replace(**changes))

    def avoiding(self, phrases: Iterable[str]) -> Self:
        """The same bot, which says none of some phrases, whatever their case, nor with an s behind them.

        Args:
            phrases: such as the lines of a block list; `generation.phrases` has the forms that count.

        Example:
            >>> bot = Chatbot.from_pretrained("demo").avoiding(["music", "rock band"])
            >>> len(bot.generation_config.bad_words_ids) > 2
            True
        """
        read = partial(self.checkpoint.tokenizer.encode, add_special_tokens=False, split_special_tokens=True)
        barred = self.generation_config.bad_words_ids or ()
        return self.configured(bad_words_ids=(*barred, *block_list(phrases, read)))

    def with_draft(self, checkpoint: Checkpoint, tokens: int = Draft.tokens) -> Self:
        """The same bot, for which a smaller model drafts: it says the same, maybe sooner.

        Args:
            checkpoint: with the same tokens.
            tokens: drafted a round; see `Draft`.

        Raises:
            ValueError: another vocabulary, or tokens below 1. That beams need no draft is said when a reply is wanted.

        Example:
            >>> bot = Chatbot.from_pretrained("demo").configured(num_beams=1, max_length=12)
            >>> bot.with_draft(Checkpoint.from_pretrained("demo"), tokens=2).draft.tokens
            2
        """
        if checkpoint.tokenizer.get_vocab() != self.checkpoint.tokenizer.get_vocab():
            raise ValueError(
                "the draft's tokenizer has other tokens than the bot's, and the two must read and write the same ids: "
                "take a model of the same family"
            )
        return replace(self, draft=Draft(checkpoint.model, checkpoint.params, tokens))

    def prepared(self, prompts: int = 1) -> Self:
        """The same bot with weights packed for batches of so many prompts; `prepare` says what that does.

        Args:
            prompts: B, those that are usually answered together.
        """
        checkpoint, config = self.checkpoint, self.generation_config
        rows, draft = prompts * max(config.num_beams or 1, config.num_return_sequences or 1), self.draft
        if draft is not None:
            draft = replace(draft, params=prepare(draft.model, draft.params, rows=rows))
            # The model reads all drafted tokens in one step.
            rows *= draft.tokens + 1
        params = prepare(checkpoint.model, checkpoint.params, rows=rows)
        return replace(self, checkpoint=replace(checkpoint, params=params), draft=draft)

    def warm_up(self, **sizes: Any) -> tuple[tuple[int, int], ...]:
        """Compile ahead of time what replies need.

        Args:
            sizes: `batch_sizes`, `source_widths` and `on_progress`, as for `warm.warm_up`.

        Returns:
            The (batch size, width) of each program.
        """
        checkpoint = self.checkpoint
        return warm_up(checkpoint.model, checkpoint.params, self.generation_config, draft=self.draft, **sizes)

    def reply(self, text: str, *, key: jax.Array | None = None) -> str:
        """Answer one utterance.

        Args:
            text: what the user says.
            key: a `jax.random.key`, needed if the bot samples.
        """
        return self.respond(Conversation().add("user", text), key=key).text

    def replies(
        self,
        inputs: Sequence[str | Conversation],
        *,
        batch_size: int | None = None,
        key: jax.Array | None = None,
        on_progress: Callable[[int], None] | None = None,
        on_refused: Callable[[int, Exception], None] | None = None,
    ) -> list[str]:
        """Answer many utterances or conversations, each on its own; those of about the same length together.

        Each gets the reply that it gets alone. Batches come longest first, in a few shapes; `packing` says which.

        Args:
            inputs: what users say, or what was said so far.
            batch_size: the most answered together; what `packing` says if None.
            key: a `jax.random.key`, needed if the bot samples; input i draws from stream i of it however it is packed.
            on_progress: called with the number of inputs just answered, after each batch.
            on_refused: called with the place of an input that cannot be answered, and why; its reply is then empty.
                Without it such inputs are an error.

        Returns:
            One reply per input, in their order.

        Raises:
            TypeError: a single text instead of a list.
            ValueError: inputs that cannot be answered, such as empty ones, all of them by place; nothing was decoded.

        Example:
            >>> bot = Chatbot.from_pretrained("demo").configured(num_beams=1, max_length=12)
            >>> len(bot.replies(["Hi!", "Do you like music?"]))
            2
        """
        options = {"batch_size": batch_size, "key": key, "on_progress": on_progress, "on_refused": on_refused}
        found = self.responses(inputs, **options)
        return ["" if response is None else response.text for response in found]

    def responses(
        self,
        inputs: Sequence[str | Conversation],
        *,
        batch_size: int | None = None,
        key: jax.Array | None = None,
        on_progress: Callable[[int], None] | None = None,
        on_refused: Callable[[int, Exception], None] | None = None,
    ) -> list[Response | None]:
        """Answer many as `replies` does, with scores and alternatives.

        Args:
            inputs, batch_size, key, on_progress, on_refused: as for `replies`.

        Returns:
            One response per input, in their order; None for one that was refused.
        """
        if isinstance(inputs, str):
            raise TypeError("replies takes a list of texts; reply answers a single one")
        prompts, refused = self._read(inputs)
        for place, error in refused.items():
            if on_refused is None:
                raise ValueError(_refusal(refused, len(inputs))) from error
            on_refused(place, error)
        packing = self.packing if batch_size is None else replace(self.packing, batch_size=batch_size)
        responses: list[Response | None] = [None] * len(inputs)
        for places, found in self._decode(prompts, key, packing):
            for place, alternatives in zip(places, found, strict=True):
                responses[place] = _response(*prompts[place], alternatives)
            if on_progress:
                on_progress(len(places))
        return responses

    def respond(self, conversation: Conversation, *, key: jax.Array | None = None) -> Response:
        """Continue a conversation.

        Args:
            conversation: what was said so far; it is not changed.
            key: a `jax.random.key`, needed if the bot samples.
        """
        encoded = self.checkpoint.encode(conversation)
        [(_, [found])] = self._decode({0: (conversation, encoded)}, key, self.packing)
        return _response(conversation, encoded, found)

    def _read(self, inputs: Sequence[str | Conversation]) -> tuple[dict[int, _Prompt], dict[int, Exception]]:
        """What each input is as ids, and why some cannot be; both by place."""
        prompts: dict[int, _Prompt] = {}
        refused: dict[int, Exception] = {}
        for place, given in enumerate(inputs):
            try:
                chat = given if isinstance(given, Conversation) else Conversation().add("user", given)
                prompts[place] = chat, self.checkpoint.encode(chat)
            except (TypeError, ValueError) as error:
                refused[place] = error
        return prompts, refused

    def _decode(
        self, prompts: dict[int, _Prompt], key: jax.Array | None, packing: Packing
    ) -> Iterator[tuple[tuple[int, ...], list[tuple[Alternative, ...]]]]:
        """Batch by batch: places, and for each all replies, best first."""
        checkpoint, config = self.checkpoint, self.generation_config
        ids = {place: encoded.input_ids for place, (_, encoded) in prompts.items()}
        options: dict[str, Any] = {"config": config, "key": key, "packing": packing, "draft": self.draft}
        if isinstance(config, ParlaiConfig) and config.block_full_context:
            options["contexts"] = {place: self._all_that_was_said(chat) for place, (chat, _) in prompts.items()}
        for places, replies in generate_many(checkpoint.model, checkpoint.params, ids, **options):
            rows = zip(replies.tokens, replies.lengths, replies.scores, strict=True)
            yield places, [self._alternatives(*row) for row in rows]

    def _all_that_was_said(self, chat: Conversation) -> tuple[int, ...]:
        """A conversation's ids, those the model has no room for included."""
        return chat.encode(self.checkpoint.tokenizer, sys.maxsize).input_ids

    def _alternatives(self, tokens: np.ndarray, lengths: np.ndarray, scores: np.ndarray) -> tuple[Alternative, ...]:
        """The R replies to a prompt."""
        return tuple(
            Alternative(self.checkpoint.decode(row[:length]), float(score))
            for row, length, score in zip(tokens, lengths, scores, strict=True)
        )


def _response(chat: Conversation, encoded: EncodedConversation, found: tuple[Alternative, ...]) -> Response:
    best = found[0]
    return Response(
        text=best.text,
        score=best.score,
        conversation=chat.add("bot", best.text) if best.text else chat,
        dropped_turns=encoded.dropped_turns,
        dropped_tokens=encoded.dropped_tokens,
        alternatives=found,
    )


def _refusal(refused: dict[int, Exception], count: int) -> str:
    """What to say of inputs that cannot be answered, the first few of them by place."""
    reasons = [f"inputs[{place}]: {error}" for place, error in list(refused.items())[:_NAMED]]
    reasons += [f"and {len(refused) - _NAMED} more"] * (len(refused) > _NAMED)
    return (
        f"{len(refused)} of {count} inputs cannot be answered, and nothing was decoded: {'; '.join(reasons)}. Pass "
        "on_refused=function(place, error) to answer the others and leave the replies to these empty"
    )
