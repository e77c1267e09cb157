"""Print the golden numbers of `appendix_a.json` with transformers, and say how far the stored ones are from them.

    python -m tests.golden.make_appendix_a

The stored file was made with transformers 5.23.0 and torch 2.13.0 on a CPU, float32, eager attention. Its column
"small_scaled" needs a transformers before 4.53, which scaled the 90M decoder's embeddings, and is not checked here.
"""

import json
from typing import Any

import numpy as np
import torch
import transformers

from tests.golden.fill import GOLDEN, tensor_by_formula

CLASSES = {
    "blenderbot": (transformers.BlenderbotForConditionalGeneration, transformers.BlenderbotConfig),
    "small_unscaled": (transformers.BlenderbotSmallForConditionalGeneration, transformers.BlenderbotSmallConfig),
}


def reference(column: str, eos_bias: float | None) -> Any:
    """The transformers model with weights by formula."""
    model_class, config_class = CLASSES[column]
    model = model_class(config_class(**GOLDEN["config"], attn_implementation="eager")).eval()
    with torch.no_grad():
        for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
            tensor.copy_(torch.from_numpy(tensor_by_formula(name, tuple(tensor.shape))))
        if eos_bias is not None:
            model.final_logits_bias[0, 2] = eos_bias
    model.generation_config = transformers.GenerationConfig(
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, forced_eos_token_id=2
    )
    return model


def forward(column: str) -> dict[str, Any]:
    """The forward numbers of one column."""
    inputs = {name: torch.tensor(value) for name, value in GOLDEN["inputs"].items()}
    with torch.no_grad():
        out = reference(column, 3.0)(**inputs, attention_mask=(inputs["input_ids"] != 0).long())
    encoded, logits = out.encoder_last_hidden_state.numpy(), out.logits.numpy()
    return {
        "encoded[0,0,:4]": encoded[0, 0, :4].tolist(),
        "encoded[1,2,:4]": encoded[1, 2, :4].tolist(),
        "logits[0,0,:6]": logits[0, 0, :6].tolist(),
        "logits[1,2,:6]": logits[1, 2, :6].tolist(),
        "sum": float(logits.sum()),
        "sum_abs": float(np.abs(logits).sum()),
        "loss": float(out.loss),
    }


def replies(case: dict[str, Any]) -> list[list[list[int]]]:
    """The generated tokens of one case, up to the end."""
    ids = torch.tensor(GOLDEN["inputs"]["input_ids"])
    out = reference(case["model"], case["eos_bias"]).generate(ids, attention_mask=(ids != 0).long(), **case["settings"])
    rows = [row[: row.index(2, 1) + 1] for row in out.tolist()]
    returned = case["settings"].get("num_return_sequences", 1)
    return [rows[start : start + returned] for start in range(0, len(rows), returned)]


def main() -> None:
    """Print every number and the largest difference from the stored file."""
    worst = 0.0
    for column in CLASSES:
        found = forward(column)
        print(column, json.dumps(found))
        for name, value in found.items():
            worst = max(worst, float(np.abs(np.array(value) - np.array(GOLDEN["forward"][column][name])).max()))
    differing = 0
    for case in GOLDEN["generation"]:
        found = replies(case)
        print(case["model"], case["settings"], found)
        differing += found != [[row["tokens"] for row in rows] for rows in case["rows"]]
    print(f"largest difference {worst:.1e}; {differing} of {len(GOLDEN['generation'])} generated cases differ")


if __name__ == "__main__":
    main()
