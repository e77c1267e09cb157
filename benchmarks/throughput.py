"""Utterances a second when many are answered at once: here, in PyTorch transformers and in CTranslate2.

    python -m benchmarks.throughput answer --limit 10000 --output throughput.json
    python -m benchmarks.throughput batches --shape 400m

`answer` takes real utterances (BLENDERBOT_JAX_DATA, or a file) through `Chatbot.replies`, and through each peer that is
installed, on the same weights, ids and recipe. Every side gets its prompts sorted by length in batches of one size;
sides take turns slice by slice, so that a busy machine slows all of them. Compilation is part of our time; the rate of
the batches that waited for none is given beside it. CTranslate2 has no rule against the prompt's n-grams: it does less.

`batches` measures batches of 1 to 64 equal prompts that decode a fixed number of tokens: what a batch costs by itself,
without padding and without waiting for its longest reply.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that wait must leave the cores alone

import click
import jax
import numpy as np

from benchmarks.throughput_peers import Prompt, Side, peers
from blenderbot_jax import (
    BlenderbotConfig,
    BlenderbotForConditionalGeneration,
    Chatbot,
    Conversation,
    GenerationConfig,
    generate,
)
from blenderbot_jax.files import write_text
from blenderbot_jax.generation.many import Packing
from blenderbot_jax.generation.plan import compile_config

SHAPES = {
    "400m": BlenderbotConfig.blenderbot_400m_distill,
    "1b": BlenderbotConfig.blenderbot_1b_distill,
    "3b": BlenderbotConfig.blenderbot_3b,
}
COMPILATION = "/jax/core/compile/backend_compile_duration"


@dataclass
class Warmth:
    """The decoding programs that were compiled, and the batches that waited for none."""

    programs: int = 0
    count: int = 0
    seconds: float = 0.0

    def __call__(self, event: str, duration_secs: float, **others: Any) -> None:
        """A listener of `jax.monitoring`."""
        del duration_secs
        self.programs += event == COMPILATION and others.get("fun_name") == "jit(decode)"

    @property
    def per_second(self) -> float | None:
        """Utterances a second where nothing was compiled."""
        return self.count / self.seconds if self.count else None


def ours(bot: Chatbot, warmth: Warmth) -> Side:
    """This library."""

    def answer(texts: Sequence[str], prompts: Sequence[Prompt]) -> list[Prompt]:
        del prompts
        last, programs = time.perf_counter(), warmth.programs

        def batch_done(count: int) -> None:
            nonlocal last, programs
            now = time.perf_counter()
            if warmth.programs == programs:
                warmth.count += count
                warmth.seconds += now - last
            last, programs = now, warmth.programs

        encode = bot.checkpoint.tokenizer.encode
        return [tuple(encode(reply, add_special_tokens=False)) for reply in bot.replies(texts, on_progress=batch_done)]

    return Side("blenderbot_jax", answer)


def utterances(source: TextIO | None, limit: int) -> list[str]:
    """Texts from a file, or turns of the real dialogues in an order that a seed fixes."""
    if source is not None:
        found = [line.strip() for line in source]
    else:
        data = os.environ.get("BLENDERBOT_JAX_DATA")
        if not data:
            raise click.UsageError("set BLENDERBOT_JAX_DATA to the folder of dialogues, or pass --utterances FILE")
        lines = [line for path in sorted(Path(data, "dialogues").glob("*.valid.jsonl")) for line in path.open()]
        found = [turn["text"].strip() for line in lines for turn in json.loads(line)["turns"]]
        found = [found[place] for place in np.random.default_rng(0).permutation(len(found))]
    return [text for text in found if text][:limit]


def padding(bot: Chatbot, slices: Sequence[Sequence[Prompt]], replies: Sequence[Sequence[Prompt]]) -> dict[str, float]:
    """What the shapes hold beyond what was asked: source places, rows, and steps past the end of a reply."""
    checkpoint = bot.checkpoint
    plan, _ = compile_config(bot.generation_config, checkpoint.model.config, 1)
    places = tokens = rows = steps = own_steps = count = 0
    for prompts, said in zip(slices, replies, strict=True):
        for batch in bot.packing.batches(dict(enumerate(prompts)), checkpoint.model, plan):
            # A reply of n words takes n + 1 steps, the last for its end.
            lengths = [len(said[place]) + 1 for place in batch.places]
            places, tokens = places + batch.rows * batch.width, tokens + sum(len(prompts[p]) for p in batch.places)
            rows, count = rows + batch.rows, count + len(batch.places)
            steps, own_steps = steps + batch.rows * max(lengths), own_steps + sum(lengths)
    return {
        "source places over tokens": places / tokens - 1,
        "rows over prompts": rows / count - 1,
        "steps over reply tokens": steps / own_steps - 1,
    }


def machine() -> dict[str, Any]:
    """What the figures were measured with."""
    packages = ("blenderbot_jax", "jax", "jaxlib", "torch", "transformers", "ctranslate2")
    return {
        "machine": f"{_processor()}, {os.cpu_count()} CPUs",
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in packages},
        "commit": _git("rev-parse", "HEAD") + (" with changes" if _git("status", "--porcelain") else ""),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _report(record: dict[str, Any], output: str | None) -> None:
    if output:
        write_text(Path(output), json.dumps(record, indent=2) + "\n")
        click.echo(f"\nwritten: {output}")


@click.group(help=__doc__)
def main() -> None:
    """Measure."""


@main.command()
@click.option("--model", "name", default="demo", show_default=True, help="Folder, hub name, or demo.")
@click.option("--recipe", is_flag=True, help="The published recipe instead of the checkpoint's own decoding.")
@click.option("--utterances", "source", type=click.File("r", encoding="utf-8"), help="One a line; else the dialogues.")
@click.option("--limit", type=click.IntRange(min=1), default=10_000, show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), help="Of all sides; else what this library takes.")
@click.option("--widths", help="What prompts are padded to, such as 16,24,32.")
@click.option("--slices", type=click.IntRange(min=1), default=4, show_default=True, help="Turns that the sides take.")
@click.option("--compute-type", "types", multiple=True, default=["float32"], show_default=True, help="Of CTranslate2.")
@click.option("--peers/--alone", "compared", default=True, show_default=True)
@click.option("--output", help="A JSON record.")
def answer(
    name: str, recipe: bool, source: TextIO | None, limit: int, batch_size: int | None, widths: str | None, slices: int,
    types: Sequence[str], compared: bool, output: str | None,
) -> None:  # fmt: skip
    """Answer a list of utterances."""
    packing = Packing(batch_size, tuple(map(int, widths.split(",")))) if widths else Packing(batch_size)
    bot = Chatbot.from_pretrained(name, generation_config=GenerationConfig.recipe() if recipe else None)
    bot = Chatbot(bot.checkpoint, bot.generation_config, packing)
    plan, _ = compile_config(bot.generation_config, bot.checkpoint.model.config, 1)
    size = packing.most(plan)
    texts = utterances(source, limit)
    prompts = [bot.checkpoint.encode(Conversation().add("user", text)).input_ids for text in texts]
    parts = [slice(*edges) for edges in _edges(len(texts), slices)]
    warmth = Warmth()
    jax.monitoring.register_event_duration_secs_listener(warmth)
    with tempfile.TemporaryDirectory() as folder:
        sides = [ours(bot.prepared(size), warmth), *(peers(bot, folder, types, size) if compared else ())]
        for number, part in enumerate(parts):
            for side in sides:
                started = time.perf_counter()
                side.replies += side.answer(texts[part], prompts[part])
                side.seconds += time.perf_counter() - started
            click.echo(f"slice {number + 1} of {len(parts)}: {part.stop} of {len(texts)} utterances", err=True)
    first = sides[0]
    waste = padding(bot, [prompts[part] for part in parts], [first.replies[part] for part in parts])
    record = machine() | {
        "command": " ".join(["benchmarks.throughput", *sys.argv[1:]]),
        "model": name,
        "utterances": len(texts),
        "batch_size": size,
        "decoding": bot.generation_config.to_dict(),
        "programs": warmth.programs,
        "per_second_without_compilation": warmth.per_second,
        "waste": waste,
        "sides": {
            side.name: {
                "seconds": side.seconds,
                "per_second": len(texts) / side.seconds,
                "same_replies": float(np.mean([a == b for a, b in zip(side.replies, first.replies, strict=True)])),
                "mean_reply_tokens": float(np.mean([len(reply) for reply in side.replies])),
            }
            for side in sides
        },
    }
    click.echo(_table(record))
    _report(record, output)


def _edges(count: int, slices: int) -> list[tuple[int, int]]:
    edges = np.linspace(0, count, min(slices, count) + 1).astype(int).tolist()
    return list(pairwise(edges))


def _table(record: dict[str, Any]) -> str:
    sides = record["sides"]
    base = sides["blenderbot_jax"]["per_second"]
    warm = record["per_second_without_compilation"]
    lines = [
        f"{record['machine']}, {record['device']}; Python {record['python']}, "
        + ", ".join(f"{package} {version or 'absent'}" for package, version in record["versions"].items()),
        f"{record['utterances']} utterances, batches of {record['batch_size']}; {record['programs']} programs; "
        + (f"{warm:.1f} utterances a second in batches that waited for none" if warm else "every batch waited for one"),
        "padding: " + ", ".join(f"{name} {100 * share:+.0f} %" for name, share in record["waste"].items()),
        "",
        "| side | utterances a second | ratio | same replies | tokens a reply |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, side in sides.items():
        cells = (
            name, f"{side['per_second']:.1f}", f"{side['per_second'] / base:.2f}",
            f"{100 * side['same_replies']:.0f} %", f"{side['mean_reply_tokens']:.1f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


@main.command()
@click.option("--shape", default="demo", show_default=True, help=f"demo, a folder, or random: {', '.join(SHAPES)}.")
@click.option("--tokens", type=click.IntRange(min=2), default=25, show_default=True, help="Steps that are decoded.")
@click.option("--width", type=click.IntRange(min=1), default=32, show_default=True, help="Tokens of a prompt.")
@click.option("--sizes", default="1,2,4,8,16,32,64", show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--output", help="A JSON record.")
def batches(shape: str, tokens: int, width: int, sizes: str, rounds: int, output: str | None) -> None:
    """Utterances a second against the batch size, greedy and with the published recipe."""
    if shape in SHAPES:
        model = BlenderbotForConditionalGeneration(SHAPES[shape]())
        params = model.init_params(jax.random.key(0))
    else:
        model, params = BlenderbotForConditionalGeneration.from_pretrained(shape)
    ids = np.random.default_rng(0).integers(4, model.config.vocab_size, (1, width), dtype=np.int32)
    length = {"min_length": tokens + 1, "max_length": tokens + 1}
    recipes = {
        "greedy": GenerationConfig.recipe(num_beams=1, length_penalty=None, **length),
        "beam 10": GenerationConfig.recipe(**length),
    }
    best: dict[str, dict[int, float]] = {name: {} for name in recipes}
    counts = [int(size) for size in sizes.split(",")]
    for round_number in range(rounds + 1):
        for name, config in recipes.items():
            for count in counts:
                started = time.perf_counter()
                out = generate(model, params, np.repeat(ids, count, axis=0), config=config)
                jax.block_until_ready(out.sequences)
                seconds = time.perf_counter() - started
                if round_number:  # the first compiles
                    best[name][count] = min(best[name].get(count, np.inf), seconds)
        click.echo(f"round {round_number} of {rounds}", err=True)
    speeds = {name: {count: count / seconds for count, seconds in times.items()} for name, times in best.items()}
    click.echo(f"{shape}, {tokens} steps, prompts of {width}, best of {rounds}; utterances a second\n")
    click.echo("| batch | " + " | ".join(recipes) + " |\n| --- |" + " --- |" * len(recipes))
    for count in counts:
        click.echo(f"| {count} | " + " | ".join(f"{speeds[name][count]:.2f}" for name in recipes) + " |")
    for name, by_count in speeds.items():
        falls = [f"{a} to {b}" for a, b in pairwise(counts) if by_count[b] < by_count[a]]
        click.echo(f"\n{name}: " + (f"falls from batch {', '.join(falls)}" if falls else "rises with every batch"))
    record = machine() | {
        "command": " ".join(["benchmarks.throughput", *sys.argv[1:]]),
        "shape": shape,
        "steps": tokens,
        "width": width,
        "rounds": rounds,
        "per_second": speeds,
    }
    _report(record, output)


if __name__ == "__main__":
    main()
