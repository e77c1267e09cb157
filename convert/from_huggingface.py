"""Convert published weights into a folder this library loads at once: safetensors, in the dtype you want.

    python convert/from_huggingface.py facebook/blenderbot-400M-distill blenderbot-400m --dtype bfloat16

SOURCE is a folder or a hub name; `.bin` and safetensors, whole or in shards. Nothing in a `.bin` is executed, and torch
is not needed. TARGET then holds config.json, generation_config.json, model.safetensors and the tokenizer's files; it
loads here with `from_pretrained(TARGET)`, and in transformers too.
"""

from pathlib import Path

import click
import jax
import jax.numpy as jnp

from blenderbot_jax.checkpoint import fetch, save_pretrained
from blenderbot_jax.generation import GenerationConfig
from blenderbot_jax.model import BlenderbotForConditionalGeneration
from blenderbot_jax.tokenizer import BlenderbotTokenizer


@click.command(help=__doc__)
@click.argument("source")
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float16", show_default=True)
@click.option("--revision", default=None, help="Branch, tag or commit on the hub.")
@click.option("--local-only", is_flag=True, help="Never use the network.")
def main(source: str, target: Path, dtype: str, revision: str | None, local_only: bool) -> None:
    """Convert one checkpoint."""
    try:
        folder = fetch(source, revision=revision, local_files_only=local_only)
        if target.exists() and target.resolve() == folder.resolve():
            raise ValueError(f"{target} is the source itself: choose another folder")
        model, params = BlenderbotForConditionalGeneration.from_pretrained(folder, dtype=jnp.dtype(dtype))
        tokenizer = BlenderbotTokenizer.from_pretrained(folder) if model.config.normalize_before else None
        save_pretrained(target, model.config, params, GenerationConfig.from_pretrained(folder), tokenizer)
    except (ValueError, OSError) as error:
        raise click.UsageError(" ".join(str(error).split())) from None
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    click.echo(f"{target}: {count:,} parameters in {dtype}")
    if tokenizer is None:
        click.echo("The 90M model's tokenizer files were not converted; copy them from the source.", err=True)


if __name__ == "__main__":
    main()
