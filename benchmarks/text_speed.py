"""How fast texts become ids and ids texts: our tokenizer and that of transformers, on the same texts, taking turns.

    python -m benchmarks.text_speed --folder TOKENIZER_FOLDER

The texts are the turns of the dialogues in BLENDERBOT_JAX_DATA, or the lines of a file. Ids must agree before anything
is timed.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from benchmarks import records
from benchmarks.tables import paired_ratio, spread
from blenderbot_jax import load_tokenizer

_TASKS = ("one by one", "in a batch", "back to text")


def tasks(tokenizer: Any, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> dict[str, Callable[[], Any]]:
    """What is timed of a tokenizer; both libraries name these methods alike."""
    return {
        "one by one": lambda: [tokenizer(text)["input_ids"] for text in texts],
        "in a batch": lambda: tokenizer(list(texts), padding=True)["input_ids"],
        "back to text": lambda: tokenizer.batch_decode(ids, skip_special_tokens=True),
    }


def theirs(folder: Path) -> Any | None:
    """transformers' tokenizer of a folder; None where it is not installed."""
    try:
        import transformers
    except ImportError:
        return None
    transformers.logging.set_verbosity_error()
    return transformers.AutoTokenizer.from_pretrained(folder)


def measure(sides: dict[str, dict[str, Callable[[], Any]]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds by task, side and round."""
    seconds: dict[str, dict[str, list[float]]] = {task: {side: [] for side in sides} for task in _TASKS}
    for task, times in seconds.items():
        for number in range(rounds + 1):  # the first warms up
            for side in sides:
                began = time.perf_counter()
                sides[side][task]()
                if number:
                    times[side].append(time.perf_counter() - began)
    return seconds


def dialogue_texts(limit: int) -> list[str]:
    """Turns of real conversations.

    Raises:
        click.UsageError: no BLENDERBOT_JAX_DATA.
    """
    data = os.environ.get("BLENDERBOT_JAX_DATA")
    if not data:
        raise click.UsageError("BLENDERBOT_JAX_DATA names no folder of dialogues: pass --texts FILE, one text a line")
    lines = (line for path in sorted(Path(data, "dialogues").glob("*.jsonl")) for line in path.open(encoding="utf-8"))
    turns = (turn["text"].strip() for line in lines for turn in json.loads(line)["turns"])
    return [text for text, _ in zip((text for text in turns if text), range(limit), strict=False)]


@click.command()
@click.option("--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Default: demo's.")
@click.option("--texts", "file", type=click.Path(exists=True, path_type=Path), help="One text a line.")
@click.option("--limit", type=click.IntRange(1), default=5000, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Default: results/text_speed.json.")
def main(folder: Path | None, file: Path | None, limit: int, rounds: int, out: Path | None) -> None:
    """Measure tokenizers and print a Markdown table."""
    from benchmarks.shapes import DEMO, checkpoint_folder

    place = folder or checkpoint_folder(DEMO, Path())
    texts = file.read_text(encoding="utf-8").splitlines()[:limit] if file else dialogue_texts(limit)
    tokenizer, other = load_tokenizer(place), theirs(place)
    ids = [tokenizer(text)["input_ids"] for text in texts]
    sides = {"ours": tasks(tokenizer, texts, ids)}
    if other is None:
        click.echo("transformers is left out: it is not installed", err=True)
    elif differing := sum(a != b for a, b in zip(ids, (other(text)["input_ids"] for text in texts), strict=True)):
        raise click.ClickException(f"{differing} of {len(texts)} texts have other ids in transformers")
    else:
        sides["transformers"] = tasks(other, texts, ids)
    seconds = measure(sides, rounds)
    tokens = sum(map(len, ids))
    click.echo("| task | tokenizer | texts a second | tokens a second | spread | times ours |")
    click.echo("| --- | --- | ---: | ---: | ---: | ---: |")
    for task, times in seconds.items():
        for side, found in times.items():
            middle, ratio = statistics.median(found), paired_ratio(found, times["ours"])
            cells = f"{len(texts) / middle:,.0f} | {tokens / middle:,.0f} | {spread(found):.0%} | {ratio:.2f}"
            click.echo(f"| {task} | {side} | {cells} |")
    versions = {name: version(name) for name in ("tokenizers", *(["transformers"] if other else []))}
    record = {**records.provenance(), "versions": versions, "texts": len(texts), "tokens": tokens, "seconds": seconds}
    records.add(out or records.RESULTS / "text_speed.json", place.name, record)


if __name__ == "__main__":
    main()
