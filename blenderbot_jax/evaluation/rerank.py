"""Reranking by a reverse model: of the replies a search found, prefer those that tell what they answer.

Likelihood alone favours replies that fit everything, such as "I don't know". Maximum mutual information (Li et al.,
2016, "A Diversity-Promoting Objective Function for Neural Conversation Models", MMI-bidi) also asks how likely the last
turn is as an answer to the reply, by a model trained on dialogues with their turns swapped.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import jax
import numpy as np

from blenderbot_jax.chatbot import Chatbot
from blenderbot_jax.dialogue import Conversation
from blenderbot_jax.evaluation.pairs import Pair, reply_log_probs
from blenderbot_jax.pretrained import Checkpoint
from blenderbot_jax.responses import Alternative, Response


def rerank(
    bot: Chatbot,
    reverse: Checkpoint,
    inputs: Sequence[str | Conversation],
    *,
    weight: float = 0.5,
    per_token: bool = False,
    batch_size: int = 16,
    key: jax.Array | None = None,
) -> list[Response]:
    """Answer conversations, each by the alternative of the best score

    log p(reply | conversation) + weight * log p(last turn | reply).

    Both terms are of texts: of their ids as the tokenizer writes them, end tokens included, under the plain models
    without the rules of decoding. What is longer than a model's positions loses its end.

    Args:
        bot: with `num_return_sequences` of 2 or more; its parameters as loaded, not prepared for decoding.
        reverse: the model that finds a turn likely or not as an answer to a reply; of any tokenizer.
        inputs: what users say, or what was said so far.
        weight: of the second term: lambda / (1 - lambda) in the paper's terms. 0 ranks by likelihood alone.
        per_token: divide each term by its number of tokens, so that short replies are no better for being short.
        batch_size: pairs scored together.
        key: a `jax.random.key`, needed if the bot samples, refused otherwise.

    Returns:
        One response per input: `alternatives` best first with these scores, and the best of them as the reply. An empty
        alternative scores -inf.

    Raises:
        ValueError: a bot that returns one reply alone; a weight that is not finite or is negative; inputs that cannot
            be answered.

    Example:
        >>> bot = Chatbot.from_pretrained("demo").configured(num_beams=3, num_return_sequences=3, max_length=12)
        >>> [response] = rerank(bot, bot.checkpoint, ["Do you like music?"])
        >>> len(response.alternatives), response.alternatives[0].text == response.text
        (3, True)
    """
    if (bot.generation_config.num_return_sequences or 1) < 2:
        raise ValueError(
            "there is nothing to rerank: the bot returns one reply to each input; take "
            "bot.configured(num_beams=10, num_return_sequences=10), or draw some with do_sample=True"
        )
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"weight is a finite number of at least 0, not {weight}")
    chats = [one if isinstance(one, Conversation) else Conversation().add("user", one) for one in inputs]
    responses = [response for response in bot.responses(chats, key=key) if response is not None]
    # Each text once: samples may agree.
    candidates = list(dict.fromkeys((place, one.text) for place, one in _alternatives(responses) if one.text))
    forward = [(_prompt(bot.checkpoint, chats[place]), _labels(bot.checkpoint, text)) for place, text in candidates]
    backward = [
        (_prompt(reverse, Conversation().add("user", text)), _labels(reverse, chats[place].turns[-1].text))
        for place, text in candidates
    ]
    fits = _totals(bot.checkpoint, forward, per_token, batch_size)
    tells = _totals(reverse, backward, per_token, batch_size)
    scores = dict(zip(candidates, (fits + weight * tells).tolist(), strict=True))
    return [
        _reordered(response, chat, [scores.get((place, one.text), -math.inf) for one in response.alternatives])
        for place, (response, chat) in enumerate(zip(responses, chats, strict=True))
    ]


def _alternatives(responses: Sequence[Response]) -> Iterator[tuple[int, Alternative]]:
    return ((place, one) for place, response in enumerate(responses) for one in response.alternatives)


def _prompt(checkpoint: Checkpoint, chat: Conversation) -> Sequence[int]:
    return checkpoint.encode(chat).input_ids


def _labels(checkpoint: Checkpoint, text: str) -> Sequence[int]:
    """The ids of a text as a reply, with its end token."""
    tokenizer = checkpoint.tokenizer
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return [*ids, tokenizer.eos_token_id][: checkpoint.model.config.max_position_embeddings]


def _totals(checkpoint: Checkpoint, pairs: Sequence[Pair], per_token: bool, batch_size: int) -> np.ndarray:
    """log p of each pair's reply in float64, by token if so wanted."""
    total = np.mean if per_token else np.sum
    return np.array([total(one, dtype=np.float64) for one in reply_log_probs(checkpoint, pairs, batch_size)])


def _reordered(response: Response, chat: Conversation, scores: Sequence[float]) -> Response:
    """A response with its alternatives by new scores, best first; those that score alike stay in order."""
    if not response.alternatives:
        return response  # filters held back what there was
    rescored = [Alternative(one.text, score) for one, score in zip(response.alternatives, scores, strict=True)]
    alternatives = tuple(sorted(rescored, key=lambda one: -one.score))
    best = alternatives[0]
    return replace(
        response,
        text=best.text,
        score=best.score,
        conversation=chat.add("bot", best.text) if best.text else chat,
        alternatives=alternatives,
    )
