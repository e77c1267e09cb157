"""Corpora for tests: rows of any content, files of them, and what became of them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from blenderbot_jax.offline.rows import dump

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
ROWS = st.lists(st.dictionaries(st.text(), JSON, max_size=3), min_size=1, max_size=12)


def write(folder: Path, rows: Iterable[Mapping[str, Any]], name: str = "rows.jsonl") -> Path:
    """A file of rows."""
    path = folder / name
    path.write_bytes(b"".join(map(dump, rows)))
    return path


def read(path: Path) -> list[Any]:
    """Its rows again."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
