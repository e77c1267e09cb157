"""The Flax classes of transformers 4, which version 5 dropped; `generate` under `jit`, as its guides advise.

The rules against repeated n-grams are left out: they fail in it on a present JAX (a sparse gather).
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import transformers

from benchmarks.calls import Call
from benchmarks.programs import UnavailableError


class TransformersFlax:
    """`FlaxBlenderbotForConditionalGeneration` in float32."""

    compiled = True

    def __init__(self, folder: Path) -> None:
        family: Any = getattr(transformers, "FlaxBlenderbotForConditionalGeneration", None)
        if family is None:
            raise UnavailableError(
                f"transformers {transformers.__version__} has no Flax classes; 4.57.6 in a folder of its own has: "
                "--define flax=flax,path=FOLDER"
            )
        transformers.logging.set_verbosity_error()
        model = family.from_pretrained(folder, from_pt=True)
        self.model: Any = model
        self.params = jax.device_put(model.to_fp32(model.params))
        self.programs: dict[Any, Any] = {}

    def prepare(self, call: Call) -> Any:
        """Ids as arrays, and one jitted function per set of rules: its lengths are part of the program."""
        if call.min_length != call.max_length:
            raise UnavailableError("without the n-gram rules its replies end elsewhere")
        ids = jnp.asarray(call.input_ids, jnp.int32)
        mask, run = jnp.asarray(ids != 0, jnp.int32), self._program(call)
        return lambda: jax.block_until_ready(run(ids, mask, self.params))

    def replies(self, result: Any) -> list[list[int]]:
        """All but the start token."""
        return np.asarray(result)[:, 1:].tolist()

    def _program(self, call: Call) -> Any:
        rules = (call.num_beams, call.min_length, call.max_length, call.length_penalty)
        if rules not in self.programs:
            config = transformers.GenerationConfig(
                num_beams=call.num_beams,
                min_length=call.min_length,
                max_length=call.max_length,
                length_penalty=call.length_penalty,
                forced_eos_token_id=2,
                do_sample=False,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                decoder_start_token_id=1,
            )

            def run(ids: Any, mask: Any, params: Any) -> Any:
                return self.model.generate(ids, attention_mask=mask, params=params, generation_config=config).sequences

            self.programs[rules] = jax.jit(run)
        return self.programs[rules]


def load(folder: Path, workspace: Path, precision: str, threads: int) -> tuple[TransformersFlax, dict[str, str]]:
    """See `programs.load`; JAX takes the threads of the process's affinity."""
    del workspace, precision, threads
    versions = {"transformers": transformers.__version__, "jax": jax.__version__}
    return TransformersFlax(folder), versions
