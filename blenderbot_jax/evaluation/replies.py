"""Replies to many prompts by their places in a list, with the number of tokens that each took."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax

from blenderbot_jax.chatbot import Chatbot
from blenderbot_jax.generation import generate_many


@dataclass(frozen=True)
class Reply:
    """The best reply to a prompt."""

    text: str
    """As people read it; empty if the model ended it at once."""
    tokens: int
    """Generated, the end token included."""


def answer(
    bot: Chatbot,
    prompts: Mapping[int, Sequence[int]],
    *,
    contexts: Mapping[int, Sequence[int]] | None = None,
    key: jax.Array | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> dict[int, Reply]:
    """Answer prompts of ids, those of about the same length together; B, the batch, is what a `vmap` would map over.

    Each gets the reply that it gets alone, and draws from the stream of its place, whatever else is answered with it.

    Args:
        bot: who answers, batched as its `packing` says.
        prompts: ids by place.
        contexts: by place, what the rules that bar echoes look at, where that is not the prompts.
        key: a `jax.random.key`, needed if the bot samples, refused otherwise.
        on_progress: called with the number of prompts just answered, after each batch.

    Returns:
        Replies by place, in the order of `prompts`.

    Raises:
        ValueError: a prompt that cannot be answered, a key too many or too few; before anything is decoded.
    """
    checkpoint, found = bot.checkpoint, {}
    for places, replies in generate_many(
        checkpoint.model,
        checkpoint.params,
        prompts,
        config=bot.generation_config,
        key=key,
        packing=bot.packing,
        draft=bot.draft,
        contexts=contexts,
    ):
        # The best of R; its length counts the start token, which is not generated.
        for place, tokens, length in zip(places, replies.tokens[:, 0], replies.lengths[:, 0], strict=True):
            found[place] = Reply(checkpoint.decode(tokens[:length]), int(length) - 1)
        if on_progress:
            on_progress(len(places))
    return {place: found[place] for place in prompts}
