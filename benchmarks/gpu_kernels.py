"""How many kernels a decoding step takes on a GPU, counted without one.

    python -m benchmarks.gpu_kernels --target h200.txtpb --case beam --case greedy

Compiles the decode program itself for a GPU that only its description stands for, and reads what XLA says it will
launch. It needs the wheels jax-cuda13-plugin and jax-cuda13-pjrt, but no CUDA, no GPU and no memory for weights. The
description is XLA's own (`xla/backends/gpu/target_config/specs`), or `gpu_target_config.pbtxt` of a dump made on such
a GPU. Nothing is tuned by measurement here, so on a real one some products may go to other kernels.
"""

import dataclasses
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

# The loop is captured whole only with WHILE, and only if a graph may be small: the limit counts what stands beside it.
FLAGS = ("--xla_gpu_enable_command_buffer=+WHILE", "--xla_gpu_graph_min_graph_size=1")
PLUGINS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
CASES: dict[str, dict[str, Any]] = {
    "beam": {},
    "greedy": {"num_beams": 1},
    "sample": {"num_beams": 1, "do_sample": True, "temperature": 0.8, "top_p": 0.9},
    "plain-beam": {"min_length": None, "no_repeat_ngram_size": None, "encoder_no_repeat_ngram_size": None,
                   "forced_eos_token_id": None},
}  # fmt: skip
SHAPES = {"400m": "blenderbot_400m_distill", "1b": "blenderbot_1b_distill", "3b": "blenderbot_3b"}
_BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "pred": 1}


@dataclass(frozen=True)
class Program:
    """What to compile."""

    case: str
    """One of `CASES`: changes to the published recipe."""
    shape: str = "400m"
    batch: int = 1
    source: int = 32
    """Tokens of a prompt."""
    layers: int | None = None
    """Decoder layers; None for those of the shape."""
    dtype: str = "bfloat16"


@dataclass(frozen=True)
class Report:
    """What one step launches; of several loops over growing caches, in the one that launches most."""

    kernels: int
    """Launches of a loop's body and condition, copies included."""
    copies: int
    """How many of them only copy."""
    captured: bool
    """Whole loops are in graphs (CUDA conditional nodes), so the host waits for nothing between steps."""
    sorts: int
    """Launches of sorting kernels."""
    largest: tuple[str, int]
    """The largest array that a body writes anew, other than by updating a cache in place, and its bytes."""
    cache_bytes: int
    """Bytes of one layer's keys; every weight matrix of a product is at least as large at batch 1."""
    temporary_bytes: int
    """Memory that the program takes besides its arguments and results."""


def available() -> str | None:
    """Why nothing can be compiled for a GPU here; None where it can."""
    if not any(_has(name) for name in PLUGINS):
        return "the wheels jax-cuda13-plugin and jax-cuda13-pjrt are not installed"
    return None


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def measure(program: Program, target: Path, flags: tuple[str, ...] = ()) -> Report:
    """Compile a program for a target, in a process of its own, and count.

    Args:
        program: what to compile.
        target: file that describes the GPU.
        flags: further `XLA_FLAGS`.

    Raises:
        RuntimeError: the compilation failed; its messages are in the error.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
            "XLA_FLAGS": " ".join((*FLAGS, *flags, f"--xla_dump_to={folder}")),
        }
        arguments = json.dumps([dataclasses.asdict(program), str(target)])
        root = Path(__file__).resolve().parent.parent
        command = [sys.executable, "-m", "benchmarks.gpu_kernels", "--compile-only", arguments]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"compiling {program} for {target} failed:\n{done.stderr[-3000:]}")
        facts = json.loads(done.stdout.strip().splitlines()[-1])
        return read_dump(Path(folder), **facts)


def read_dump(folder: Path, cache_bytes: int, temporary_bytes: int) -> Report:
    """The report of what XLA dumped on compiling `decode`."""
    before = _only(folder, "*jit_decode.thunk_sequence.txt")
    body = max(_loops(before), key=len)
    after = next(folder.glob("*jit_decode.thunk_sequence_after_thunk_passes.txt"), None)
    captured = after is not None and re.search(r"^\d+: kWhile", after.read_text(), re.MULTILINE) is None
    return Report(
        kernels=len(body),
        copies=sum(" kCopy " in line for line in body),
        captured=captured,
        sorts=sum(re.search(r"\bsort_", line) is not None for line in body),
        largest=_largest_written(_only(folder, "*jit_decode.*gpu_after_optimizations.txt")),
        cache_bytes=cache_bytes,
        temporary_bytes=temporary_bytes,
    )


def _only(folder: Path, pattern: str) -> str:
    (path,) = folder.glob(pattern)
    return path.read_text()


def _loops(thunks: str) -> list[list[str]]:
    """The lines of launches that stand inside each `while`."""
    inside, loops = False, []
    for line in thunks.splitlines():
        if re.match(r"\d+: ", line):
            inside = " kWhile " in line
            loops += [[]] if inside else []
        elif inside and re.match(r"\s+\d+: ", line):
            loops[-1].append(line)
    if not loops:
        raise ValueError("the program has no loop")
    return loops


def _largest_written(program: str) -> tuple[str, int]:
    """The largest array that an instruction of a loop's body makes, if it is no update in place."""
    largest = ("", 0)
    for body in re.findall(r"while\(.*body=%?([\w.\-]+)", program):
        start = program.index(f"%{body} (")
        for line in program[start : program.index("\n}\n", start)].splitlines()[1:]:
            largest = max(largest, _written(line), key=lambda pair: pair[1])
    return largest


