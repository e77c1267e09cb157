"""Milliseconds of a decoding step on the device at hand, of one side; `benchmarks.gpu_report` compares several.

    python -m benchmarks.gpu_steps --side ours --shape 400m --case beam:1 --case beam:32 --case greedy:512

A step's time is that of a long reply less that of a short one, over the steps between them, so that the prompt, the
encoder and the host's part of a call do not count. Both are forced to their length. Weights are random, the same for no
two sides: time depends on shapes alone. One line of JSON comes out per case.
"""

import functools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import click

LONG, SHORT, SOURCE = 60, 34, 32  # tokens; both replies fall into one bucket of 64
SIDES = ("ours", "eager", "compiled")
_FIRST_CALLS = 3  # XLA runs a graph's first call op by op, builds it in the second, and may update it in the third
_TINY = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
         "encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 512}  # fmt: skip


def shape(name: str) -> Any:
    """A published architecture, or a tiny one to try a script with."""
    from blenderbot_jax import BlenderbotConfig

    published = {
        "400m": BlenderbotConfig.blenderbot_400m_distill,
        "1b": BlenderbotConfig.blenderbot_1b_distill,
        "3b": BlenderbotConfig.blenderbot_3b,
    }
    return published[name]() if name in published else BlenderbotConfig.blenderbot_400m_distill().replace(**_TINY)


def recipe(mode: str, length: int) -> Any:
    """The published recipe, one reply of exactly `length` tokens."""
    from blenderbot_jax import GenerationConfig

    beams = {} if mode == "beam" else {"num_beams": 1}
    return GenerationConfig.recipe(min_length=length, max_length=length, **beams)


def prompts(batch: int, vocab_size: int) -> Any:
    """[batch, SOURCE] ids without end or pad tokens."""
    import numpy as np

    return np.random.default_rng(0).integers(5, vocab_size, (batch, SOURCE)).astype(np.int32)


def ours(config: Any) -> Callable[[str, int, int], None]:
    """This library in bfloat16, as a function of mode, batch and length."""
    import jax
    import jax.numpy as jnp

    import blenderbot_jax
    from blenderbot_jax import BlenderbotForConditionalGeneration, generate

    model = BlenderbotForConditionalGeneration(config, dtype=jnp.bfloat16)

    @jax.jit
    def weights(key: jax.Array) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.init_params(key))

    params = weights(jax.random.key(0))
    prepare = getattr(blenderbot_jax, "prepare", None)
    params = params if prepare is None else prepare(model, params)
    device_prompts = functools.cache(lambda batch: prompts(batch, config.vocab_size))

    def reply(mode: str, batch: int, length: int) -> None:
        out = generate(model, params, device_prompts(batch), config=recipe(mode, length))
        jax.block_until_ready(out)

    return reply


def peer(config: Any, device: str, compiled: bool) -> Callable[[str, int, int], None]:
    """PyTorch transformers in bfloat16, likewise; compiled with a static cache, or eager."""
    import torch
    import transformers

    with torch.device(device):
        made = transformers.BlenderbotForConditionalGeneration(transformers.BlenderbotConfig(**config.to_dict()))
    model: Any = made.eval().bfloat16()
    static = {"cache_implementation": "static"} if compiled else {}

    def reply(mode: str, batch: int, length: int) -> None:
        ids = torch.tensor(prompts(batch, config.vocab_size), device=device, dtype=torch.long)
        settings = transformers.GenerationConfig(
            **recipe(mode, length).to_dict(), pad_token_id=0, bos_token_id=1, eos_token_id=2,
            decoder_start_token_id=1, **static,
        )  # fmt: skip
        with torch.inference_mode():
            model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        if device == "cuda":
            torch.cuda.synchronize()

    return reply


def step_time(reply: Callable[[str, int, int], None], mode: str, batch: int, rounds: int) -> dict[str, float]:
    """Milliseconds a step and a long reply, medians, and the seconds before the first was there."""
    started = time.perf_counter()
    for _ in range(_FIRST_CALLS):
        reply(mode, batch, LONG)
        reply(mode, batch, SHORT)
    warm = time.perf_counter() - started
    long, steps = [], []
    for _ in range(rounds):
        one, other = _seconds(reply, mode, batch, LONG), _seconds(reply, mode, batch, SHORT)
        long.append(one)
        steps.append((one - other) / (LONG - SHORT))
    return {
        "ms_per_step": 1000 * statistics.median(steps),
        "ms_per_step_least": 1000 * min(steps),
        "ms_per_reply": 1000 * statistics.median(long),
        "warm_up_s": warm,
    }


def _seconds(reply: Callable[[str, int, int], None], mode: str, batch: int, length: int) -> float:
    started = time.perf_counter()
    reply(mode, batch, length)
    return time.perf_counter() - started


def floor_ms(config: Any, mode: str, batch: int, bandwidth: float) -> float:
    """The time that reading the decoder's weights and caches once takes, in bfloat16; bandwidth in bytes a second."""
    D, F, L, V = config.d_model, config.decoder_ffn_dim, config.decoder_layers, config.vocab_size
    K = 10 if mode == "beam" else 1
    # Keys and values of the prompt are not made in a step: 6 of the 8 square matrices are read.
    weights = L * (6 * D * D + 2 * D * F) + V * D
    caches = 2 * L * batch * D * (SOURCE + K * (LONG + SHORT) // 2)
    return 1000 * 2 * (weights + caches) / bandwidth


def measured_bandwidth() -> float:
    """Bytes a second that adding one to a big array reads and writes on the device."""
    import jax
    import jax.numpy as jnp

    size = 2**30 if jax.default_backend() == "gpu" else 2**24
    array = jnp.zeros(size // 4, jnp.float32)
    add = jax.jit(lambda x: x + 1)
    jax.block_until_ready(add(array))
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        jax.block_until_ready(add(array))
        best = min(best, time.perf_counter() - started)
    return 2 * size / best


@click.command(help=__doc__)
@click.option("--side", type=click.Choice(SIDES), default="ours", show_default=True)
@click.option("--shape", "name", type=click.Choice(["tiny", "400m", "1b", "3b"]), default="400m", show_default=True)
@click.option("--case", "cases", multiple=True, default=["beam:1"], help="MODE:BATCH, MODE beam or greedy.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True)
def main(side: str, name: str, cases: tuple[str, ...], device: str, rounds: int) -> None:
    """Measure one side."""
    config = shape(name)
    if side == "ours":
        import jax

        if device == "cpu":
            jax.config.update("jax_platforms", "cpu")
        click.echo(json.dumps({"bandwidth": measured_bandwidth(), "device": str(jax.devices()[0])}))
        reply = ours(config)
    else:
        reply = peer(config, device, compiled=side == "compiled")
    for case in cases:
        mode, batch = case.split(":")
        try:
            found: dict[str, Any] = step_time(reply, mode, int(batch), rounds)
        except Exception as problem:  # a peer that cannot do a case must not end the others
            found = {
                "failed": f"{type(problem).__name__}: {str(problem).splitlines()[0][:200] if str(problem) else ''}"
            }
        click.echo(json.dumps({"case": case, **found}), nl=True)


if __name__ == "__main__":
    main()
