"""Metrics of one text against references, on words as ParlAI counts them, so that numbers compare.

The rules are those of ParlAI's `parlai/core/metrics.py`: texts are lower-cased, punctuation becomes spaces, articles
go, and what stands between spaces is a word. Published F1 of dialogue models is F1 of such words. Values lie between 0
and 1.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

References = str | Sequence[str]
"""One right answer, or several of which the best counts."""

_PUNCTUATION = re.compile(r"""[!"#$%&()*+,\-./:;<=>?@\[\]\\^`{|}~_']""")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalized(text: str) -> str:
    """A text without case, punctuation and articles, its words one space apart.

    Example:
        >>> normalized("The cat's on a MAT, isn't it?")
        'cat s on mat isn t it'
    """
    return " ".join(_ARTICLES.sub(" ", _PUNCTUATION.sub(" ", text.lower())).split())


def words(text: str) -> list[str]:
    """The words of a text that metrics count."""
    return normalized(text).split()


def ngrams(items: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """Every run of n items, in order; none where there are fewer."""
    return (tuple(items[start : start + n]) for start in range(len(items) - n + 1))


def several(references: References) -> tuple[str, ...]:
    """References as a tuple, a single one too.

    Raises:
        ValueError: there is none.
    """
    found = (references,) if isinstance(references, str) else tuple(references)
    if not found:
        raise ValueError("a reply is measured against at least one reference, and there is none")
    return found


def f1(reply: str, references: References) -> float:
    """The harmonic mean of precision and recall of words, each as often as it occurs; ParlAI's `f1`.

    Args:
        reply: what is measured.
        references: of several, the one that gives most counts.

    Returns:
        0 to 1; 0 where either has no words.

    Example:
        >>> f1("I love the dogs!", ["i love cats", "We all love dogs."])
        0.6666666666666666
    """
    return rouge_n(reply, references, 1)


def exact_match(reply: str, references: References) -> float:
    """1 if the normalised reply is that of a reference, otherwise 0; ParlAI's `accuracy` of texts.

    Example:
        >>> exact_match("Yes, I do!", "yes i do"), exact_match("Yes.", "No.")
        (1.0, 0.0)
    """
    said = normalized(reply)
    return float(any(said == normalized(one) for one in several(references)))


def rouge_n(
    reply: str, references: References, n: int, *, statistic: Literal["f1", "precision", "recall"] = "f1"
) -> float:
    """ROUGE-N (Lin, 2004): how many n-grams two texts share, each as often as it occurs in both.

    Words are taken as they are: no stemming, no limit of length. ParlAI prints the recall of stemmed words (py-rouge
    with its defaults), which `statistic="recall"` differs from where stems do.

    Args:
        reply: what is measured.
        references: of several, the one that gives most counts.
        n: words of an n-gram.
        statistic: the share of the reply's n-grams, of the reference's, or the harmonic mean of both.

    Example:
        >>> rouge_n("i love my two dogs", "i love dogs", 2)
        0.3333333333333333
    """
    ours = Counter(ngrams(words(reply), n))

    def score(reference: str) -> float:
        theirs = Counter(ngrams(words(reference), n))
        return _overlap((ours & theirs).total(), ours.total(), theirs.total(), statistic)

    return max(map(score, several(references)))


def rouge_l(reply: str, references: References, *, statistic: Literal["f1", "precision", "recall"] = "f1") -> float:
    """ROUGE-L (Lin, 2004): the longest sequence of words that both texts hold in order, gaps allowed.

    Args:
        reply, references, statistic: as for `rouge_n`, and as there without stems.

    Example:
        >>> rouge_l("i love my two dogs", "i love dogs")
        0.75
    """
    ours = words(reply)

    def score(reference: str) -> float:
        theirs = words(reference)
        return _overlap(_common_subsequence(ours, theirs), len(ours), len(theirs), statistic)

    return max(map(score, several(references)))


def _overlap(shared: int, ours: int, theirs: int, statistic: str) -> float:
    """A statistic of how much of two collections is shared; 0 where nothing is."""
    if not shared:
        return 0.0
    if statistic == "f1":
        return 2 * shared / (ours + theirs)
    return shared / {"precision": ours, "recall": theirs}[statistic]


def _common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence: row by row over what the first i and j words share."""
    row = [0] * (len(b) + 1)
    for word in a:
        above, row = row, [0]
        for j, other in enumerate(b):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
    return row[-1]
