"""Write `replies.json`: what transformers decodes under every rule, for weights by formula.

    python -m tests.golden.make_replies

The stored file was made with transformers 5.23.0 and torch 2.13.0 on a CPU. Cases that draw use the noise of their key,
which `jax.random` promises to keep.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from blenderbot_jax.files import write_text
from blenderbot_jax.generation import GenerationConfig
from tests.golden.make_appendix_a import reference
from tests.parity.generation import decode_in_transformers, shared_noise

IDS = [[5, 9, 14, 21, 2], [7, 8, 2, 0, 0], [11, 30, 4, 2, 0]]
BEGUN = [[6, 11, 17], [9, 9, 4], [25, 3, 8]]
CASES: list[dict[str, Any]] = [
    {"sequence_bias": [[[29], -3.0], [[12, 9], 4.5], [[2], 1.0]], "repetition_penalty": 1.3, "max_length": 14},
    {"encoder_repetition_penalty": 1.6, "suppress_tokens": [12, 27], "min_new_tokens": 4, "max_length": 14},
    {"num_beams": 4, "num_return_sequences": 3, "forced_bos_token_id": 8, "begin_suppress_tokens": [13, 27],
     "exponential_decay_length_penalty": [3, 1.4], "length_penalty": 0.65, "max_length": 14},
    {"num_beams": 3, "num_return_sequences": 2, "renormalize_logits": True, "encoder_repetition_penalty": 0.7,
     "bad_words_ids": [[27], [29, 29]], "early_stopping": "never", "max_new_tokens": 10, "prompt": True},
    {"num_beams": 3, "remove_invalid_values": True, "no_repeat_ngram_size": 2, "min_length": 9, "max_length": 16,
     "prompt": True},
    {"do_sample": True, "num_return_sequences": 3, "temperature": 0.8, "top_k": 12, "top_p": 0.9, "max_length": 14},
    {"do_sample": True, "num_return_sequences": 2, "top_k": 0, "min_p": 0.1, "typical_p": 0.9, "max_length": 14},
    {"do_sample": True, "num_return_sequences": 2, "top_k": 0, "top_h": 0.7, "epsilon_cutoff": 0.02,
     "eta_cutoff": 0.05, "max_length": 14, "prompt": True},
    {"do_sample": True, "num_beams": 3, "num_return_sequences": 3, "top_k": 20, "temperature": 1.5, "max_length": 12},
]  # fmt: skip


def decoded(column: str, number: int) -> list[Any]:
    """The replies of transformers, [B][R] up to their end."""
    case = dict(CASES[number])
    begun = np.array(BEGUN) if case.pop("prompt", False) else None
    config, ids = GenerationConfig(**case), np.array(IDS)
    prompt_length = 1 if begun is None else 1 + len(BEGUN[0])
    with shared_noise(jax.random.key(number), len(IDS), config, prompt_length):
        model = reference(column, 3.0)
        out = decode_in_transformers(model, ids, (ids != 0).astype(int), config, decoder_input_ids=begun)
    ends = [[_end(row.tolist(), prompt_length) for row in rows] for rows in out.sequences]
    return [
        [row[:end].tolist() for row, end in zip(*pair, strict=True)] for pair in zip(out.sequences, ends, strict=True)
    ]


def _end(row: list[int], prompt_length: int) -> int:
    return row.index(2, prompt_length) + 1 if 2 in row[prompt_length:] else len(row)


def main() -> None:
    """Write the file beside this script."""
    cases = [
        {"model": column, "key": number, "settings": case, "replies": decoded(column, number)}
        for number, case in enumerate(CASES)
        for column in ("blenderbot", "small_unscaled")
        # One of the two models is enough for each rule; both take their turns.
        if (number % 2 == 0) == (column == "blenderbot")
    ]
    content = {"input_ids": IDS, "decoder_input_ids": BEGUN, "cases": cases}
    write_text(Path(__file__).with_name("replies.json"), json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
