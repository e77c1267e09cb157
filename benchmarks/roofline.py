"""The least time a decode step can take here: what it must read over bandwidth, what it must multiply over rate.

The machine's rates are measured, each by several means of which the best counts, so that the floor is what some program
reached here and not what a data sheet promises.

    python -m benchmarks.roofline
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.calls import Call
from blenderbot_jax import BlenderbotConfig

_WEIGHT_BYTES = {"f32": 4, "bf16": 2, "int8": 1}
_CACHE_BYTES = {"f32": 4, "bf16": 2, "int8": 4}  # int8 quantises weights; what is kept of the prompt stays as computed
_READ = 2**28  # floats, 1 GiB: far beyond every cache
_SIDE = 2048  # of the matrices multiplied
_REPEATS = 7


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second."""

    bandwidth: float
    """Bytes read from memory."""
    matrix: dict[str, float]
    """Operations (a multiplication and an addition are two) of a large matrix product, by precision."""


@dataclass(frozen=True)
class Work:
    """What one piece of decoding must read and multiply."""

    bytes: float
    operations: float

    def seconds(self, rates: Rates, precision: str) -> float:
        """The least time, reading and multiplying at once."""
        return max(self.bytes / rates.bandwidth, self.operations / rates.matrix[precision])


def step_work(config: BlenderbotConfig, prompts: int, beams: int, S: int, position: int, precision: str) -> Work:
    """One decode step: every decoder weight once, the cache of each row once.

    Args:
        config: the architecture.
        prompts: B.
        beams: K; rows are B K.
        S: tokens of a prompt; its keys and values are read once for all its beams.
        position: tokens of the reply so far.
        precision: `f32`, `bf16` or `int8`.
    """
    D, F, L, rows = config.d_model, config.decoder_ffn_dim, config.decoder_layers, prompts * beams
    weights = L * (4 * D * D + 2 * D * D + 2 * D * F) + config.vocab_size * D
    cache = 2 * L * D * (rows * position + prompts * S)
    attention = 4 * L * D * rows * (position + S)
    read = weights * _WEIGHT_BYTES[precision] + cache * _CACHE_BYTES[precision]
    return Work(read, 2 * rows * weights + attention)


def prompt_work(config: BlenderbotConfig, prompts: int, S: int, precision: str) -> Work:
    """The encoder and the keys and values of cross-attention."""
    D, F, L, tokens = config.d_model, config.encoder_ffn_dim, config.encoder_layers, prompts * S
    weights = L * (4 * D * D + 2 * D * F) + 2 * config.decoder_layers * D * D
    return Work(weights * _WEIGHT_BYTES[precision], 2 * tokens * weights + 4 * L * D * tokens * S)


def floor_seconds(config: BlenderbotConfig, call: Call, steps: int, precision: str, rates: Rates) -> float:
    """The least time of a call of `generate` that takes a number of steps; prompts count with their mean length."""
    B = len(call.input_ids)
    S = round(sum(sum(token != 0 for token in row) for row in call.input_ids) / B)
    each = (step_work(config, B, call.num_beams, S, position, precision) for position in range(1, steps + 1))
    first = prompt_work(config, B, S, precision).seconds(rates, precision)
    return first + sum(work.seconds(rates, precision) for work in each)


def measure(read: int = _READ, side: int = _SIDE, repeats: int = _REPEATS) -> Rates:
    """Measure this machine, in about ten seconds.

    Args:
        read: floats in the array that is read.
        side: of the square matrices.
        repeats: the best of how many.
    """
    bandwidth = max(4 * read / _best(run, repeats) for run in _reads(read))
    matrix = {
        precision: max(2 * side**3 / _best(run, repeats) for run in products(side))
        for precision, products in (("f32", _f32), ("bf16", _bf16), ("int8", _int8))
    }
    return Rates(bandwidth, matrix)


def _best(run: Callable[[], Any], repeats: int) -> float:
    run()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _reads(count: int) -> Iterator[Callable[[], Any]]:
    threads = len(os.sched_getaffinity(0))
    array = np.ones(count, np.float32)
    parts = np.array_split(array, 4 * threads)
    with ThreadPoolExecutor(threads) as pool:
        yield lambda: list(pool.map(lambda part: np.dot(part, part), parts))
        yield lambda: list(pool.map(np.max, parts))
    columns = min(count, 4096)
    matrix, vector = array.reshape(-1, columns), np.ones(columns, np.float32)
    yield lambda: matrix @ vector
    on_device, x = jnp.asarray(matrix), jnp.asarray(vector)
    multiply = jax.jit(jnp.matmul)
    yield lambda: jax.block_until_ready(multiply(on_device, x))


def _f32(side: int) -> Iterator[Callable[[], Any]]:
    a = np.ones((side, side), np.float32)
    yield lambda: a @ a
    yield _jax_product(side, jnp.float32)
    yield from _torch_product(side, "float32")


def _bf16(side: int) -> Iterator[Callable[[], Any]]:
    yield _jax_product(side, jnp.bfloat16)
    yield from _torch_product(side, "bfloat16")


def _int8(side: int) -> Iterator[Callable[[], Any]]:
    yield _jax_product(side, jnp.int8)


def _jax_product(side: int, dtype: Any) -> Callable[[], Any]:
    """A product with the second matrix transposed, which is how quantised weights are kept."""
    wide = jnp.int32 if dtype == jnp.int8 else dtype
    a = jnp.ones((side, side), dtype)

    @jax.jit
    def multiply(x: jax.Array, y: jax.Array) -> jax.Array:
        return jax.lax.dot_general(x, y, (((1,), (1,)), ((), ())), preferred_element_type=wide)

    return lambda: jax.block_until_ready(multiply(a, a))


def _torch_product(side: int, dtype: str) -> Iterator[Callable[[], Any]]:
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    a = torch.ones(side, side, dtype=getattr(torch, dtype))
    yield lambda: a @ a


@click.command()
@click.option("--quick", is_flag=True, help="Small arrays: shows that it runs, measures nothing.")
def main(quick: bool) -> None:
    """Print what this machine does in a second, as JSON."""
    print(json.dumps(asdict(measure(2**16, 64, 1) if quick else measure())))


if __name__ == "__main__":
    main()
