"""What a filter is: texts in, and for each what it found in it, if anything."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Finding:
    """Why a text is not to be said, or not to be answered."""

    filter: str
    """Which filter says so."""
    reason: str
    """What it found, in words."""


class Filter(Protocol):
    """Anything that looks at texts; a function will do.

    Example:
        >>> def no_shouting(texts):
        ...     return [Finding("no shouting", "all in capitals") if text.isupper() else None for text in texts]
        >>> first_findings([no_shouting], ["Hello.", "HELLO"])[1].reason
        'all in capitals'
    """

    def __call__(self, texts: Sequence[str], /) -> Sequence[Finding | None]:
        """What is found in each text, None where there is nothing."""
        ...


def description(one: Filter) -> str:
    """What tells a filter from others: its own `description`, or else the name of its function or class.

    Example:
        >>> description(len)
        'builtins.len'
    """
    own = getattr(one, "description", None)
    named: Any = one if hasattr(one, "__qualname__") else type(one)
    return own if isinstance(own, str) else f"{named.__module__}.{named.__qualname__}"


def first_findings(filters: Sequence[Filter], texts: Sequence[str]) -> list[Finding | None]:
    """What the first filter that finds something says of each text; an empty text is not looked at.

    Args:
        filters: asked in their order; a later one sees only what the earlier ones let pass.
        texts: to look at.

    Raises:
        ValueError: a filter that gives more or fewer answers than it was given texts.
    """
    findings: list[Finding | None] = [None] * len(texts)
    for one in filters:
        left = [place for place, text in enumerate(texts) if text and findings[place] is None]
        if not left:
            break
        found = list(one([texts[place] for place in left]))
        if len(found) != len(left):
            raise ValueError(f"a filter gives one answer a text: {one} gave {len(found)} for {len(left)} texts")
        for place, finding in zip(left, found, strict=True):
            findings[place] = finding
    return findings
