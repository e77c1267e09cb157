"""What int8 weights cost in quality: held-out perplexity, and how many replies change.

    python -m benchmarks.quantized_quality --data DIALOGUES

DIALOGUES holds files NAME.valid.jsonl as `examples/train_demo.py` reads them. Contexts and replies are made as for
training, in the vocabulary of the checkpoint; perplexity is per reply token, `</s>` included, over the same replies in
both forms. Replies are those of the checkpoint's own recipe. The record goes to --out, which is whole at any time.
"""

import random
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np

from benchmarks.records import RESULTS, add, provenance
from blenderbot_jax.generation.many import generate_many
from blenderbot_jax.model import IGNORED_LABEL
from blenderbot_jax.pretrained import Checkpoint
from blenderbot_jax.quantize import quantize
from blenderbot_jax.scoring import token_log_probs
from blenderbot_jax.tokenizer import BlenderbotTokenizer
from examples.train_demo import Example, batches, make_examples, read_dialogues

_SEED = 0


def held_out(checkpoint: Checkpoint, data: Path, count: int | None = None) -> list[Example]:
    """Contexts and replies of dialogues that the bundled model has not seen, in random order.

    Args:
        checkpoint: its tokenizer reads them.
        data: a folder with files NAME.valid.jsonl.
        count: the most that are returned; all if None.
    """
    if not isinstance(checkpoint.tokenizer, BlenderbotTokenizer):
        raise TypeError(
            "contexts are made for pre-norm models, whose turns a BlenderbotTokenizer reads; not for the 90M"
        )
    examples = make_examples(read_dialogues(data, "valid"), checkpoint.tokenizer, seed=1)
    random.Random(_SEED).shuffle(examples)
    return examples[:count]


def perplexity(checkpoint: Checkpoint, params: Any, examples: list[Example]) -> float:
    """exp of the mean loss in nats per reply token, `</s>` included; of examples that fill whole batches."""
    total, count = 0.0, 0
    for source, labels in batches(examples, np.random.default_rng(_SEED)):
        log_probs = token_log_probs(checkpoint.model, params, source, np.where(source != 0, 1, 0), labels)
        total, count = (
            total - float(np.asarray(log_probs, np.float64).sum()),
            count + int((labels != IGNORED_LABEL).sum()),
        )
    return float(np.exp(total / count))


def replies(checkpoint: Checkpoint, params: Any, contexts: list[tuple[int, ...]]) -> list[list[int]]:
    """The ids of the best reply to each context."""
    found: dict[int, list[int]] = {}
    for places, batch in generate_many(checkpoint.model, params, contexts, config=checkpoint.generation_config):
        rows = zip(batch.tokens[:, 0], batch.lengths[:, 0], strict=True)
        found |= {place: tokens[:length].tolist() for place, (tokens, length) in zip(places, rows, strict=True)}
    return [found[place] for place in range(len(contexts))]


def compare(checkpoint: Checkpoint, examples: list[Example], contexts: int) -> dict[str, Any]:
    """Perplexities over the examples, and the share of the first contexts' replies that int8 weights change.

    Args:
        checkpoint: with weights that are not quantised.
        examples: from `held_out`.
        contexts: how many of them are answered.
    """
    forms = {"float32": checkpoint.params, "int8": quantize(checkpoint.params)}
    found = {name: perplexity(checkpoint, params, examples) for name, params in forms.items()}
    asked = list(dict.fromkeys(example.source for example in examples))[:contexts]
    said = [replies(checkpoint, params, asked) for params in forms.values()]
    changed = sum(one != other for one, other in zip(*said, strict=True))
    return {
        "replies scored": sum(len(labels) for _, labels in batches(examples, np.random.default_rng(_SEED))),
        "perplexity": found,
        "perplexity ratio": found["int8"] / found["float32"],
        "contexts": len(asked),
        "replies changed": changed,
        "bytes": {name: sum(leaf.nbytes for leaf in jax.tree.leaves(params)) for name, params in forms.items()},
    }


@click.command(help=__doc__)
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--model", "name", default="demo", show_default=True, help="Folder, hub name, or demo.")
@click.option("--count", type=click.IntRange(min=1), help="Replies scored; all without it.")
@click.option("--contexts", type=click.IntRange(min=1), default=300, show_default=True, help="Contexts answered.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=RESULTS / "quantized_quality.json")
def main(data: Path, name: str, count: int | None, contexts: int, out: Path) -> None:
    """Measure, print and record."""
    checkpoint = Checkpoint.from_pretrained(name)
    case = compare(checkpoint, held_out(checkpoint, data, count), contexts)
    add(out, name, {**provenance(), "device": jax.devices()[0].device_kind, **case})
    before, after = case["perplexity"]["float32"], case["perplexity"]["int8"]
    click.echo(f"{name}: perplexity {before:.4f} in float32, {after:.4f} in int8 ({after / before - 1:+.3%})")
    click.echo(f"{case['replies scored']:,} replies scored; {case['replies changed']} of {case['contexts']} changed")


if __name__ == "__main__":
    main()
