"""Fine-tune on several devices or machines, in a plain loop to copy and change.

    python examples/distributed/train.py pairs.tsv tuned --model facebook/blenderbot-400M-distill

Every line of the file is a prompt and a reply, with a tab between. On one machine all its devices take part; on
several, start this program on each, as the shell scripts beside it do. For what training wants besides (schedules,
validation, checkpoints, LoRA) see `blenderbot_jax.training`.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from blenderbot_jax import Checkpoint, save_pretrained
from blenderbot_jax.parallel import batch_share, gathered, global_batch, initialize, make_mesh, shardings, unsplit

IGNORED = -100


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=32, help="over all devices")
    parser.add_argument("--learning-rate", type=float, default=7e-6)
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--coordinator", help="host:port of process 0; not under Slurm or on a TPU pod")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    return parser.parse_args()


def read(path: Path, tokenizer: Any, length: int) -> dict[str, np.ndarray]:
    """All pairs as arrays of one width: prompts lose their beginning, replies their end."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line]
    prompts = [tokenizer.encode(prompt)[-length:] for prompt, _ in rows]
    replies = [tokenizer.encode(reply)[:length] for _, reply in rows]

    def padded(ids: list[list[int]], fill: int) -> np.ndarray:
        return np.array([row + [fill] * (length - len(row)) for row in ids], np.int32)

    mask = padded([[1] * len(row) for row in prompts], 0)
    return {"input_ids": padded(prompts, 0), "attention_mask": mask, "labels": padded(replies, IGNORED)}


def main() -> None:
    """Train, and let process 0 write the result."""
    given = arguments()
    initialize(given.coordinator, given.processes, given.process)
    mesh = make_mesh(fsdp=given.fsdp, tensor=given.tensor)
    checkpoint = Checkpoint.from_pretrained(given.model, mesh=mesh)
    model, params = checkpoint.model, checkpoint.params
    optimizer = optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(given.learning_rate))
    # Moments lie where the weights lie that they are of, and stay there: a compiler left alone may place them anew.
    places = shardings(mesh, params), shardings(mesh, jax.eval_shape(optimizer.init, params))
    state = jax.jit(optimizer.init, out_shardings=places[1])(params)

    def loss(params: Any, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        inputs, params = (batch["input_ids"], batch["attention_mask"]), unsplit(mesh, params)
        return model.apply({"params": params}, *inputs, labels=batch["labels"], rngs={"dropout": key}).loss

    @partial(jax.jit, donate_argnums=(0, 1), out_shardings=(*places, None))
    def step(params: Any, state: Any, batch: dict[str, jax.Array], key: jax.Array) -> tuple[Any, Any, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(params, batch, key)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    data = read(given.pairs, checkpoint.tokenizer, min(128, model.config.max_position_embeddings))
    share, shares = batch_share(mesh)
    for number in range(given.steps):
        # The same rows are chosen in every process, which then reads its own share of them.
        rng = np.random.default_rng(number)
        rows = np.array_split(rng.integers(0, len(data["labels"]), given.batch_size), shares)[share]
        batch = global_batch(mesh, {name: array[rows] for name, array in data.items()})
        params, state, value = step(params, state, batch, jax.random.key(number))
        if jax.process_index() == 0 and number % 10 == 0:
            print(f"step {number}: loss {float(value):.4f}", flush=True)
    params = gathered(params)
    if jax.process_index() == 0:
        save_pretrained(given.target, model.config, params, checkpoint.generation_config, checkpoint.tokenizer)


if __name__ == "__main__":
    main()
