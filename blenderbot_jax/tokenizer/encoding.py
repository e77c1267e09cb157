"""What a call of a tokenizer gives back."""

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import numpy as np


class BatchEncoding(Mapping[str, Any]):  # noqa: PLW1641 - a batch has no hash, as arrays have none
    """A read-only mapping of tokenized columns, with attribute access.

    Args:
        columns: `input_ids` and `attention_mask`, each an array [B, T], a list of rows, or one flat row.

    Example:
        >>> batch = BatchEncoding({"input_ids": [6950, 2], "attention_mask": [1, 1]})
        >>> batch.input_ids, dict(**batch)["attention_mask"]
        ([6950, 2], [1, 1])
    """

    input_ids: Any
    attention_mask: Any

    def __init__(self, columns: Mapping[str, Any]) -> None:
        vars(self).update(columns)

    def __getitem__(self, name: str) -> Any:
        return vars(self)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self))

    def __len__(self) -> int:
        return len(vars(self))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a BatchEncoding is read-only; {name!r} can be changed in a copy: dict(batch)")

    # Mapping's own would ask an array whether it is true.
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return self.keys() == other.keys() and all(_same(self[name], other[name]) for name in self)

    def __repr__(self) -> str:
        return f"BatchEncoding({vars(self)!r})"


def _same(a: Any, b: Any) -> bool:
    # Lists may be ragged, which numpy refuses to compare.
    return a == b if isinstance(a, list) and isinstance(b, list) else np.array_equal(a, b)
