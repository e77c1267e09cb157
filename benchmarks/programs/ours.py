"""This library."""

import importlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import blenderbot_jax
from benchmarks.calls import Call
from benchmarks.programs import UnavailableError
from blenderbot_jax import BlenderbotForConditionalGeneration, GenerationConfig, generate

_FEW_ROWS = 12
_DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16, "int8": jnp.float32}


class Ours:
    """`generate` over parameters that were prepared for decoding."""

    compiled = True

    def __init__(self, folder: Path, precision: str) -> None:
        quantize = _quantize() if precision == "int8" else None
        self.model, self.params = BlenderbotForConditionalGeneration.from_pretrained(folder, dtype=_DTYPES[precision])
        if quantize is not None:
            self.params = quantize(self.params)
        self.packed: dict[bool, Any] = {}

    def prepare(self, call: Call) -> Any:
        """Ids as numpy arrays, and weights in the form for so many rows."""
        ids = np.asarray(call.input_ids, np.int32)
        params = self._params(len(ids) * call.num_beams)
        return lambda: jax.block_until_ready(generate(self.model, params, ids, ids != 0, config=config_of(call)))

    def _params(self, rows: int) -> Any:
        prepare = getattr(blenderbot_jax, "prepare", None)  # an older checkout, measured beside this one, has none
        if prepare is None:
            return self.params
        # One form for few rows and one for many.
        few = rows <= _FEW_ROWS
        if few not in self.packed:
            self.packed = {few: jax.block_until_ready(prepare(self.model, self.params, rows=rows))}
        return self.packed[few]

    def replies(self, result: Any) -> list[list[int]]:
        """The best of each prompt, up to its length."""
        rows, lengths = np.asarray(result.sequences[:, 0]), np.asarray(result.lengths[:, 0])
        return [row[1:length].tolist() for row, length in zip(rows, lengths, strict=True)]


def config_of(call: Call) -> GenerationConfig:
    """A call's rules; `stop` by a bonus for `</s>` that nothing beats, so that the room for 60 tokens stays."""
    decay = None if call.stop is None else (call.stop - 2, 1e6)
    return GenerationConfig(
        num_beams=call.num_beams,
        min_length=call.min_length,
        max_length=call.max_length,
        length_penalty=call.length_penalty,
        no_repeat_ngram_size=call.no_repeat_ngram_size,
        encoder_no_repeat_ngram_size=call.encoder_no_repeat_ngram_size,
        forced_eos_token_id=2,
        exponential_decay_length_penalty=decay,
    )


def load(folder: Path, workspace: Path, precision: str, threads: int) -> tuple[Ours, dict[str, str]]:
    """See `programs.load`; JAX takes the threads of the process's affinity."""
    del workspace, threads
    versions = {"blenderbot_jax": blenderbot_jax.__version__, "jax": jax.__version__, "jaxlib": version("jaxlib")}
    return Ours(folder, precision), {**versions, "backend": jax.default_backend()}


def _quantize() -> Callable[[Any], Any]:
    try:
        return importlib.import_module("blenderbot_jax.quantize").quantize
    except ModuleNotFoundError as error:
        raise UnavailableError("this version of blenderbot_jax has no int8 weights") from error
