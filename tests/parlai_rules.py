"""ParlAI's decoding in plain Python, one prompt and one hypothesis at a time: what the compiled one is held to."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import jax
import numpy as np

from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.generation import GenerationConfig, ParlaiConfig
from blenderbot_jax.model import BlenderbotForConditionalGeneration, Params
from tests.golden.fill import golden_params

BARRED = -1e20
# What tiny models are asked, and how they decode.
PROMPTS = [[5, 6, 7, 8, 9, 10, 2], [30, 31, 5, 2], [90, 3, 17, 44, 2]]
RECIPE = GenerationConfig.parlai(
    num_beams=4, num_return_sequences=4, min_new_tokens=3, max_new_tokens=14, no_repeat_ngram_size=2,
    encoder_no_repeat_ngram_size=2,
)  # fmt: skip

Reply = tuple[tuple[int, ...], float]
"""A reply's tokens, the start token first, and its score."""


@dataclass(frozen=True)
class Rules:
    """The numbers of a configuration, by ParlAI's names where it has one."""

    beam_size: int
    start: int = 1
    end: int = 2
    beam_min_length: int = 0
    most_steps: int = 8
    beam_length_penalty: float = 0.65
    beam_block_ngram: int = 0
    beam_context_block_ngram: int = 0
    context: tuple[int, ...] = ()
    block_list: tuple[tuple[int, ...], ...] = ()
    temperature: float = 1.0
    inference: Literal["beam", "all", "topk", "nucleus"] = "beam"
    topk: int = 0
    topp: float = 1.0
    lambda_decay: float = 1.0
    omega_bound: float = 0.0
    full_stops: tuple[int, ...] = ()
    beam_delay: int | None = None


@dataclass(frozen=True)
class Hypothesis:
    """A reply so far, the start token first, and its summed log-probability."""

    tokens: tuple[int, ...]
    score: float = 0.0
    ended: bool = False


def decode(
    logits: Callable[[tuple[int, ...]], np.ndarray],
    rules: Rules,
    noise: Callable[[int, int], np.ndarray] | None = None,
) -> list[Reply]:
    """All finished replies and their scores, best first.

    Args:
        logits: (a reply so far) -> [V], what may follow it.
        rules: how.
        noise: (row, length) -> [V], the Gumbel noise that a token is drawn with.
    """
    hypotheses = [Hypothesis((rules.start,)) for _ in range(rules.beam_size)]
    finished: list[Hypothesis] = []
    a_first_one_ended = False
    for step in range(rules.most_steps):
        if a_first_one_ended and len(finished) >= rules.beam_size:
            break
        log_probs = [allowed(h.tokens, logits(h.tokens), rules) for h in hypotheses]
        priors = [BARRED if h.ended else h.score for h in hypotheses]
        if draws(step, rules):
            assert noise is not None
            chosen = [
                (row, *drawn(log_probs[row], h.tokens, noise(row, len(h.tokens)), rules))
                for row, h in enumerate(hypotheses)
            ]
            scored = [(row, token, priors[row] + log_prob) for row, token, log_prob in chosen]
        else:
            scored = best(log_probs[:1] if step == 0 else log_probs, priors, rules.beam_size)
        hypotheses = [
            Hypothesis((*hypotheses[row].tokens, token), score, token == rules.end) for row, token, score in scored
        ]
        finished += [h for h in hypotheses if h.ended and h.score > BARRED]
        a_first_one_ended = a_first_one_ended or hypotheses[0].ended
    if not finished:
        first = hypotheses[0]
        finished = [Hypothesis((*first.tokens[:-1], rules.end), first.score, ended=True)]
    replies = [(h.tokens, h.score / length_penalty(len(h.tokens) - 1, rules)) for h in finished]
    return sorted(replies, key=lambda reply: -reply[1])


def length_penalty(generated: int, rules: Rules) -> float:
    return math.pow((generated + 2) / 6, rules.beam_length_penalty)


def draws(step: int, rules: Rules) -> bool:
    return rules.inference != "beam" and (rules.beam_delay is None or step < rules.beam_delay)


def allowed(tokens: tuple[int, ...], logits: np.ndarray, rules: Rules) -> np.ndarray:
    """Log-probabilities of what may follow, those that must not at `BARRED`."""
    logits = logits.astype(np.float64) / rules.temperature
    logits[rules.start] = BARRED
    log_probs = log_softmax(logits)
    if len(tokens) - 1 < rules.beam_min_length:
        log_probs[rules.end] = BARRED
    for n, text in ((rules.beam_block_ngram, tokens), (rules.beam_context_block_ngram, rules.context)):
        for ngram in ngrams(text, n):
            if ends_in(tokens, ngram[:-1]):
                log_probs[ngram[-1]] = BARRED
    for phrase in rules.block_list:
        if ends_in(tokens, phrase[:-1]):
            log_probs[phrase[-1]] = BARRED
    return log_probs


def ngrams(text: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)] if n else []


