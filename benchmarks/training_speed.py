"""Training tokens a second: here, and in the loop that transformers' Trainer runs, on the same weights and batches.

python -m benchmarks.training_speed
python -m benchmarks.training_speed --size 400m --batch-size 4 --precision bf16 --rounds 3

Both sides make AdamW steps with clipping over the same batches of the same shapes, in turns. Compiling is reported
apart.
PyTorch runs eager, as the Trainer does: forward with labels, backward, clip_grad_norm_, AdamW (fused where it is to be
had), zero_grad.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np

from benchmarks import records
from benchmarks.shapes import config_of
from blenderbot_jax import BlenderbotForConditionalGeneration
from blenderbot_jax.training import TrainingConfig, compile_step, init_state

Batch = dict[str, np.ndarray]


def batches(vocabulary: int, rows: int, source: int, target: int, count: int) -> list[Batch]:
    """Full batches of random ids."""
    rng = np.random.default_rng(0)
    ones = np.ones((rows, source), np.int32)
    return [
        {
            "input_ids": rng.integers(4, vocabulary, (rows, source)).astype(np.int32),
            "attention_mask": ones,
            "labels": rng.integers(4, vocabulary, (rows, target)).astype(np.int32),
        }
        for _ in range(count)
    ]


def ours(size: str, given: list[Batch], precision: str) -> tuple[Callable[[], float], float]:
    """A function that makes a step for every batch and gives the last loss; and the seconds it took to compile."""
    model = BlenderbotForConditionalGeneration(config_of(size))
    dtype = "float32" if precision == "f32" else "bfloat16"
    config = TrainingConfig(steps=10_000, warmup_steps=0, learning_rate=1e-5, clip_norm=1.0, dtype=dtype)
    step, state = compile_step(model, config), init_state(model.init_params(jax.random.key(0)), config)
    begun = time.perf_counter()
    state, metrics = step(state, {}, given[0])
    jax.block_until_ready(metrics)
    first = time.perf_counter() - begun

    def turn() -> float:
        nonlocal state
        losses = []
        for batch in given:
            state, metrics = step(state, {}, batch)
            losses.append(metrics.loss)
        return float(losses[-1])

    return turn, first


def pytorch(size: str, given: list[Batch], precision: str) -> tuple[Callable[[], float], float]:
    """The same in PyTorch."""
    import torch
    import transformers

    config = config_of(size)
    family = "Blenderbot" if config.normalize_before else "BlenderbotSmall"
    made = getattr(transformers, f"{family}Config").from_dict(config.to_dict())
    model = getattr(transformers, f"{family}ForConditionalGeneration")(made)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    inputs = [{key: torch.from_numpy(value).long().to(device) for key, value in batch.items()} for batch in given]

    def turn() -> float:
        loss = None
        for batch in inputs:
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        assert loss is not None
        return loss.item()

    begun = time.perf_counter()
    turn()
    return turn, time.perf_counter() - begun


@click.command(help=__doc__)
@click.option("--size", default="6x640", show_default=True, help="A published size, demo, or LAYERSxWIDTH.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True)
@click.option("--source", type=click.IntRange(1), default=64, show_default=True, help="Tokens of a context.")
@click.option("--target", type=click.IntRange(1), default=32, show_default=True, help="Tokens of a reply.")
@click.option("--steps", type=click.IntRange(1), default=4, show_default=True, help="Of a turn.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--precision", type=click.Choice(["f32", "bf16"]), default="f32", show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Default: results/training_speed.json.")
def main(
    size: str, batch_size: int, source: int, target: int, steps: int, rounds: int, precision: str, out: Path | None
) -> None:
    """Measure both sides in turns."""
    given = batches(config_of(size).vocab_size, batch_size, source, target, steps)
    sides: dict[str, Callable[[], float]] = {}
    firsts: dict[str, float] = {}
    for name, load in (("ours", ours), ("pytorch", pytorch)):
        try:
            sides[name], firsts[name] = load(size, given, precision)
        except ImportError as error:
            click.echo(f"{name} is left out: {error}", err=True)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in [*sides][:: 1 if number % 2 else -1]:
            begun = time.perf_counter()
            sides[name]()
            times[name].append(time.perf_counter() - begun)
    tokens = steps * batch_size * (source + target)
    case: dict[str, Any] = {"first_seconds": firsts, "seconds": times, "tokens": tokens}
    click.echo("| side | tokens a second | ms a step | first step, s |\n| --- | ---: | ---: | ---: |")
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        click.echo(f"| {name} | {tokens / middle:,.0f} | {1000 * middle / steps:.0f} | {firsts[name]:.1f} |")
    if len(times) > 1:
        ratios = [theirs / mine for theirs, mine in zip(times["pytorch"], times["ours"], strict=True)]
        case["ratio"] = statistics.median(ratios)
        click.echo(f"\nOurs makes {case['ratio']:.2f} times as many tokens a second (median over {rounds} rounds).")
    name = f"{size}-b{batch_size}-s{source}-t{target}-{precision}"
    records.add(out or records.RESULTS / "training_speed.json", name, records.provenance() | case)


if __name__ == "__main__":
    main()
