"""The replies transformers decodes under every rule, for weights by formula, reproduced without PyTorch."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from blenderbot_jax.generation import GenerationConfig, generate
from tests.golden.fill import golden_model, golden_params

GOLDEN = json.loads((Path(__file__).parent / "golden/replies.json").read_text(encoding="utf-8"))


def name(case: dict[str, Any]) -> str:
    return " ".join(sorted(set(case["settings"]) - {"max_length", "num_return_sequences"}))


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=name)
def test_replies_are_the_recorded_ones(case):
    model, settings = golden_model(case["model"]), dict(case["settings"])
    begun = np.array(GOLDEN["decoder_input_ids"]) if settings.pop("prompt", False) else None
    config = GenerationConfig(**settings)
    out = generate(
        model,
        golden_params(model),
        np.array(GOLDEN["input_ids"]),
        config=config,
        key=jax.random.key(case["key"]) if config.do_sample else None,
        decoder_input_ids=begun,
    )
    for b, rows in enumerate(case["replies"]):
        for r, expected in enumerate(rows):
            assert np.asarray(out.sequences)[b, r, : int(out.lengths[b, r])].tolist() == expected


def test_the_recorded_replies_differ_among_the_cases():
    assert len({json.dumps(case["replies"]) for case in GOLDEN["cases"]}) == len(GOLDEN["cases"])