def ends_in(tokens: tuple[int, ...], tail: tuple[int, ...]) -> bool:
    return not tail or tokens[-len(tail) :] == tail


def best(log_probs: list[np.ndarray], priors: list[float], count: int) -> list[tuple[int, int, float]]:
    """Rows, tokens and scores of the best continuations; of equals the earlier row first, then the lower token."""
    everything = [
        (row, token, priors[row] + log_prob) for row, one in enumerate(log_probs) for token, log_prob in enumerate(one)
    ]
    return sorted(everything, key=lambda found: -found[2])[:count]


def drawn(log_probs: np.ndarray, tokens: tuple[int, ...], noise: np.ndarray, rules: Rules) -> tuple[int, float]:
    """A token, and what it counts."""
    probabilities = np.exp(log_softmax(log_probs))
    descending = np.argsort(-probabilities, kind="stable")
    if rules.inference == "topk":
        kept = descending[: rules.topk]
    elif rules.inference == "nucleus":
        before = np.cumsum(probabilities[descending]) - probabilities[descending]
        kept = descending[before < nucleus(tokens, rules)]
    else:
        kept = descending
    counted = np.full(len(log_probs), -np.inf)
    counted[kept] = log_probs[kept]
    token = int(np.argmax(counted + noise))
    if rules.inference == "nucleus" and log_probs[token] > BARRED:
        counted = log_softmax(counted)
    return token, float(counted[token])


def nucleus(tokens: tuple[int, ...], rules: Rules) -> float:
    """How much probability the next token is drawn from: less, the further a sentence has come."""
    since = 0
    for token in tokens[1:]:
        since = 0 if token in rules.full_stops else since + 1
    return max(rules.omega_bound, rules.topp * rules.lambda_decay ** max(0, since - 1))


def log_softmax(values: np.ndarray) -> np.ndarray:
    values = values - values.max()
    return values - np.log(np.exp(values).sum())


# ---- the same for the library ----------------------------------------------------------------------------------------


def rules_of(config: ParlaiConfig, context: tuple[int, ...] = ()) -> Rules:
    """The same in ParlAI's terms."""
    inference = "topk" if config.top_k else "nucleus" if config.top_p is not None else "all"
    return Rules(
        beam_size=config.num_beams or config.num_return_sequences or 1,
        beam_min_length=config.min_new_tokens or 0,
        most_steps=config.max_new_tokens or 0,
        beam_length_penalty=1.0 if config.length_penalty is None else config.length_penalty,
        beam_block_ngram=config.no_repeat_ngram_size or 0,
        beam_context_block_ngram=config.encoder_no_repeat_ngram_size or 0,
        context=context,
        block_list=tuple(tuple(word) for word in config.bad_words_ids or ()),
        temperature=config.temperature or 1.0,
        inference=inference if config.do_sample else "beam",
        topk=config.top_k or 0,
        topp=1.0 if config.top_p is None else config.top_p,
        lambda_decay=config.top_p_decay or 1.0,
        omega_bound=config.top_p_floor or 0.0,
        full_stops=tuple(config.sentence_end_ids or ()),
        beam_delay=config.beam_delay,
    )


def replies(out: Any, b: int = 0) -> list[Reply]:
    """The replies to a prompt that there are, and their scores."""
    tokens = out.sequences if hasattr(out, "sequences") else out.tokens
    rows = zip(np.asarray(tokens)[b], np.asarray(out.lengths)[b], np.asarray(out.scores)[b], strict=True)
    return [(tuple(row[:length].tolist()), float(score)) for row, length, score in rows if length > 1]


def assert_same(found: list[Reply], expected: list[Reply]) -> None:
    """Token for token; there may be more replies behind the expected ones, or fewer than all of them."""
    count = min(len(found), len(expected))
    assert count
    assert [tokens for tokens, _ in found[:count]] == [tokens for tokens, _ in expected[:count]]
    np.testing.assert_allclose([score for _, score in found[:count]], [score for _, score in expected[:count]], 1e-4)


def tiny_model(config: BlenderbotConfig) -> tuple[BlenderbotForConditionalGeneration, Params]:
    """A model whose replies depend on all that it reads."""
    model = BlenderbotForConditionalGeneration(config)
    return model, jax.tree.map(lambda leaf: leaf * 4, golden_params(model, eos_bias=5.0))


def next_logits(model: Any, params: Any, prompt: Sequence[int]) -> Callable[[tuple[int, ...]], np.ndarray]:
    """(a reply so far) -> the logits of what follows, by the forward pass over all of it."""
    ids = np.asarray([prompt], np.int32)

    @cache
    def logits(tokens: tuple[int, ...]) -> np.ndarray:
        padded = np.zeros((1, 16), np.int32)
        padded[0, : len(tokens)] = tokens
        return np.asarray(_forward(model, params, ids, padded))[len(tokens) - 1]

    return logits


@partial(jax.jit, static_argnums=0)
def _forward(model: Any, params: Any, ids: jax.Array, tokens: jax.Array) -> jax.Array:
    return model.apply({"params": params}, ids, None, tokens).logits[0]
