"""A call of `generate` as plain data, so that it can be sent to a process that knows nothing of this library."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Call:
    """One call of a program's `generate`, as plain data."""

    input_ids: tuple[tuple[int, ...], ...]
    """B rows of ids, padded with 0 on the right."""
    num_beams: int
    min_length: int
    max_length: int
    stop: int | None = None
    """Tokens after which `</s>` is made to win, where random weights would never choose it; it is one of them."""
    length_penalty: float = 0.65
    no_repeat_ngram_size: int = 3
    encoder_no_repeat_ngram_size: int = 3

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Call":
        """From JSON."""
        return cls(**{**values, "input_ids": tuple(map(tuple, values["input_ids"]))})

    @property
    def steps(self) -> int | None:
        """Decode steps, where they are the same for every program."""
        if self.stop is not None:
            return self.stop
        return self.max_length - 1 if self.min_length == self.max_length else None
