"""The likelihood of many single replies, each by itself: pairs of prompt and reply in batches of a few shapes."""

from collections.abc import Sequence

import numpy as np

from blenderbot_jax.generation.plan import LENGTH_BUCKETS, round_up
from blenderbot_jax.model import IGNORED_LABEL
from blenderbot_jax.pretrained import Checkpoint
from blenderbot_jax.scoring import token_log_probs

Pair = tuple[Sequence[int], Sequence[int]]
"""Ids of a prompt, and of a reply with its end token."""


def reply_log_probs(checkpoint: Checkpoint, pairs: Sequence[Pair], batch_size: int = 16) -> list[np.ndarray]:
    """log p of every token of every reply, given its prompt.

    Args:
        checkpoint: the model that judges.
        pairs: of any lengths, each at least 1 and at most the model's positions.
        batch_size: pairs judged together; the last batch of a shape is filled up, so shapes are few.

    Returns:
        For each pair, in their order, as many float32 numbers in nats as its reply has ids.

    Raises:
        ValueError: a batch size below 1, ids out of the vocabulary, an empty prompt or reply, or one too long.

    Example:
        >>> checkpoint = Checkpoint.from_pretrained("demo")
        >>> [found.shape for found in reply_log_probs(checkpoint, [([300, 2], [310, 2]), ([300, 301, 2], [2])])]
        [(2,), (1,)]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    positions = checkpoint.model.config.max_position_embeddings
    by_shape: dict[tuple[int, int], list[int]] = {}
    for place, pair in enumerate(pairs):
        source, target = (_width(len(ids), positions) for ids in pair)
        by_shape.setdefault((source, target), []).append(place)
    found: list[np.ndarray] = [np.empty(0, np.float32)] * len(pairs)
    for shape, places in by_shape.items():
        for start in range(0, len(places), batch_size):
            chosen = places[start : start + batch_size]
            rows = _log_probs(checkpoint, [pairs[place] for place in chosen], batch_size, shape)
            for place, row in zip(chosen, rows, strict=False):
                found[place] = row[: len(pairs[place][1])]
    return found


def _width(length: int, positions: int) -> int:
    """A length rounded up to a bucket; one that does not fit stays as it is, for the model to refuse."""
    bucket = round_up(length, LENGTH_BUCKETS)
    return max(length, min(bucket, positions))


def _log_probs(checkpoint: Checkpoint, pairs: Sequence[Pair], rows: int, shape: tuple[int, int]) -> np.ndarray:
    """[B, T] for pairs padded to B rows and a shape (S, T)."""
    # Rows that only fill the batch repeat the last pair, whose figures are then not read.
    full = [*pairs, *[pairs[-1]] * (rows - len(pairs))]
    ids, mask = _padded([source for source, _ in full], shape[0], checkpoint.model.config.pad_token_id or 0)
    labels, _ = _padded([target for _, target in full], shape[1], IGNORED_LABEL)
    return np.asarray(token_log_probs(checkpoint.model, checkpoint.params, ids, mask, labels))


def _padded(rows: Sequence[Sequence[int]], width: int, fill: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows as one array, and where it holds them; both [B, width] int32."""
    mask = np.arange(width) < np.array([len(row) for row in rows])[:, None]
    array = np.full(mask.shape, fill, np.int32)
    array[mask] = np.concatenate(rows)
    return array, mask.astype(np.int32)
