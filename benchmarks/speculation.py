"""What a draft gains: the cost of a round against plain steps, and the speed-up by how often the draft is right.

    python -m benchmarks.speculation --pair 400m:demo
    python -m benchmarks.speculation --pair 3b:400m --precision bf16 --tokens 4 --batch 1

A pair is the model and its draft: published sizes, `demo`, or layers x width; the draft takes over the model's
vocabulary. Weights are random, and random models agree on nothing, so agreement is planted: a rule makes the model
choose a script, and the draft's logits point past it at random places, as many as the acceptance rate leaves. Programs
take turns. A step's time is that of a long reply less that of a short one, over the steps between; a round's the slope
of a reply's time over its rounds. The break-even rate is where a round gives as many tokens as it takes steps' time,
the prompt aside: (1 - a ** (k + 1)) / (1 - a) tokens for k guesses that are each right with probability a (Leviathan et
al. 2023), where all B rows of a batch must be right, a = rate ** B. Speed-ups are of whole replies, prompts included.
"""

import statistics
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import records
from benchmarks.shapes import config_of, count_parameters
from benchmarks.workloads import PRECISIONS
from blenderbot_jax import (
    BlenderbotConfig,
    BlenderbotForConditionalGeneration,
    Draft,
    GenerationConfig,
    generate,
    prepare,
    quantize,
)
from blenderbot_jax.preparation import blocks_pay

LONG, SHORT, SOURCE = 60, 34, 32  # tokens; both replies fall into one bucket of 64
RATES = (0.0, 0.5, 0.7, 0.8, 0.9, 1.0)
_FIRST_ID = 5  # past the special tokens
_BLOCK = 1_000_003  # numbers that fill all matrices; a prime, so that no two rows are the same
_CHOSEN, _PLANTED = 1e4, 1e6


@dataclass(frozen=True)
class Planted:
    """A model whose logits point to planted tokens: parameters `{"own": its own, "wrong": [B, C]}`, -1 for none."""

    model: BlenderbotForConditionalGeneration

    @property
    def config(self) -> BlenderbotConfig:
        """The model's."""
        return self.model.config

    def apply(self, variables: Any, *args: Any, method: str, **kwargs: Any) -> Any:
        """Run a method of the model."""
        params = variables["params"]
        found = self.model.apply({"params": params["own"]}, *args, method=method, **kwargs)
        if method != "decode_step":
            return found
        (tokens, cache), (logits, after) = args, found
        places = cache.length + jnp.arange(tokens.shape[-1]) + 1
        wrong = jnp.take(params["wrong"], places, axis=1, mode="clip")[:, None, :, None]
        return jnp.where(jnp.arange(logits.shape[-1]) == wrong, _PLANTED, logits), after


@dataclass(frozen=True)
class Side:
    """A model with random weights."""

    model: BlenderbotForConditionalGeneration
    params: Any = field(repr=False)

    @classmethod
    def of(cls, config: BlenderbotConfig, precision: str, rows: int) -> "Side":
        """In the form that decodes fastest here.

        Args:
            config: the shape.
            precision: of `PRECISIONS`.
            rows: that its products have.
        """
        model = BlenderbotForConditionalGeneration(config, jnp.bfloat16 if precision == "bf16" else jnp.float32)
        params = random_params(model)
        return cls(model, quantize(params) if precision == "int8" else prepare(model, params, rows=rows))


def random_params(model: BlenderbotForConditionalGeneration) -> Any:
    """Uniform weights with the standard deviation of the initialisation, made leaf by leaf in the model's dtype."""
    rng, dtype = np.random.default_rng(0), jnp.dtype(model.dtype)
    block = ((rng.random(_BLOCK, np.float32) - 0.5) * 12**0.5 * model.config.init_std).astype(dtype)

    def leaf(path: Any, like: Any) -> jax.Array:
        if len(like.shape) > 1:
            return jax.device_put(np.resize(block, like.shape))
        return jax.device_put(np.full(like.shape, "scale" in jax.tree_util.keystr(path), dtype))

    return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(model.init_params, jax.random.key(0)))


