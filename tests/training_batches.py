"""Batches of random ids for the tests of training."""

from collections.abc import Iterator

import numpy as np

from blenderbot_jax.training import TrainingConfig

TINY = TrainingConfig(
    steps=6, batch_size=4, learning_rate=3e-3, warmup_steps=0, clip_norm=1.0, schedule="constant", validate_every=2
)


def batch(
    seed: int = 0, *, rows: int = 4, source: int = 7, target: int = 6, vocabulary: int = 96
) -> dict[str, np.ndarray]:
    """A batch with padding on both sides of a model."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(4, vocabulary, (rows, source)).astype(np.int32)
    labels = rng.integers(4, vocabulary, (rows, target)).astype(np.int32)
    mask = (np.arange(source) < rng.integers(2, source + 1, (rows, 1))).astype(np.int32)
    labels = np.where(np.arange(target) < rng.integers(2, target + 1, (rows, 1)), labels, -100).astype(np.int32)
    return {"input_ids": np.where(mask == 1, ids, 0).astype(np.int32), "attention_mask": mask, "labels": labels}


class RandomData:
    """Three batches an epoch, other ones in each."""

    fingerprint = "random"

    def __len__(self) -> int:
        return 3

    def epoch(self, number: int, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """The batches of an epoch from one on."""
        for place in range(start, 3):
            yield batch(10 * number + place)
