"""BLEU: ParlAI's mean over sentences, that of a corpus, and sacreBLEU's, which a paper can cite.

BLEU (Papineni et al., 2002) is the geometric mean of n-gram precisions, each n-gram counted at most as often as a
reference has it, times a penalty for what is shorter than its references.
"""

import importlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from blenderbot_jax.evaluation.text import References, ngrams, normalized, several, words

_EPSILON = 1e-12
_INSTALL = "citable scores need sacreBLEU: pip install 'blenderbot-jax[eval]'"


def sentence_bleu(reply: str, references: References, n: int = 4) -> float:
    """BLEU of one reply as ParlAI's `bleu-1` to `bleu-4` count it; their figure is the mean over replies.

    That is NLTK's `sentence_bleu` on normalised words with smoothing method 1 of Chen and Cherry (2014) and an epsilon
    of 1e-12: an order of which nothing matches has precision epsilon / its n-grams, so a reply that shares no run of n
    words scores near 0 whatever else it shares.

    Args:
        reply: what is measured.
        references: one or several.
        n: the longest n-grams that count.

    Returns:
        0 to 1.

    Example:
        >>> round(sentence_bleu("i love my two dogs so much", "i love my two dogs a lot"), 4)
        0.6148
    """
    # An empty text is one empty word here, as it is to ParlAI.
    ours = normalized(reply).split(" ")
    theirs = [normalized(one).split(" ") for one in several(references)]
    matches = [_matches(ours, theirs, order) for order in range(1, n + 1)]
    if not matches[0][0]:
        return 0.0
    logs = [math.log((shared or _EPSILON) / max(total, 1)) for shared, total in matches]
    return _brevity(len(ours), _closest(len(ours), theirs)) * math.exp(math.fsum(logs) / n)


def corpus_bleu(replies: Sequence[str], references: Sequence[References], n: int = 4) -> float:
    """BLEU of a corpus, as it was defined: matches, n-grams and lengths are summed over all replies first.

    It counts normalised words, so it compares with ParlAI's figures and not with those of other tokenisers; see
    `citable_scores` for the latter.

    Args:
        replies: what is measured.
        references: one or several for each.
        n: the longest n-grams that count.

    Returns:
        0 to 1; 0 where nothing of some order matches.

    Raises:
        ValueError: as many replies as references there are not, or there are none.

    Example:
        >>> round(corpus_bleu(["we like music", "i love my two dogs"], ["so do i", "i love my two dogs"]), 4)
        0.7477
    """
    check_pairs(replies, references)
    shared, total, length, closest = [0] * n, [0] * n, 0, 0
    for reply, right in zip(replies, references, strict=True):
        ours, theirs = words(reply), [words(one) for one in several(right)]
        for order in range(n):
            found = _matches(ours, theirs, order + 1)
            shared[order] += found[0]
            total[order] += found[1]
        length += len(ours)
        closest += _closest(len(ours), theirs)
    if not all(shared):
        return 0.0
    logs = [math.log(a / b) for a, b in zip(shared, total, strict=True)]
    return _brevity(length, closest) * math.exp(math.fsum(logs) / n)


@dataclass(frozen=True)
class CitableScores:
    """What sacreBLEU says, 0 to 100, and the signatures that say how."""

    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str


def citable_scores(replies: Sequence[str], references: Sequence[References]) -> CitableScores:
    """BLEU and chrF by sacreBLEU (Post, 2018) on the texts as they are: cite them with their signatures.

    Args:
        replies: what is measured.
        references: one or several for each.

    Raises:
        ModuleNotFoundError: sacreBLEU is missing; the message names the extra that brings it.
        ValueError: as many replies as references there are not, or there are none.
    """
    check_pairs(replies, references)
    metrics = sacrebleu_metrics()
    each = [several(right) for right in references]
    # Streams: the first reference of every reply, the second of those that have one, and so on.
    streams = [[right[i] if i < len(right) else None for right in each] for i in range(max(map(len, each)))]
    bleu, chrf = metrics.BLEU(), metrics.CHRF()
    # A signature is known once something was scored.
    scores = [metric.corpus_score(list(replies), streams).score for metric in (bleu, chrf)]
    return CitableScores(scores[0], scores[1], str(bleu.get_signature()), str(chrf.get_signature()))


def sacrebleu_metrics() -> Any:
    """sacreBLEU's module of metrics.

    Raises:
        ModuleNotFoundError: it is missing; the message names the extra that brings it.
    """
    try:
        return importlib.import_module("sacrebleu.metrics")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: {_INSTALL}") from error


def check_pairs(replies: Sequence[str], references: Sequence[References]) -> None:
    """Refuse replies and references that do not pair up.

    Raises:
        ValueError: different numbers of them, or none.
        TypeError: a single text where a list is wanted.
    """
    if isinstance(replies, str) or isinstance(references, str):
        raise TypeError("a corpus is a list of replies and a list of references, one or several texts for each reply")
    if len(replies) != len(references):
        raise ValueError(f"every reply has its references: there are {len(replies)} replies, {len(references)} of them")
    if not replies:
        raise ValueError("there are no replies to measure")


def _matches(ours: list[str], theirs: list[list[str]], n: int) -> tuple[int, int]:
    """n-grams of a reply that its references have as often, and all of the reply's n-grams."""
    found, most = Counter(ngrams(ours, n)), Counter[tuple[str, ...]]()
    for reference in theirs:
        most |= Counter(ngrams(reference, n))
    return (found & most).total(), found.total()


def _closest(length: int, theirs: list[list[str]]) -> int:
    """The length of the reference nearest to a reply's, the shorter one of two."""
    return min((len(reference) for reference in theirs), key=lambda other: (abs(other - length), other))


def _brevity(length: int, reference: int) -> float:
    """The penalty of what is shorter than its references."""
    if length > reference:
        return 1.0
    return math.exp(1 - reference / length) if length else 0.0
