"""Byte-pair encoding of one word as subword-nmt does it, the library whose merges the 90M model was trained with."""

from collections.abc import Sequence
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import pairwise

from blenderbot_jax.tokenizer.vocabulary import END_OF_WORD, Merge

# Words of a dialogue recur; a longer "word" is somebody's keyboard and would only fill the memory.
_KEPT_WORDS = 2**16
_LONGEST_KEPT = 64


class SubwordBPE:
    """Merges that join the characters of a word into pieces, those of the lowest rank first.

    Immutable but for a bounded memory of words, which changes no result and is not pickled. It needs time in proportion
    to n log n for a word of n characters, so that nobody can stall a server with one.

    Args:
        merges: pairs in order of rank; the last character of a word is marked `</w>`.

    Example:
        >>> bpe = SubwordBPE([("t", "h"), ("th", "e</w>"), ("th", "e"), ("n", "</w>")])
        >>> bpe("the"), bpe("then"), bpe("")
        (('the',), ('the@@', 'n'), ())

    References:
        Sennrich, Haddow and Birch 2016, arXiv:1508.07909; subword-nmt 0.3, version 0.2 of its format.
    """

    def __init__(self, merges: Sequence[Merge]) -> None:
        self._merges = tuple(merges)
        self._ranks = {merge: rank for rank, merge in enumerate(self._merges)}
        self._kept = lru_cache(_KEPT_WORDS)(self._split)

    def __call__(self, word: str) -> tuple[str, ...]:
        """The pieces of a word, all but the last followed by `@@`."""
        return self._kept(word) if len(word) <= _LONGEST_KEPT else self._split(word)

    def __reduce__(self) -> tuple[type["SubwordBPE"], tuple[tuple[Merge, ...]]]:
        return type(self), (self._merges,)

    def _split(self, word: str) -> tuple[str, ...]:
        if not word:
            return ()
        symbols = _joined([*word[:-1], word[-1] + END_OF_WORD], self._ranks)
        return marked([*symbols[:-1], symbols[-1].removesuffix(END_OF_WORD)])


def marked(pieces: Sequence[str]) -> tuple[str, ...]:
    """The pieces of one word as a vocabulary writes them: `@@` says that the word goes on.

    Example:
        >>> marked("the")
        ('t@@', 'h@@', 'e')
    """
    return (*(f"{piece}@@" for piece in pieces[:-1]), *pieces[-1:])


def _joined(symbols: list[str], ranks: dict[Merge, int]) -> list[str]:
    """Join by rounds: in each, the present pairs of the lowest rank, from left to right.

    A pair that a round makes waits for the next, even if its rank is lower, as in subword-nmt. `symbols` is a linked
    list: what was joined to its left neighbour is left behind empty.
    """
    end = len(symbols)
    after, before = list(range(1, end + 1)), list(range(-1, end - 1))
    waiting = [(ranks[pair], place) for place, pair in enumerate(pairwise(symbols)) if pair in ranks]
    heapify(waiting)
    while waiting:
        rank, changed = waiting[0][0], []
        while waiting and waiting[0][0] == rank:
            left = heappop(waiting)[1]
            right = after[left]
            # Either side may have been joined elsewhere since.
            if right == end or ranks.get((symbols[left], symbols[right])) != rank:
                continue
            symbols[left] += symbols[right]
            symbols[right] = ""
            after[left] = after[right]
            if after[right] < end:
                before[after[right]] = left
            changed += [place for place in (before[left], left) if place >= 0]
        for place in changed:
            right = after[place]
            found = None if right == end else ranks.get((symbols[place], symbols[right]))
            if found is not None:
                heappush(waiting, (found, place))
    return [symbol for symbol in symbols if symbol]
