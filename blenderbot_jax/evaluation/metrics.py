"""The metrics of generated replies by name, so that one can ask for some of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from blenderbot_jax.evaluation.bleu import (
    check_pairs,
    citable_scores,
    corpus_bleu,
    sacrebleu_metrics,
    sentence_bleu,
)
from blenderbot_jax.evaluation.diversity import (
    inter_distinct,
    intra_distinct,
    mean,
    mean_words,
    repeated_share,
    repeating_share,
)
from blenderbot_jax.evaluation.text import References, exact_match, f1, rouge_l, rouge_n, several

_Measure = Callable[[Sequence[str], Sequence[References]], dict[str, float]]


def _over_pairs(score: Callable[[str, References], float]) -> Callable[[Sequence[str], Sequence[References]], float]:
    """The mean over replies of what each scores against its references."""
    return lambda replies, references: mean(map(score, replies, references))


def _bleu(replies: Sequence[str], references: Sequence[References]) -> dict[str, float]:
    corpus = {f"corpus_bleu-{n}": corpus_bleu(replies, references, n) for n in range(1, 5)}
    return {"bleu-4": _over_pairs(sentence_bleu)(replies, references), **corpus}


def _rouge(replies: Sequence[str], references: Sequence[References]) -> dict[str, float]:
    by_n = {f"rouge-{n}": mean(rouge_n(*pair, n) for pair in zip(replies, references, strict=True)) for n in (1, 2)}
    return {**by_n, "rouge-L": _over_pairs(rouge_l)(replies, references)}


def _distinct(replies: Sequence[str], references: Sequence[References]) -> dict[str, float]:
    del references
    within = {f"intradistinct-{n}": intra_distinct(replies, n) for n in (1, 2)}
    return {**within, **{f"interdistinct-{n}": inter_distinct(replies, n) for n in (1, 2)}}


def _repetition(replies: Sequence[str], references: Sequence[References]) -> dict[str, float]:
    del references
    shares = {f"repeated-{n}": repeated_share(replies, n) for n in (1, 3)}
    return {**shares, "repeating-3": repeating_share(replies, 3)}


def _length(replies: Sequence[str], references: Sequence[References]) -> dict[str, float]:
    return {"words": mean_words(replies), "reference_words": mean_words([several(right)[0] for right in references])}


def _citable(replies: Sequence[str], references: Sequence[References]) -> dict[str, float]:
    scores = citable_scores(replies, references)
    return {"sacrebleu": scores.bleu, "chrf": scores.chrf}


METRICS: Mapping[str, _Measure] = {
    "f1": lambda *texts: {"f1": _over_pairs(f1)(*texts)},
    "exact": lambda *texts: {"exact_match": _over_pairs(exact_match)(*texts)},
    "bleu": _bleu,
    "rouge": _rouge,
    "distinct": _distinct,
    "repetition": _repetition,
    "length": _length,
    "sacrebleu": _citable,
}
DEFAULT_METRICS = tuple(name for name in METRICS if name != "sacrebleu")


def text_metrics(
    replies: Sequence[str], references: Sequence[References], metrics: Iterable[str] = DEFAULT_METRICS
) -> dict[str, float]:
    """Measure replies by the metrics named.

    Args:
        replies: texts.
        references: for each, one text or several.
        metrics: among `METRICS`: f1, exact, bleu (ParlAI's `bleu-4` and BLEU of the corpus), rouge (F1 of ROUGE-1, 2
            and L), distinct, repetition, length, and sacrebleu (with chrF, needs the extra `eval`).

    Returns:
        Values by name, between 0 and 1 but for lengths in words and sacreBLEU's, which go to 100.

    Raises:
        ValueError: a metric that there is not; replies and references that do not pair up, or none.
        ModuleNotFoundError: sacreBLEU is asked for and missing.

    Example:
        >>> text_metrics(["I do."], ["I do not."], ["f1", "exact"])
        {'f1': 0.8, 'exact_match': 0.0}
    """
    names = check_metrics(metrics)
    check_pairs(replies, references)
    return {key: value for name in names for key, value in METRICS[name](replies, references).items()}


def check_metrics(metrics: Iterable[str]) -> tuple[str, ...]:
    """Refuse names of metrics that could not be taken: call it before long work.

    Returns:
        The names, each once.

    Raises:
        ValueError: one that there is not.
        TypeError: a single text instead of a list.
        ModuleNotFoundError: sacreBLEU is asked for and missing.
    """
    if isinstance(metrics, str):
        raise TypeError(f"metrics is a list of names, as in [{metrics!r}]")
    names = tuple(dict.fromkeys(metrics))
    for name in names:
        if name not in METRICS:
            raise ValueError(f"there is no metric {name!r}: take some of {', '.join(METRICS)}")
    if "sacrebleu" in names:
        sacrebleu_metrics()
    return names
