"""The bundled model, exported, gives in transformers the replies it gives here, on real dialogues."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from blenderbot_jax.checkpoint import save_pretrained
from blenderbot_jax.dialogue import Conversation
from blenderbot_jax.generation import GenerationConfig, generate
from blenderbot_jax.pretrained import Checkpoint
from tests.parity.generation import decode_in_transformers, mismatches

BATCH = 10


def real_contexts(data_folder: Path, checkpoint: Checkpoint, count: int) -> list[tuple[int, ...]]:
    """Histories of held-out dialogues of every length, as the model reads them."""
    contexts = []
    lines = [
        line
        for path in sorted((data_folder / "dialogues").glob("*.valid.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    rng = np.random.default_rng(0)
    for row in rng.permutation(len(lines))[:count]:
        turns = [turn["text"] for turn in json.loads(lines[row])["turns"] if turn["text"].strip()]
        chat = Conversation()
        for i, text in enumerate(turns[: rng.integers(1, len(turns) + 1)]):
            chat = chat.add("bot" if i % 2 else "user", text)
        contexts.append(chat.encode(checkpoint.tokenizer).input_ids)
    assert len(contexts) == count
    return contexts


@pytest.mark.parametrize("count", [12, pytest.param(500, marks=pytest.mark.slow)])
def test_exported_and_run_in_transformers_it_says_the_same(data_folder: Path, tmp_path: Path, count: int):
    checkpoint = Checkpoint.from_pretrained("demo")
    save_pretrained(tmp_path, checkpoint.model.config, checkpoint.params)
    reference = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    recipe = GenerationConfig.recipe()
    contexts = sorted(real_contexts(data_folder, checkpoint, count), key=len)
    found, worst = [], 0.0
    for start in range(0, count, BATCH):
        rows = contexts[start : start + BATCH]
        mask = (np.arange(max(map(len, rows))) < np.array([len(row) for row in rows])[:, None]).astype(np.int32)
        ids = np.zeros(mask.shape, np.int32)
        ids[mask == 1] = np.concatenate(rows)
        ours = jax.device_get(generate(checkpoint.model, checkpoint.params, ids, mask, config=recipe))
        theirs = decode_in_transformers(reference, ids, mask, recipe)
        found += mismatches(reference, ids, mask, recipe, ours, theirs)
        assert theirs.scores is not None
        worst = max(worst, float(np.abs(ours.scores - theirs.scores).max()))
    assert found == []
    assert worst < 1e-3
