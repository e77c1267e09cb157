"""What int8 weights cost in quality: held-out perplexity, and how many replies change.

    python -m benchmarks.quantized_quality --data DIALOGUES

DIALOGUES holds files NAME.valid.jsonl, which `blenderbot_jax.data` reads. Contexts and replies are made as for
training, in the vocabulary of the checkpoint; perplexity is per reply token, `</s>` included, over the same replies in
both forms. Replies are those of the checkpoint's own recipe. The record goes to --out, which is whole at any time.
"""

import random
from pathlib import Path
from typing import Any

import click
import jax

from benchmarks.records import RESULTS, add, provenance
from blenderbot_jax.data import Batches, Example, corpus_examples, read_dialogues
from blenderbot_jax.evaluation import likelihood
from blenderbot_jax.generation.many import generate_many
from blenderbot_jax.pretrained import Checkpoint
from blenderbot_jax.quantize import quantize

_SEED, _BATCH = 0, 64


def held_out(checkpoint: Checkpoint, data: Path, count: int | None = None) -> list[Example]:
    """Contexts and replies of dialogues that the bundled model has not seen, in random order.

    Args:
        checkpoint: its tokenizer reads them.
        data: a folder with files NAME.valid.jsonl.
        count: the most that are returned; all if None.
    """
    dialogues = read_dialogues(sorted(map(str, data.glob("*.valid.jsonl"))))
    limit = checkpoint.model.config.max_position_embeddings
    examples = [*corpus_examples(dialogues, checkpoint.tokenizer, max_source=limit, max_target=limit)]
    random.Random(_SEED).shuffle(examples)
    return examples[:count]


def perplexity(checkpoint: Checkpoint, params: Any, examples: list[Example]) -> float:
    """exp of the mean loss in nats per reply token, `</s>` included."""
    batches = Batches(examples, _BATCH, shuffle=False).epoch(0)
    return likelihood(checkpoint.model, params, batches).perplexity


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
    asked = list(dict.fromkeys(example.input_ids for example in examples))[:contexts]
    said = [replies(checkpoint, params, asked) for params in forms.values()]
    changed = sum(one != other for one, other in zip(*said, strict=True))
    return {
        "replies scored": len(examples),
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
