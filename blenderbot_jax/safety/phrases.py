"""A filter by a list of words and phrases."""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from blenderbot_jax.safety.filters import Finding

# What may stand before the first word of a phrase and behind its last one; ParlAI's, of which those with a hyphen are
# words of their own here.
PREFIXES = ("de", "dis", "ex", "mis", "pre", "non", "semi", "sub", "un")
SUFFIXES = (
    "a", "able", "as", "dom", "ed", "er", "ers", "ery", "es", "est", "ful", "fy", "ies", "ify", "in", "ing", "ish",
    "less", "ly", "s", "y",
)  # fmt: skip
# Harmless words that such an ending makes of common entries of such lists, as ParlAI excepts them.
ALLOWED = ("butter", "buttery", "spicy", "spiced", "spices", "spicier", "spicing", "twinkies")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")

Words = tuple[str, ...]


@dataclass(frozen=True)
class PhraseFilter:
    """Finds phrases as whole words, whatever their case and width of letters, with common endings and beginnings.

    Args:
        phrases: one or more words each; what stands between words, such as hyphens, does not count.
        allowed: phrases that are none, although an ending makes them of one.
        name: what findings call the filter.

    Raises:
        ValueError: no phrases, or one without a letter or digit.

    Example:
        >>> found = PhraseFilter(["rock band"])(["Do you like rock-bands?", "The rock banded."])
        >>> [one and one.reason for one in found]
        ["holds the phrase 'rock band'", "holds the phrase 'rock band'"]

    Source:
        ParlAI, `parlai/utils/safety.py` (`OffensiveStringMatcher`), which looks for the same forms.
    """

    phrases: tuple[str, ...]
    allowed: tuple[str, ...] = ALLOWED
    name: str = "phrases"
    _forms: dict[Words, str] = field(init=False, repr=False, compare=False)

    def __init__(self, phrases: Iterable[str], allowed: Iterable[str] = ALLOWED, name: str = "phrases") -> None:
        if isinstance(phrases, str):
            raise TypeError(f"phrases are a list of texts, not a single one: write [{phrases!r}]")
        kept = {"phrases": tuple(dict.fromkeys(phrases)), "allowed": tuple(allowed), "name": name}
        for field_name, value in kept.items():
            object.__setattr__(self, field_name, value)
        object.__setattr__(self, "_forms", _forms(self.phrases, {words(one) for one in self.allowed}))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], **options: object) -> "PhraseFilter":
        """Read a list of one phrase a line; empty lines, and what follows a `#` at a line's beginning, do not count.

        Args:
            path: a text file in UTF-8.
            options: `allowed` and `name`, as for the class; the name is the file's if none is given.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not UTF-8, or holds no phrase.
        """
        path = Path(path)
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: the file must be UTF-8 text; byte {error.start} is not") from None
        phrases = [line for line in lines if line and not line.startswith("#")]
        try:
            return cls(phrases, **{"name": path.name, **options})  # pyright: ignore[reportArgumentType]
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @property
    def description(self) -> str:
        """What tells the filter from others."""
        return repr(self)

    def __call__(self, texts: Sequence[str]) -> list[Finding | None]:
        """The first phrase in each text, None where there is none."""
        found = (self._find(words(text)) for text in texts)
        return [None if phrase is None else Finding(self.name, f"holds the phrase {phrase!r}") for phrase in found]

    def _find(self, said: Words) -> str | None:
        longest = max(map(len, self._forms))
        for begin in range(len(said)):
            for end in range(begin + 1, min(begin + longest, len(said)) + 1):
                if phrase := self._forms.get(said[begin:end]):
                    return phrase
        return None


def words(text: str) -> Words:
    """The words of a text in the form in which they are compared.

    Example:
        >>> words("Don’t SAY ﬁne-tuned!")
        ("don't", 'say', 'fine', 'tuned')
    """
    plain = unicodedata.normalize("NFKC", text).replace("\u2019", "'").casefold()
    return tuple(_WORD.findall(plain))


def _forms(phrases: Sequence[str], allowed: set[Words]) -> dict[Words, str]:
    """What to look for, and the phrase that it is a form of."""
    if not phrases:
        raise ValueError("there is no phrase to look for: give at least one")
    found: dict[Words, str] = {}
    for phrase in phrases:
        plain = words(phrase)
        if not plain:
            raise ValueError(f"a phrase has at least one letter or digit, {phrase!r} has none")
        for form in _inflected(plain):
            if form not in allowed:
                found.setdefault(form, phrase)
    if not found:
        raise ValueError("every phrase is allowed, so that there is none to look for")
    return found


def _inflected(phrase: Words) -> Iterator[Words]:
    yield phrase
    for prefix in PREFIXES:
        yield (prefix + phrase[0], *phrase[1:])
    for suffix in SUFFIXES:
        yield (*phrase[:-1], phrase[-1] + suffix)
