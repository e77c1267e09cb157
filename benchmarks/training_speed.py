"""Training tokens a second: here, and in the loop that transformers' Trainer runs, on the same weights and batches.

python -m benchmarks.training_speed
python -m benchmarks.training_speed --size 400m --batch-size 4 --precision bf16 --rounds 3
python -m benchmarks.training_speed --size demo --batch-size 32 --dialogues

Both sides make AdamW steps with clipping, in turns; compiling is reported apart. The batches are the same full ones;
with `--dialogues` they hold the same real examples, put together as each side's users do: here in buckets of lengths,
there in random order, padded to the longest of a batch, or grouped by length. Tokens alone count, not what pads them.
PyTorch runs eager, as the Trainer does: forward with labels, backward, clip_grad_norm_, AdamW (fused where it is to be
had), zero_grad.
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np

from benchmarks import records
from benchmarks.shapes import config_of
from blenderbot_jax import BlenderbotForConditionalGeneration, Checkpoint
from blenderbot_jax.data import Batches, Example, corpus_examples, read_dialogues
from blenderbot_jax.model import IGNORED_LABEL
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


def real_batches(rows: int, count: int) -> dict[str, list[Batch]]:
    """Batches of real examples by who puts them together: `ours`, `pytorch` and `pytorch, by length`."""
    data = os.environ.get("BLENDERBOT_JAX_DATA")
    if not data:
        raise click.UsageError("BLENDERBOT_JAX_DATA names no folder of dialogues: leave out --dialogues")
    tokenizer = Checkpoint.from_pretrained("demo").tokenizer
    dialogues = read_dialogues(sorted(map(str, Path(data, "dialogues").glob("*.valid.jsonl"))))
    every = [*corpus_examples(dialogues, tokenizer, max_source=128, max_target=64)]
    rng = np.random.default_rng(0)
    examples = [every[place] for place in rng.permutation(len(every))[: rows * count]]
    # Trainer's grouping: batches of a sorted stretch of 50 at a time.
    stretches = [examples[start : start + 50 * rows] for start in range(0, len(examples), 50 * rows)]
    grouped = [one for some in stretches for one in sorted(some, key=lambda each: -len(each.input_ids))]
    return {
        "ours": [*Batches(examples, rows).epoch(0)],
        "pytorch": [padded(examples[start : start + rows]) for start in range(0, len(examples), rows)],
        "pytorch, by length": [padded(grouped[start : start + rows]) for start in range(0, len(examples), rows)],
    }


def padded(examples: Sequence[Example]) -> Batch:
    """A batch as wide as its longest source and target."""
    return next(
        Batches(
            examples,
            len(examples),
            source_widths=[max(len(one.input_ids) for one in examples)],
            target_widths=[max(len(one.labels) for one in examples)],
        ).epoch(0)
    )


def tokens_of(given: Sequence[Batch]) -> int:
    """Tokens read and learned; without padding, and without rows that only fill a batch."""
    return sum(
        int(batch["attention_mask"][(batch["labels"] != IGNORED_LABEL).any(axis=1)].sum())
        + int((batch["labels"] != IGNORED_LABEL).sum())
        for batch in given
    )


def ours(size: str, given: list[Batch], precision: str) -> tuple[Callable[[], float], float]:
    """A function that makes a step for every batch and gives the last loss; and the seconds it took to compile."""
    model = BlenderbotForConditionalGeneration(config_of(size))
    dtype = "float32" if precision == "f32" else "bfloat16"
    config = TrainingConfig(steps=10_000, warmup_steps=0, learning_rate=1e-5, clip_norm=1.0, dtype=dtype)
    step, state = compile_step(model, config), init_state(model.init_params(jax.random.key(0)), config)
    begun = time.perf_counter()
    shapes = {batch["input_ids"].shape + batch["labels"].shape: batch for batch in given}
    for batch in shapes.values():
        state, metrics = step(state, {}, batch)
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
@click.option("--dialogues", is_flag=True, help="Real examples, of their own lengths.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--precision", type=click.Choice(["f32", "bf16"]), default="f32", show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Default: results/training_speed.json.")
def main(
    size: str,
    batch_size: int,
    source: int,
    target: int,
    steps: int,
    dialogues: bool,
    rounds: int,
    precision: str,
    out: Path | None,
) -> None:
    """Measure all sides in turns."""
    if dialogues:
        given = real_batches(batch_size, steps)
    else:
        same = batches(config_of(size).vocab_size, batch_size, source, target, steps)
        given = {"ours": same, "pytorch": same}
    sides: dict[str, Callable[[], float]] = {}
    firsts: dict[str, float] = {}
    for name, some in given.items():
        try:
            sides[name], firsts[name] = (ours if name == "ours" else pytorch)(size, some, precision)
        except ImportError as error:
            click.echo(f"{name} is left out: {error}", err=True)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in [*sides][:: 1 if number % 2 else -1]:
            begun = time.perf_counter()
            sides[name]()
            times[name].append(time.perf_counter() - begun)
    tokens = {tokens_of(some) for some in given.values()}
    assert len(tokens) == 1, tokens  # the same examples
    case: dict[str, Any] = {"first_seconds": firsts, "seconds": times, "tokens": tokens.pop()}
    click.echo("| side | tokens a second | s a turn | first time, s |\n| --- | ---: | ---: | ---: |")
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        click.echo(f"| {name} | {case['tokens'] / middle:,.0f} | {middle:.2f} | {firsts[name]:.1f} |")
    case["ratios"] = {
        name: statistics.median(other / mine for other, mine in zip(theirs, times["ours"], strict=True))
        for name, theirs in times.items()
        if name != "ours"
    }
    for name, ratio in case["ratios"].items():
        click.echo(f"\nOurs makes {ratio:.2f} times as many tokens a second as {name} (median over {rounds} rounds).")
    lengths = "dialogues" if dialogues else f"s{source}-t{target}"
    key = f"{size}-b{batch_size}-{lengths}-{precision}"
    records.add(out or records.RESULTS / "training_speed.json", key, records.provenance() | case)


if __name__ == "__main__":
    main()
