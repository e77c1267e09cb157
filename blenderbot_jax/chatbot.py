"""Chatbot: text in, text out."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from blenderbot_jax.dialogue import Conversation
from blenderbot_jax.generation import Draft, GenerationConfig, ParlaiConfig
from blenderbot_jax.generation.many import Packing, generate_many
from blenderbot_jax.generation.phrases import block_list
from blenderbot_jax.preparation import prepare, shared_arrays
from blenderbot_jax.presentable import presentable
from blenderbot_jax.pretrained import Checkpoint
from blenderbot_jax.responses import Alternative, Prompt, Response, refused, responded
from blenderbot_jax.safety import Filter, first_findings
from blenderbot_jax.warm import warm_up

REFUSAL = "I would rather not talk about that. What else would you like to talk about?"
"""What a guarded bot says to a line that is blocked, and where all of its replies are."""
# Of inputs that are refused, as many are named.
_NAMED = 5


@dataclass(frozen=True)
class Chatbot:
    """A checkpoint that talks.

    The first reply of each kind compiles a program, which takes seconds; later ones of about the same length do not.

    Args:
        checkpoint: model, parameters and tokenizer.
        generation_config: how to decode.
        packing: how many inputs are put together, and what prompts are padded to.
        draft: a smaller model that drafts, for bots that search no beams; `with_draft` makes one of a checkpoint.
        filters: what must pass before it is answered, or said; `guarded` adds them.
        refusal: what is said to a line that is blocked, and where all replies are.
        presents: whether replies get capitals and spaces as people write them; the 90M model has none of its own.

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
    filters: tuple[Filter, ...] = ()
    refusal: str = REFUSAL
    presents: bool = False

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

    def guarded(self, *filters: Filter, refusal: str | None = None) -> Self:
        """The same bot with filters on both sides, behind those that it has.

        A line of the user that is blocked is answered by `refusal` and forgotten; a reply that is blocked gives way to
        the next-best one that passes. `Response.blocked` says what was held back, and why.

        Args:
            filters: such as `PhraseFilter`, `SafetyClassifier`, or any function like them; asked in their order.
            refusal: what is said to a line that is blocked, and where all replies are; as before if None.

        Example:
            >>> from blenderbot_jax import PhraseFilter
            >>> bot = Chatbot.from_pretrained("demo").guarded(PhraseFilter(["rock band"]), refusal="Let us not.")
            >>> response = bot.respond(Conversation().add("user", "Do you like rock bands?"))
            >>> response.text, response.blocked[0].finding.reason
            ('Let us not.', "holds the phrase 'rock band'")
        """
        changed = {} if refusal is None else {"refusal": refusal}
        return replace(self, filters=(*self.filters, *filters), **changed)

    def presentable(self) -> Self:
        """The same bot, which writes capitals and spaces as people do; a conversation keeps its words so too.

        Example:
            >>> Chatbot.from_pretrained("demo").presentable().presents
            True
        """
        return replace(self, presents=True)

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

    def prepared(self, prompts: int = 1, *, donate: bool = False) -> Self:
        """The same bot with weights packed for batches of so many prompts; `prepare` says what that does.

        Args:
            prompts: B, those that are usually answered together.
            donate: whether this bot's own weights may be used up, so that memory holds them once; no other bot of the
                same checkpoint can answer then. Without effect where a draft shares arrays with the model.
        """
        checkpoint, config = self.checkpoint, self.generation_config
        rows, draft = prompts * max(config.num_beams or 1, config.num_return_sequences or 1), self.draft
        if draft is not None:
            donate = donate and not shared_arrays(draft.params, checkpoint.params)
            draft = replace(draft, params=prepare(draft.model, draft.params, rows=rows, donate=donate))
            # The model reads all drafted tokens in one step.
            rows *= draft.tokens + 1
        params = prepare(checkpoint.model, checkpoint.params, rows=rows, donate=donate)
        return replace(self, checkpoint=replace(checkpoint, params=params), draft=draft)

    def warm_up(self, **sizes: Any) -> tuple[tuple[int, int], ...]:
        """Compile ahead of time what replies need.

        Args:
            sizes: `batch_sizes`, `source_widths` and `on_progress`, as for `warm.warm_up`.

        Returns:
            The (batch size, width) of each program.
        """
        checkpoint = self.checkpoint
        return warm_up(checkpoint.model, checkpoint.params, self._searching(), draft=self.draft, **sizes)

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
        for found in self.answers(prompts, key=key, packing=packing):
            for place, response in found.items():
                responses[place] = response
            if on_progress:
                on_progress(len(found))
        return responses

    def respond(self, conversation: Conversation, *, key: jax.Array | None = None) -> Response:
        """Continue a conversation.

        Args:
            conversation: what was said so far; it is not changed.
            key: a `jax.random.key`, needed if the bot samples.
        """
        prompt = Prompt(conversation, self.checkpoint.encode(conversation))
        [found] = self.answers({0: prompt}, key=key)
        return found[0]

    def answers(
        self, prompts: Mapping[int, Prompt], *, key: jax.Array | None = None, packing: Packing | None = None
    ) -> Iterator[dict[int, Response]]:
        """Answer prompts by their places, batch by batch as they come; what all ways to answer many are made of.

        Args:
            prompts: by place, which tells the stream of `key` that each draws from.
            key: a `jax.random.key`, needed if the bot samples.
            packing: how they are put together; the bot's own if None.

        Yields:
            The responses of a batch, by place. Lines of users that filters block come first.

        Raises:
            ValueError: a prompt that cannot be answered, a key too many or too few; before anything is decoded.
        """
        lines = {place: prompt.conversation.turns[-1] for place, prompt in prompts.items()} if self.filters else {}
        lines = {place: line for place, line in lines.items() if line.speaker == "user"}
        findings = first_findings(self.filters, [line.text for line in lines.values()])
        blocked = {place: finding for place, finding in zip(lines, findings, strict=True) if finding is not None}
        if blocked:
            yield {place: refused(prompts[place], finding, self.refusal) for place, finding in blocked.items()}
        left = {place: prompt for place, prompt in prompts.items() if place not in blocked}
        if not left:
            return
        for places, found in self._decode(left, key, packing or self.packing):
            yield self._responses({place: prompts[place] for place in places}, found)

    def _responses(
        self, prompts: Mapping[int, Prompt], found: Sequence[tuple[Alternative, ...]]
    ) -> dict[int, Response]:
        """What filters leave of a batch."""
        findings = iter(first_findings(self.filters, [one.text for row in found for one in row]))
        limit = self.generation_config.num_return_sequences or 1
        return {
            place: responded(prompts[place], row, [next(findings) for _ in row], limit, self.refusal)
            for place, row in zip(prompts, found, strict=True)
        }

    def _read(self, inputs: Sequence[str | Conversation]) -> tuple[dict[int, Prompt], dict[int, Exception]]:
        """What each input is as ids, and why some cannot be; both by place."""
        prompts: dict[int, Prompt] = {}
        refusals: dict[int, Exception] = {}
        for place, given in enumerate(inputs):
            try:
                chat = given if isinstance(given, Conversation) else Conversation().add("user", given)
                prompts[place] = Prompt(chat, self.checkpoint.encode(chat))
            except (TypeError, ValueError) as error:
                refusals[place] = error
        return prompts, refusals

    def _decode(
        self, prompts: Mapping[int, Prompt], key: jax.Array | None, packing: Packing
    ) -> Iterator[tuple[tuple[int, ...], list[tuple[Alternative, ...]]]]:
        """Batch by batch: places, and for each all replies, best first."""
        checkpoint, config = self.checkpoint, self._searching()
        ids = {place: prompt.encoded.input_ids for place, prompt in prompts.items()}
        options: dict[str, Any] = {"config": config, "key": key, "packing": packing, "draft": self.draft}
        if isinstance(config, ParlaiConfig) and config.block_full_context:
            options["contexts"] = {place: self._all_that_was_said(one.conversation) for place, one in prompts.items()}
        for places, replies in generate_many(checkpoint.model, checkpoint.params, ids, **options):
            rows = zip(replies.tokens, replies.lengths, replies.scores, strict=True)
            yield places, [self._alternatives(*row) for row in rows]

    def _searching(self) -> GenerationConfig:
        """How to decode: under filters all beams are replies, so that there is a next-best one."""
        config = self.generation_config
        most = max(config.num_beams or 1, config.num_return_sequences or 1)
        return config.replace(num_return_sequences=most) if self.filters else config

    def _all_that_was_said(self, chat: Conversation) -> tuple[int, ...]:
        """A conversation's ids, those the model has no room for included."""
        return chat.encode(self.checkpoint.tokenizer, sys.maxsize).input_ids

    def _alternatives(self, tokens: np.ndarray, lengths: np.ndarray, scores: np.ndarray) -> tuple[Alternative, ...]:
        """The R replies to a prompt."""
        texts = (self._written(row[:length]) for row, length in zip(tokens, lengths, strict=True))
        return tuple(Alternative(text, float(score)) for text, score in zip(texts, scores, strict=True))

    def _written(self, ids: np.ndarray) -> str:
        if not self.presents:
            return self.checkpoint.decode(ids)
        # With its spaces, which tell a quotation mark from an apostrophe.
        return presentable(self.checkpoint.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _refusal(refused: dict[int, Exception], count: int) -> str:
    """What to say of inputs that cannot be answered, the first few of them by place."""
    reasons = [f"inputs[{place}]: {error}" for place, error in list(refused.items())[:_NAMED]]
    reasons += [f"and {len(refused) - _NAMED} more"] * (len(refused) > _NAMED)
    return (
        f"{len(refused)} of {count} inputs cannot be answered, and nothing was decoded: {'; '.join(reasons)}. Pass "
        "on_refused=function(place, error) to answer the others and leave the replies to these empty"
    )