def follow(script: jax.Array, scores: jax.Array, step: Any) -> jax.Array:
    """A rule by which row b chooses script[b, t] at place t."""
    chosen = jnp.arange(scores.shape[-1]) == script[:, step.length][:, None, None]
    return jnp.where(chosen, jnp.maximum(scores, _CHOSEN), scores)


@dataclass(frozen=True)
class Pair:
    """A model and its draft, and what both decode."""

    target: Side
    draft: Side
    ids: np.ndarray
    """[B, SOURCE]."""
    script: np.ndarray
    """[B, LONG] int32."""

    @classmethod
    def of(cls, sizes: str, precision: str, batch: int, tokens: int) -> "Pair":
        """The pair called `sizes`, TARGET:DRAFT, for rounds of up to so many drafted tokens.

        Raises:
            click.BadParameter: no such sizes, or no room for their weights.
        """
        try:
            target, draft = (config_of(size) for size in sizes.split(":"))
        except ValueError as error:
            raise click.BadParameter(f"{sizes} is no pair such as 3b:400m: {error}") from error
        draft = draft.replace(vocab_size=target.vocab_size, max_position_embeddings=target.max_position_embeddings)
        _check_memory(sizes, (target, draft), precision, batch * (tokens + 1))
        rng = np.random.default_rng(1)
        ids, script = (
            rng.integers(_FIRST_ID, target.vocab_size - 1, (batch, n)).astype(np.int32) for n in (SOURCE, LONG)
        )
        script[:, 0] = target.decoder_start_token_id
        return cls(Side.of(target, precision, batch * (tokens + 1)), Side.of(draft, precision, batch), ids, script)

    def reply(self, length: int, draft: Draft | None = None) -> tuple[float, int]:
        """Seconds and rounds of a reply of a length; of a plain one, steps.

        Raises:
            RuntimeError: it is not the script.
        """
        rule = jax.tree_util.Partial(follow, self.script)
        config = GenerationConfig(max_length=length)
        began = time.perf_counter()
        out = generate(self.target.model, self.target.params, self.ids, config=config, processors=(rule,), draft=draft)
        sequences = np.asarray(out.sequences)[:, 0]
        took = time.perf_counter() - began
        if not np.array_equal(sequences, self.script[:, :length]):
            raise RuntimeError("the reply is not the script: the planted numbers are no match for the logits")
        return took, length - 1 if out.rounds is None else int(out.rounds)

    def drafting(self, tokens: int, rate: float, seed: int) -> Draft:
        """A draft that is right at each place with a probability."""
        misses = np.random.default_rng(seed).random(self.script.shape) >= rate
        wrong = np.where(misses, self.script + 1, -1).astype(np.int32)
        return Draft(Planted(self.draft.model), {"own": self.draft.params, "wrong": wrong}, tokens)


def _check_memory(sizes: str, configs: tuple[BlenderbotConfig, ...], precision: str, rows: int) -> None:
    dtype = jnp.bfloat16 if precision == "bf16" else jnp.float32
    # While kernels are put into blocks or into 8 bits, both forms are there.
    copies = 2 if precision == "f32" and blocks_pay(dtype, rows) else 1.3
    needed = copies * jnp.dtype(dtype).itemsize * sum(map(count_parameters, configs))
    if needed > records.available_memory():
        free = records.available_memory() / 1e9
        raise click.BadParameter(f"{sizes} in {precision} takes {needed / 1e9:.1f} GB, and {free:.1f} GB are free")


def tokens_per_round(rate: float, tokens: int, batch: int) -> float:
    """How far a batch comes in a round, on average, if guesses are right with a probability, each on its own.

    Example:
        >>> tokens_per_round(0.5, 2, 1)
        1.75
    """
    return sum(rate ** (batch * n) for n in range(tokens + 1))


def break_even(cost: float, tokens: int, batch: int) -> float | None:
    """The rate at which a round gives as many tokens as it costs steps; None if it never does.

    Example:
        >>> round(break_even(1.75, 2, 1), 6), break_even(3.5, 2, 1)
        (0.5, None)
    """
    if cost > tokens + 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if tokens_per_round(middle, tokens, batch) < cost else (low, middle)
    return high


