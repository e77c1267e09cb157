"""One process of a run on a mesh, as a program: does it find what a single device finds?

It prints, for each mesh, the largest differences to what this process's first device finds alone, as a line of JSON.
"""

import json
import sys
from typing import Any

import jax
import numpy as np

from blenderbot_jax import parallel
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.generation import GenerationConfig, generate
from blenderbot_jax.model import BlenderbotForConditionalGeneration
from blenderbot_jax.processes import initialize, together
from tests.golden.fill import golden_params

GREEDY = GenerationConfig(max_length=12)
BEAMS = GenerationConfig(num_beams=3, max_length=12, no_repeat_ngram_size=3, encoder_no_repeat_ngram_size=3)


def batch_of(config: BlenderbotConfig, rows: int) -> dict[str, np.ndarray]:
    """Rows of different lengths, padded."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, config.vocab_size, (rows, 9), np.int32)
    labels = rng.integers(3, config.vocab_size, (rows, 7), np.int32)
    ids[1::2, 6:] = 0
    labels[1::2, 5:] = -100
    return {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int32), "labels": labels}


def loss(model: BlenderbotForConditionalGeneration, params: Any, batch: dict[str, Any], mesh: Any = None) -> jax.Array:
    """Mean cross-entropy of a batch."""
    labels = batch["labels"]
    params = params if mesh is None else parallel.unsplit(mesh, params)
    return model.apply({"params": params}, batch["input_ids"], batch["attention_mask"], labels=labels).loss


def found(
    model: BlenderbotForConditionalGeneration, params: Any, batch: Any, prompts: Any, *, replies: bool, mesh: Any = None
) -> Any:
    """Loss, gradients and replies, as numpy."""
    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=1), static_argnums=(0, 3))(model, params, batch, mesh)
    every = {"loss": np.asarray(value), "gradients": jax.tree.map(np.asarray, parallel.gathered(gradients))}
    if replies:
        every |= {
            name: np.asarray(generate(model, params, prompts, config=config).sequences)
            for name, config in (("greedy", GREEDY), ("beams", BEAMS))
        }
    return every


def differences(model: Any, params: Any, mesh: Any, *, replies: bool = True, rows: int = 8) -> dict[str, float]:
    """How far what a mesh finds is from what one device finds: in the worst number, and in how many tokens.

    Gradients are compared by the largest of each leaf, as they span magnitudes; but that of a key's bias, which is zero
    but for rounding, is not.
    """
    batch = batch_of(model.config, rows)
    prompts = batch["input_ids"][:2]
    alone = found(model, params, batch, prompts, replies=replies)
    share, shares = parallel.batch_share(mesh)
    own = {name: np.split(array, shares)[share] for name, array in batch.items()}
    placed = parallel.shard(mesh, params)
    together = found(model, placed, parallel.global_batch(mesh, own), prompts, replies=replies, mesh=mesh)
    relative = jax.tree.map(
        lambda one, other: float(np.abs(one - other).max() / max(np.abs(one).max(), 1e-2)),
        alone["gradients"],
        together["gradients"],
    )
    result = {"loss": float(abs(alone["loss"] - together["loss"])), "gradients": max(jax.tree.leaves(relative))}
    if replies:
        result |= {name: int((alone[name] != together[name]).sum()) for name in ("greedy", "beams")}
    return result


def go_on(model: Any, params: Any, batch: dict[str, np.ndarray], mesh: Any) -> None:
    """Step after step, until a process is lost."""
    step = jax.jit(jax.grad(loss, argnums=1), static_argnums=0)
    share, shares = parallel.batch_share(mesh)
    rows = parallel.global_batch(mesh, {name: np.split(array, shares)[share] for name, array in batch.items()})
    with together():
        while True:
            jax.block_until_ready(step(model, params, rows))
            print("step", flush=True)


def main() -> None:
    """Arguments as JSON: `devices` of this process, `config`, `meshes`, and how to find the other processes."""
    given = json.loads(sys.argv[1])
    jax.config.update("jax_num_cpu_devices", given["devices"])
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_disable_most_optimizations", given.get("quick", True))
    initialize(given.get("coordinator"), given.get("processes"), given.get("process"), **given.get("limits", {}))
    model = BlenderbotForConditionalGeneration(BlenderbotConfig(**given["config"]))
    params = golden_params(model)
    for data, fsdp, tensor in given["meshes"]:
        mesh = parallel.make_mesh(data=data, fsdp=fsdp, tensor=tensor)
        print(json.dumps(differences(model, params, mesh, replies=given.get("replies", True))), flush=True)
    if given.get("forever"):
        go_on(model, parallel.shard(mesh, params), batch_of(model.config, 8), mesh)


if __name__ == "__main__":
    main()
