"""CTranslate2. It registers no loader for Blenderbot, but its graph for BART, told where the norms stand, is the same.

It has no rule against the prompt's n-grams, and its calls run without. Weights are converted once, to float16, which is
what the checkpoints hold; they are widened or quantised as they are loaded.
"""

import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import ctranslate2  # pyright: ignore[reportMissingImports]

from benchmarks.calls import Call
from benchmarks.programs import UnavailableError

_TYPES = {"f32": "float32", "int8": "int8"}
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


class CTranslate2:
    """A `Translator` on the CPU."""

    compiled = False

    def __init__(self, folder: Path, workspace: Path, precision: str, threads: int) -> None:
        target = workspace / f"{folder.name}-ctranslate2"
        if not (target / "model.bin").exists():  # in a process that then gives its memory back
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                pool.submit(convert, folder, target).result()
        self.translator = ctranslate2.Translator(
            str(target), device="cpu", compute_type=_TYPES[precision], intra_threads=threads, inter_threads=1
        )

    def prepare(self, call: Call) -> Any:
        """Ids as the names that the vocabulary gives them."""
        rows = [[_token(token) for token in row if token] for row in call.input_ids]
        # Here lengths count new tokens, without the start token.
        most = call.max_length - 1 if call.stop is None else call.stop
        least = min(call.min_length - 1, most)
        return lambda: self.translator.translate_batch(
            rows,
            beam_size=call.num_beams,
            length_penalty=call.length_penalty,
            no_repeat_ngram_size=call.no_repeat_ngram_size,
            min_decoding_length=least,
            max_decoding_length=most,
        )

    def replies(self, result: Any) -> list[list[int]]:
        """The best of each prompt."""
        return [[_id(token) for token in one.hypotheses[0]] for one in result]


def convert(folder: Path, target: Path) -> None:
    """Write a checkpoint as CTranslate2 reads it, whole or not at all."""
    import torch
    import transformers
    from ctranslate2.converters.transformers import BartLoader  # pyright: ignore[reportMissingImports]

    model: Any = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float16)
    if model.config.model_type != "blenderbot":
        raise UnavailableError("only the architecture with norms first is mapped to CTranslate2")
    model.config.normalize_before, model.config.normalize_embedding = True, False
    spec: Any = BartLoader().get_model_spec(model)
    tokens = [_token(number) for number in range(model.config.vocab_size)]
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = "<s>", "</s>", "<unk>"
    spec.config.decoder_start_token = "<s>"
    spec.validate()
    spec.optimize(quantization="float16")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        whole = Path(temporary, "model")
        whole.mkdir()
        spec.save(str(whole))
        shutil.rmtree(target, ignore_errors=True)
        whole.rename(target)


def load(folder: Path, workspace: Path, precision: str, threads: int) -> tuple[CTranslate2, dict[str, str]]:
    """See `programs.load`."""
    return CTranslate2(folder, workspace, precision, threads), {"ctranslate2": ctranslate2.__version__}


def _token(number: int) -> str:
    return _SPECIAL[number] if number < len(_SPECIAL) else f"t{number}"


def _id(token: str) -> int:
    return _SPECIAL.index(token) if token in _SPECIAL else int(token[1:])
