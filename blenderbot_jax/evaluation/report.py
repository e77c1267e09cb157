"""evaluate: how likely a model finds the replies of some corpora, and how good its own are."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from blenderbot_jax.chatbot import Chatbot
from blenderbot_jax.data import Batches, Example
from blenderbot_jax.evaluation.bleu import citable_scores
from blenderbot_jax.evaluation.diversity import mean
from blenderbot_jax.evaluation.likelihood import Likelihood, likelihood
from blenderbot_jax.evaluation.metrics import DEFAULT_METRICS, check_metrics, text_metrics
from blenderbot_jax.evaluation.replies import answer
from blenderbot_jax.generation.inputs import check_context, check_key
from blenderbot_jax.pretrained import Checkpoint


@dataclass(frozen=True)
class Answer:
    """A reply beside the one that was given."""

    corpus: str
    prompt: str
    """What the model read, as text."""
    reply: str
    reference: str
    tokens: int
    """Generated, the end token included."""


@dataclass(frozen=True)
class Scores:
    """What a model scored on some examples."""

    likelihood: Likelihood
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Of its own replies, by name; empty if it was not asked for any."""

    def to_dict(self) -> dict[str, float | None]:
        """All figures under one level of names; what is not finite is None, for JSON knows no such numbers."""
        names = ("loss", "perplexity", "token_accuracy", "tokens", "examples")
        figures = {name: getattr(self.likelihood, name) for name in names} | dict(self.metrics)
        return {name: value if math.isfinite(value) else None for name, value in figures.items()}


@dataclass(frozen=True)
class Report:
    """What `evaluate` found."""

    in_all: Scores
    """Over the examples of all corpora together."""
    by_corpus: Mapping[str, Scores]
    answers: tuple[Answer, ...] = ()
    """In the order of the examples; empty if no replies were asked for."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """How replies were decoded: the fields of the `GenerationConfig` that are set."""
    signatures: Mapping[str, str] = field(default_factory=dict)
    """sacreBLEU's, by metric."""

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain dicts, without the answers."""
        return {
            "in_all": self.in_all.to_dict(),
            "by_corpus": {name: scores.to_dict() for name, scores in self.by_corpus.items()},
            "generation": dict(self.generation),
            "signatures": dict(self.signatures),
        }

    def to_json(self) -> str:
        """The same as JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)


def evaluate(
    checkpoint_or_bot: Checkpoint | Chatbot,
    examples: Iterable[Example] | Mapping[str, Iterable[Example]],
    *,
    metrics: Iterable[str] = DEFAULT_METRICS,
    batch_size: int = 16,
    key: jax.Array | None = None,
    on_progress: Callable[[str, int], object] | None = None,
) -> Report:
    """Measure a model: the likelihood of the replies that are given, and metrics of its own.

    The model answers the very ids that likelihood is measured on. Texts of references are decoded from labels, so what
    was cut from a long reply is not asked for.

    Args:
        checkpoint_or_bot: whose parameters are measured, as loaded: not prepared for decoding, which is done here. A
            checkpoint decodes by its own configuration, a bot by its.
        examples: of one corpus, or of several by name.
        metrics: of its replies, as for `text_metrics`; none for likelihood alone, which takes a fraction of the time.
        batch_size: examples scored together; replies are batched as the bot's `packing` says.
        key: a `jax.random.key`, needed if replies are drawn at random; example i of all draws from stream i of it.
        on_progress: called after each batch with "likelihood" or "replies", and the number of examples just done.

    Raises:
        ValueError: a corpus without examples, or examples that do not fit the model; a metric that there is not; a key
            too many or too few.
        ModuleNotFoundError: sacreBLEU is asked for and missing.

    Example:
        >>> examples = [Example(input_ids=(300, 2), labels=(310, 320, 2))]
        >>> evaluate(Checkpoint.from_pretrained("demo"), examples, metrics=()).in_all.likelihood.tokens
        3
    """
    names = check_metrics(metrics)
    bot = checkpoint_or_bot
    if isinstance(bot, Checkpoint):
        bot = Chatbot(bot, bot.generation_config)
    if names:
        check_key(bot.generation_config, key)
        check_context(bot.generation_config, None)
    corpora = _corpora(examples)
    told = on_progress or (lambda stage, count: None)
    found = {name: _likelihood(bot.checkpoint, part, batch_size, told) for name, part in corpora.items()}
    answers = _answers(bot, corpora, key, told) if names else ()
    scores = {name: Scores(found[name], _measured(answers, name, names)) for name in corpora}
    return Report(
        in_all=Scores(sum(found.values(), Likelihood()), _measured(answers, None, names)),
        by_corpus=scores,
        answers=answers,
        generation=bot.generation_config.to_dict() if names else {},
        signatures=_signatures(answers) if "sacrebleu" in names else {},
    )


def _corpora(examples: Iterable[Example] | Mapping[str, Iterable[Example]]) -> dict[str, tuple[Example, ...]]:
    if not isinstance(examples, Mapping):
        examples = {"examples": examples}
    corpora: dict[str, tuple[Example, ...]] = {str(name): tuple(part) for name, part in examples.items()}
    empty = [name for name, part in corpora.items() if not part]
    if empty or not corpora:
        raise ValueError(f"there is nothing to evaluate: no examples in {', '.join(empty) or 'any corpus'}")
    return corpora


def _likelihood(
    checkpoint: Checkpoint, examples: Sequence[Example], batch_size: int, told: Callable[[str, int], object]
) -> Likelihood:
    pad = checkpoint.model.config.pad_token_id or 0
    batches = Batches(examples, min(batch_size, len(examples)), shuffle=False, pad_token_id=pad)

    def followed() -> Iterator[Any]:
        for batch in batches.epoch(0):
            yield batch
            told("likelihood", int((batch["labels"] >= 0).any(axis=1).sum()))

    return likelihood(checkpoint.model, checkpoint.params, followed())


def _answers(
    bot: Chatbot,
    corpora: Mapping[str, tuple[Example, ...]],
    key: jax.Array | None,
    told: Callable[[str, int], object],
) -> tuple[Answer, ...]:
    """The bot's replies to all examples, packed together whatever their corpus."""
    placed = [(name, example) for name, part in corpora.items() for example in part]
    prompts = {place: example.input_ids for place, (_, example) in enumerate(placed)}
    fast = bot.prepared(min(len(placed), bot.packing.batch_size or len(placed)))
    replies = answer(fast, prompts, key=key, on_progress=lambda count: told("replies", count))

    text = bot.checkpoint.decode
    return tuple(
        Answer(name, text(example.input_ids), replies[place].text, text(example.labels), replies[place].tokens)
        for place, (name, example) in enumerate(placed)
    )


def _measured(answers: Sequence[Answer], corpus: str | None, metrics: Sequence[str]) -> dict[str, float]:
    """Metrics of the answers in a corpus, or of all for None."""
    mine = [one for one in answers if corpus in (None, one.corpus)]
    if not mine:
        return {}
    found = text_metrics([one.reply for one in mine], [one.reference for one in mine], metrics)
    return {**found, "reply_tokens": mean(one.tokens for one in mine)} if "length" in metrics else found


def _signatures(answers: Sequence[Answer]) -> dict[str, str]:
    scores = citable_scores([one.reply for one in answers], [one.reference for one in answers])
    return {"sacrebleu": scores.bleu_signature, "chrf": scores.chrf_signature}