def measure(pair: Pair, counts: tuple[int, ...], repeats: int) -> dict[str, Any]:
    """Seconds and rounds of all programs, taking turns.

    Args:
        pair: to measure.
        counts: of drafted tokens.
        repeats: turns of each program after one that compiles; each turn plants other misses.
    """
    runs: dict[str, list[tuple[float, int]]] = {}
    for turn in range(repeats + 1):
        calls = {f"plain {length}": partial(pair.reply, length) for length in (LONG, SHORT)}
        for count in counts:
            for rate in RATES:
                calls[f"{count} drafted, {rate}"] = partial(pair.reply, LONG, pair.drafting(count, rate, turn))
        for name, call in calls.items():
            found = call()
            if turn:
                runs.setdefault(name, []).append(found)
    return {"plain": _plain(runs), "drafted": {str(count): _drafted(runs, count, len(pair.ids)) for count in counts}}


def _plain(runs: dict[str, list[tuple[float, int]]]) -> dict[str, Any]:
    long, short = ([seconds for seconds, _ in runs[f"plain {length}"]] for length in (LONG, SHORT))
    step = statistics.median(a - b for a, b in zip(long, short, strict=True)) / (LONG - SHORT)
    return {"step": step, "reply": statistics.median(long), "seconds": long}


def _drafted(runs: dict[str, list[tuple[float, int]]], count: int, batch: int) -> dict[str, Any]:
    """What rounds of `count` guesses cost and gain."""
    plain = _plain(runs)
    rates = {rate: runs[f"{count} drafted, {rate}"] for rate in RATES}
    # One slope a turn, so that a busy minute counts once; then the median.
    turns = zip(*rates.values(), strict=True)
    slope = statistics.median(float(np.polyfit([n for _, n in turn], [t for t, _ in turn], 1)[0]) for turn in turns)
    cost = slope / plain["step"]
    speed_ups = {
        rate: statistics.median(before / took for before, (took, _) in zip(plain["seconds"], found, strict=True))
        for rate, found in rates.items()
    }
    return {
        "round": slope,
        "steps a round": cost,
        "break-even": break_even(cost, count, batch),
        "speed-up": {str(rate): ratio for rate, ratio in speed_ups.items()},
        "rounds": {str(rate): statistics.fmean(rounds for _, rounds in found) for rate, found in rates.items()},
        "seconds": {str(rate): [took for took, _ in found] for rate, found in rates.items()},
    }


def table(name: str, case: dict[str, Any]) -> str:
    """A case as Markdown."""
    rates = " | ".join(f"x at {rate}" for rate in RATES)
    plain = case["plain"]
    lines = [
        f"**{name}**: a plain step {1000 * plain['step']:.2f} ms, a reply {1000 * plain['reply']:.0f} ms",
        "",
        f"| drafted | a round, ms | steps a round costs | break-even | {rates} |",
        "| ---: | ---: | ---: | ---: |" + " ---: |" * len(RATES),
    ]
    for count, found in case["drafted"].items():
        even = "never" if found["break-even"] is None else f"{found['break-even']:.2f}"
        gains = " | ".join(f"{found['speed-up'][str(rate)]:.2f}" for rate in RATES)
        lines.append(f"| {count} | {1000 * found['round']:.2f} | {found['steps a round']:.2f} | {even} | {gains} |")
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--pair", "pairs", multiple=True, required=True, metavar="TARGET:DRAFT", help="Repeatable.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="f32", show_default=True)
@click.option("--tokens", "counts", type=click.IntRange(min=1), multiple=True, default=(2, 4, 8), show_default=True)
@click.option("--batch", "batches", type=click.IntRange(min=1), multiple=True, default=(1,), show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Turns of each program.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=records.RESULTS / "speculation.json")
def main(
    pairs: tuple[str, ...], precision: str, counts: tuple[int, ...], batches: tuple[int, ...], repeats: int, out: Path
) -> None:
    """Measure, print and record."""
    for sizes in pairs:
        for batch in batches:
            pair = Pair.of(sizes, precision, batch, max(counts))
            case = measure(pair, counts, repeats)
            name = f"{sizes}-b{batch}-{precision}"
            about = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
            records.add(out, name, {**records.provenance(), **about, **case})
            click.echo(table(name, case) + "\n")
            del pair  # before the next one is made


if __name__ == "__main__":
    main()
