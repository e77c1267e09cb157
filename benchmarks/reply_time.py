"""Seconds per reply: here, and in PyTorch transformers on the same weights, prompts and settings.

    python benchmarks/reply_time.py --model demo --utterances prompts.txt

Each side answers the same prompts one by one with the published recipe (10 beams, 20 to 60 tokens, both n-gram rules).
Programs are compiled, and torch is warmed up, before the clock starts; sides take turns prompt by prompt, so that a
busy machine slows both. The peer is left out where torch or transformers is missing.
"""

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import click
import jax

from blenderbot_jax.chatbot import Chatbot
from blenderbot_jax.checkpoint import save_pretrained
from blenderbot_jax.dialogue import Conversation
from blenderbot_jax.generation import GenerationConfig

UTTERANCES = (
    "Hello, how are you?",
    "My friends are cool but they eat too many carbs.",
    "What do you like to do on weekends?",
    "I just watched a great movie about space.",
    "Do you have any pets? I have two dogs and a cat, and they keep me busy all day.",
    "I love to cook Italian food for my family.",
)


def peer(bot: Chatbot, settings: GenerationConfig) -> Callable[[str], Any] | None:
    """The same checkpoint in transformers, as a function of an utterance; None where it is not installed."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(folder, bot.checkpoint.model.config, bot.checkpoint.params)
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config = transformers.GenerationConfig(
        **settings.to_dict(), pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1
    )

    def answer(text: str) -> Any:
        encoded = Conversation().add("user", text).encode(bot.checkpoint.tokenizer)
        ids = torch.tensor([encoded.input_ids])
        return model.generate(ids, attention_mask=torch.ones_like(ids))

    return answer


@click.command(help=__doc__)
@click.option("--model", "name", default="demo", show_default=True, help="Folder, hub name, or demo.")
@click.option("--utterances", type=click.File("r"), help="One a line; a few are built in.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
def main(name: str, utterances: Any, rounds: int) -> None:
    """Measure and print a Markdown table."""
    texts = [line.strip() for line in utterances if line.strip()] if utterances else list(UTTERANCES)
    settings = GenerationConfig.recipe()
    bot = Chatbot.from_pretrained(name, generation_config=settings)
    fast = bot.prepared()  # as the commands do; the peer gets the weights as they were loaded
    started = time.perf_counter()
    fast.reply(texts[0])
    first = time.perf_counter() - started
    sides: dict[str, Callable[[str], Any]] = {"blenderbot_jax": fast.reply}
    other = peer(bot, settings)
    if other:
        sides["transformers"] = other
    for answer in sides.values():
        for text in texts:
            answer(text)
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for text in texts:
            for side, answer in sides.items():
                started = time.perf_counter()
                answer(text)
                times[side].append(time.perf_counter() - started)
    medians = {side: statistics.median(values) for side, values in times.items()}
    versions = ", ".join(f"{p} {_version(p)}" for p in ("jax", "flax", "torch", "transformers"))
    click.echo(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, {jax.default_backend()} backend;")
    click.echo(f"Python {platform.python_version()}, {versions}")
    click.echo(f"model {name}, {len(texts)} utterances, {rounds} rounds; first reply with compilation {first:.1f} s\n")
    click.echo("| side | median ms a reply | ratio to blenderbot_jax |\n| --- | --- | --- |")
    for side, median in medians.items():
        click.echo(f"| {side} | {1000 * median:.1f} | {median / medians['blenderbot_jax']:.2f} |")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


if __name__ == "__main__":
    main()
