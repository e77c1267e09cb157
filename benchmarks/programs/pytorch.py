"""transformers in PyTorch, as its users call it: `generate` of a model in evaluation mode."""

from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.calls import Call

_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class PyTorch:
    """`AutoModelForSeq2SeqLM`, with the attention and the cache it chooses."""

    compiled = False

    def __init__(self, folder: Path, precision: str) -> None:
        transformers.logging.set_verbosity_error()
        self.model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=_DTYPES[precision]).eval()

    def prepare(self, call: Call) -> Any:
        """Ids as tensors."""
        ids = torch.tensor(call.input_ids)
        mask, config = (ids != 0).long(), config_of(call)
        return lambda: self.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)

    def replies(self, result: Any) -> list[list[int]]:
        """All but the start token."""
        return result[:, 1:].tolist()


def config_of(call: Call) -> Any:
    """A call's rules, the same as here in `programs/ours.py`."""
    return transformers.GenerationConfig(
        num_beams=call.num_beams,
        min_length=call.min_length,
        max_length=call.max_length,
        length_penalty=call.length_penalty,
        no_repeat_ngram_size=call.no_repeat_ngram_size,
        encoder_no_repeat_ngram_size=call.encoder_no_repeat_ngram_size,
        exponential_decay_length_penalty=None if call.stop is None else (call.stop - 2, 1e6),
        forced_eos_token_id=2,
        do_sample=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )


def load(folder: Path, workspace: Path, precision: str, threads: int) -> tuple[PyTorch, dict[str, str]]:
    """See `programs.load`."""
    del workspace
    torch.set_num_threads(threads)
    return PyTorch(folder, precision), {"torch": str(torch.__version__), "transformers": transformers.__version__}
