"""How varied replies are: distinct n-grams, repetition, length.

They need no references. Words are those of `text.words`, n-grams never span two replies.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from blenderbot_jax.evaluation.text import ngrams, words


def intra_distinct(replies: Sequence[str], n: int) -> float:
    """The mean over replies of distinct n-grams / n-grams of that reply; ParlAI's `intradistinct-n`.

    Args:
        replies: one that has no n-grams counts as 0, as it does there.
        n: words of an n-gram.

    Example:
        >>> intra_distinct(["no no no no", "yes i do"], 1)
        0.625
    """
    return mean(_distinct([Counter(ngrams(words(reply), n))]) for reply in replies)


def inter_distinct(replies: Sequence[str], n: int) -> float:
    """Distinct n-grams / n-grams of all replies together (Li et al., 2016); ParlAI's `interdistinct-n`.

    It falls as replies are added, so compare figures over equally many.

    Example:
        >>> inter_distinct(["i do", "i do not"], 1)
        0.6
    """
    return _distinct(Counter(ngrams(words(reply), n)) for reply in replies)


def repeated_share(replies: Sequence[str], n: int) -> float:
    """The share of all n-grams that had occurred in the same reply before.

    Example:
        >>> repeated_share(["no no no no", "yes i do"], 1)
        0.42857142857142855
    """
    counts = [Counter(ngrams(words(reply), n)) for reply in replies]
    total = sum(count.total() for count in counts)
    return sum(count.total() - len(count) for count in counts) / total if total else 0.0


def repeating_share(replies: Sequence[str], n: int) -> float:
    """The share of replies that hold an n-gram more than once.

    Example:
        >>> repeating_share(["i do and i do", "i do not"], 2)
        0.5
    """
    counts = (Counter(ngrams(words(reply), n)) for reply in replies)
    return mean(count.total() > len(count) for count in counts)


def mean_words(texts: Sequence[str]) -> float:
    """The mean number of words, counted at white space, articles included.

    Example:
        >>> mean_words(["Yes, I do.", "The end"])
        2.5
    """
    return mean(len(text.split()) for text in texts)


def mean(values: Iterable[float]) -> float:
    """The mean; 0 of nothing."""
    found = list(values)
    return sum(found) / len(found) if found else 0.0


def _distinct(counts: Iterable[Counter[tuple[str, ...]]]) -> float:
    together = Counter[tuple[str, ...]]()
    for count in counts:
        together.update(count)
    return len(together) / together.total() if together else 0.0
