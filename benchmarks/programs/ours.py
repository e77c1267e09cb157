"""This library."""

import inspect
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import blenderbot_jax
from benchmarks.calls import Call
from blenderbot_jax import BlenderbotConfig, BlenderbotForConditionalGeneration, GenerationConfig, generate, prepare
from blenderbot_jax.checkpoint.load import load_params

_FEW_ROWS = 12
_DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16}


class Ours:
    """`generate` over parameters that were prepared for decoding."""

    compiled = True

    def __init__(self, folder: Path, precision: str) -> None:
        self.read = partial(_read, folder, precision)
        self.model, self.params = self.read()
        self.few: bool | None = None

    def prepare(self, call: Call) -> Any:
        """Ids as numpy arrays, and weights in the form for so many rows."""
        ids = np.asarray(call.input_ids, np.int32)
        self._pack(len(ids) * call.num_beams)
        config = config_of(call)
        return lambda: jax.block_until_ready(generate(self.model, self.params, ids, ids != 0, config=config))

    def _pack(self, rows: int) -> None:
        # One form for few rows and one for many; the weights as they were read are used up by either.
        few = rows <= _FEW_ROWS
        if few == self.few:
            return
        if self.few is not None:
            self.params = None
            self.model, self.params = self.read()
        self.params, self.few = jax.block_until_ready(_prepared(self.model, self.params, rows)), few

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


def _read(folder: Path, precision: str) -> tuple[BlenderbotForConditionalGeneration, Any]:
    """The model, and its weights as they come from the file: in 8 bits each kernel is packed as it is read."""
    if precision != "int8":
        return BlenderbotForConditionalGeneration.from_pretrained(folder, dtype=_DTYPES[precision])
    model = BlenderbotForConditionalGeneration(BlenderbotConfig.from_json(folder / "config.json"))
    expected = jax.eval_shape(model.init_params, jax.random.key(0))
    return model, load_params(folder, model.config, expected, jnp.float32, int8=True)


def _prepared(model: Any, params: Any, rows: int) -> Any:
    # An older checkout, measured beside this one, may not take what it is given.
    donating = "donate" in inspect.signature(prepare).parameters
    return prepare(model, params, rows=rows, **({"donate": True} if donating else {}))