def _written(line: str) -> tuple[str, int]:
    """The largest array that an instruction makes anew, and its bytes."""
    made = re.match(r"\s*(?:ROOT )?%([\w.\-]+) = (.*?) (\w[\w\-]*)\(", line)
    views = ("get-tuple-element", "bitcast", "tuple", "parameter", "constant")
    if made is None or made[3] in views or re.search("dynamic.update.slice|scatter", made[1]):
        return "", 0
    sizes = [
        (f"{made[1]} {dtype}[{lengths}]", math.prod(int(n) for n in lengths.split(",") if n) * _BYTES.get(dtype, 4))
        for dtype, lengths in re.findall(r"(\w+)\[([\d,]*)\]", made[2])
    ]
    return max(sizes, key=lambda pair: pair[1], default=("", 0))


def compile_for(program: Program, target: Path) -> dict[str, int]:
    """Compile for the target; XLA_FLAGS say where the dump goes."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import NamedSharding, PartitionSpec

    from blenderbot_jax import BlenderbotConfig, BlenderbotForConditionalGeneration, GenerationConfig
    from blenderbot_jax.generation.decode import decode
    from blenderbot_jax.generation.inputs import seq2seq_inputs
    from blenderbot_jax.generation.plan import compile_config
    from blenderbot_jax.generation.task import Task

    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="", topology="1x1x1", target_config=target.read_text(encoding="utf-8")
    )
    place = NamedSharding(topologies.make_mesh(topology, (1,), ("x",)), PartitionSpec())

    def abstract(tree: Any, dtype: Any = None) -> Any:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), dtype or leaf.dtype, sharding=place), tree
        )

    config: BlenderbotConfig = getattr(BlenderbotConfig, SHAPES[program.shape])()
    config = config.replace(decoder_layers=program.layers or config.decoder_layers)
    model = BlenderbotForConditionalGeneration(config, dtype=jnp.dtype(program.dtype))
    params = abstract(jax.eval_shape(model.init_params, jax.random.key(0)), jnp.dtype(program.dtype))
    settings = GenerationConfig.recipe(**CASES[program.case])
    plan, numbers = compile_config(settings, config, program.source)
    # A lone row is decoded as two on a GPU, as `to_bucket` says.
    B = max(program.batch, 1 if plan.rows > 1 else 2)
    numbers = dataclasses.replace(numbers, source_width=np.repeat(numbers.source_width, B))
    # This process sees a CPU, on which a cache grows in segments; on the GPU it has its whole size.
    plan = dataclasses.replace(plan, segments=(plan.capacity,))
    ids = np.full((B, program.source), 5, np.int32)
    pad, start = config.pad_token_id or 0, config.decoder_start_token_id
    inputs = abstract(seq2seq_inputs(config, ids, np.ones_like(ids, bool), None, None, None, pad=pad, start=start))
    task = Task(inputs.prompt, inputs.source_ids, inputs.valid, abstract(numbers))
    key = None
    if settings.do_sample:
        key = abstract(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), B)))
    compiled = decode.lower(model, plan, params, inputs, task, key).compile()
    slots = B * plan.rows * plan.capacity * config.d_model * jnp.dtype(program.dtype).itemsize
    memory = compiled.memory_analysis()
    return {"cache_bytes": slots, "temporary_bytes": memory.temp_size_in_bytes if memory else 0}


@click.command(help=__doc__)
@click.option("--target", type=click.Path(exists=True, path_type=Path), help="File that describes the GPU.")
@click.option("--case", "cases", type=click.Choice(list(CASES)), multiple=True, default=list(CASES), show_default=True)
@click.option("--shape", type=click.Choice(list(SHAPES)), default="400m", show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--source", type=click.IntRange(min=1), default=32, show_default=True, help="Tokens of a prompt.")
@click.option("--layers", type=click.IntRange(min=1), help="Decoder layers, other than the shape's.")
@click.option("--flag", "flags", multiple=True, help="A further flag for XLA.")
@click.option("--compile-only", "only", hidden=True)
def main(
    target: Path | None, cases: tuple[str, ...], shape: str, batch: int, source: int, layers: int | None,
    flags: tuple[str, ...], only: str | None,
) -> None:  # fmt: skip
    """Print a Markdown table."""
    if only:
        fields, path = json.loads(only)
        click.echo(json.dumps(compile_for(Program(**fields), Path(path))))
        return
    problem = available() or (None if target else "say --target FILE, the description of the GPU")
    if problem or target is None:
        raise click.UsageError(f"nothing can be compiled: {problem}")
    click.echo("| case | kernels a step | of them copies | sorts | one graph | largest array written |")
    click.echo("| --- | --- | --- | --- | --- | --- |")
    for case in cases:
        report = measure(Program(case, shape, batch, source, layers), target.resolve(), flags)
        name, size = report.largest
        captured = "yes" if report.captured else "no"
        click.echo(
            f"| {shape} {case}, batch {batch} | {report.kernels} | {report.copies} | {report.sorts} | {captured} | "
            f"{name.split()[-1] if name else '-'} ({size / 1024:.0f} KiB) |"
        )


if __name__ == "__main__":
    main()
