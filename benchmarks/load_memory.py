"""How much host memory loading a checkpoint takes, beside the weights themselves.

Random weights of a published model's shape are written in half precision, as the hub has them, once as safetensors and
once as `.bin`. Each file is loaded in a fresh process per dtype. What loading took is the process's highest resident
size minus its resident size before, when JAX was imported and initialised; the ratio is to the bytes of the weights in
the dtype asked for. Linux only: the sizes come from /proc.

    python -m benchmarks.load_memory --size 400m
"""

import math
import multiprocessing
import os
import platform
import re
import shlex
import struct
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.shapes import SIZES, Shapes, random_bytes, shapes_of, write_safetensors
from blenderbot_jax import BlenderbotForConditionalGeneration

DTYPES = ("float32", "bfloat16", "float16")


def write_bin(path: Path, shapes: Shapes) -> None:
    """Random float16 weights, streamed to the zip that `torch.save` would write."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", _pickled(shapes))
        for number, shape in enumerate(shapes.values()):
            with archive.open(f"archive/data/{number}", "w", force_zip64=True) as record:
                record.writelines(random_bytes(math.prod(shape), seed=number))


def _pickled(shapes: Shapes) -> bytes:
    """The pickle of a state dict, instruction by instruction, so that this script needs no PyTorch."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def group(*items: bytes) -> bytes:
        return b"(" + b"".join(items) + b"t"

    def numbers(values: tuple[int, ...]) -> bytes:
        return group(*(b"J" + struct.pack("<i", value) for value in values))

    hooks = b"ccollections\nOrderedDict\n)R"
    program = b"\x80\x02}("
    for number, (key, shape) in enumerate(shapes.items()):
        count = b"J" + struct.pack("<i", math.prod(shape))
        storage = group(text("storage"), b"ctorch\nHalfStorage\n", text(str(number)), text("cpu"), count) + b"Q"
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        arguments = group(storage, b"K\0", numbers(shape), numbers(strides), b"\x89", hooks)
        program += text(key) + b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"
    return program + b"u."


def measure(folder: Path, dtype: str) -> tuple[int, int, float]:
    """Load a checkpoint in this process.

    Returns:
        The bytes that loading took at its highest, the bytes of the weights, and the seconds.
    """
    jax.block_until_ready(jnp.zeros(1) + 1.0)
    before, begin = _resident("VmRSS"), time.perf_counter()
    _, params = BlenderbotForConditionalGeneration.from_pretrained(folder, dtype=jnp.dtype(dtype))
    jax.block_until_ready(params)
    seconds = time.perf_counter() - begin
    return _resident("VmHWM") - before, sum(leaf.nbytes for leaf in jax.tree.leaves(params)), seconds


def _resident(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {field}: this benchmark needs Linux")
    return int(found[1]) * 1024


def in_fresh_process(folder: Path, dtype: str) -> tuple[int, int, float]:
    """`measure` in a process that has done nothing else."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, folder, dtype).result()


@click.command()
@click.option("--size", type=click.Choice(list(SIZES)), default="400m", show_default=True)
@click.option("--limit", type=float, default=1.3, show_default=True, help="Fail above this ratio.")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="Where the files are written.")
def main(size: str, limit: float, folder: Path | None) -> None:
    """Measure the host memory that loading takes, for both kinds of file and three dtypes."""
    config, ratios = SIZES[size](), []
    print(f"`{shlex.join(['python', '-m', 'benchmarks.load_memory', *sys.argv[1:]])}`\n")
    print(f"{platform.machine()}, {os.cpu_count()} cores, {jax.default_backend()}; Python {platform.python_version()}")
    print(f"jax {jax.__version__}, numpy {np.__version__}; {size}, float16 on disk\n")
    print("| file | dtype | weights, MB | taken, MB | ratio | seconds |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for name, write in (("model.safetensors", write_safetensors), ("pytorch_model.bin", write_bin)):
        with tempfile.TemporaryDirectory(dir=folder) as checkpoint:
            write(Path(checkpoint, name), shapes_of(config))
            config.save_json(Path(checkpoint, "config.json"))
            for dtype in DTYPES:
                taken, weights, seconds = in_fresh_process(Path(checkpoint), dtype)
                ratios.append(taken / weights)
                row = f"{weights / 1e6:.0f} | {taken / 1e6:.0f} | {ratios[-1]:.2f} | {seconds:.1f}"
                print(f"| {name} | {dtype} | {row} |", flush=True)
    if max(ratios) > limit:
        raise click.ClickException(f"loading took {max(ratios):.2f} times the bytes of the weights, over {limit}")


if __name__ == "__main__":
    main()
