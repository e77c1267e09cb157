"""Compiling ahead of time the programs that `generate` is going to need, so that no caller waits for them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.generation import GenerationConfig
from blenderbot_jax.generation.decode import decode
from blenderbot_jax.generation.generate import GenerativeModel
from blenderbot_jax.generation.plan import LENGTH_BUCKETS
from blenderbot_jax.generation.processors import Constraint, CustomProcessor
from blenderbot_jax.generation.request import Request, request
from blenderbot_jax.generation.sampling import prompt_keys
from blenderbot_jax.generation.speculation import Draft


def warm_up(
    model: GenerativeModel,
    params: Any,
    config: GenerationConfig,
    *,
    batch_sizes: Sequence[int] = (1,),
    source_widths: Sequence[int] | None = None,
    processors: Sequence[CustomProcessor] = (),
    prefix_allowed_tokens_fn: Constraint | None = None,
    stop_sequences: Sequence[Sequence[int]] = (),
    draft: Draft | None = None,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> tuple[tuple[int, int], ...]:
    """Compile what `generate` and `generate_many` run for prompts of these sizes; nothing is decoded.

    Afterwards `generate` compiles nothing for the same model, for parameters of the same shapes, dtypes and devices,
    and for any configuration of the same plan: lengths up to the same bucket, the same rules on or off, any numbers in
    them. The order of the work is widths outside, batch sizes inside, both as given.

    Args:
        model: as for `generate`.
        params: its parameters; only their shapes, dtypes and devices count.
        config: how it is going to decode.
        batch_sizes: numbers of prompts, rounded up to their buckets as `generate` does.
        source_widths: widths of prompts in tokens, rounded up likewise. None takes every bucket up to the model's
            positions. Of a causal model they must be given, and stand for prompts without padding.
        processors, prefix_allowed_tokens_fn, stop_sequences: as `generate` will get them: functions are part of a
            program.
        draft: as `generate` will get it; of its parameters, too, only shapes, dtypes and devices count.
        on_progress: called with the programs ready and those there are, before the first and after each.

    Returns:
        The (batch size, width) of each program in the order they were compiled, each once.

    Raises:
        ValueError: a size below 1, a width beyond the model's positions, or what `generate` refuses in the
            configuration or the draft.

    Example:
        >>> warm_up(model, params, GenerationConfig(num_beams=2, max_length=12), source_widths=(5, 12))
        ((1, 16),)
    """
    widths = prompt_widths(model.config) if source_widths is None else source_widths
    _check_sizes("batch_sizes", batch_sizes)
    _check_sizes("source_widths", widths, model.config.max_position_embeddings)
    extras = {
        "processors": processors,
        "constraint": prefix_allowed_tokens_fn,
        "stop_sequences": stop_sequences,
        "draft": draft,
    }
    programs = {}
    for batch in _requests(model.config, config, batch_sizes, widths, extras):
        rows, source, prompt = batch.inputs.shape
        programs.setdefault((rows, source or prompt), batch)
    on_progress(0, len(programs))
    for done, batch in enumerate(programs.values(), 1):
        keys = prompt_keys(jax.random.key(0), batch.inputs.shape[0]) if config.do_sample else None
        # A later call of `decode` with such arguments finds what was compiled here.
        decode.lower(model, batch.plan, params, batch.inputs, batch.task, keys, draft).compile()
        on_progress(done, len(programs))
    return tuple(programs)


def prompt_widths(model: BlenderbotConfig) -> tuple[int, ...]:
    """The widths in tokens, narrowest first, that prompts of a model with an encoder are padded to.

    Args:
        model: the architecture.

    Raises:
        ValueError: a causal model, whose replies begin with its prompt.

    Example:
        >>> prompt_widths(model.config)
        (16, 32, 64, 128)
    """
    if not model.is_encoder_decoder:
        raise ValueError("a causal model's programs depend on its prompts: pass source_widths=(...), their widths")
    limit = model.max_position_embeddings
    return (*(width for width in LENGTH_BUCKETS if width < limit), limit)


def _check_sizes(name: str, sizes: Sequence[int], limit: int | None = None) -> None:
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise ValueError(f"{name} are integers of at least 1, as in {name}=(1, 8), not {size!r}")
        if limit is not None and size > limit:
            raise ValueError(f"{name} are at most the model's positions, {limit}: leave {size} out")


def _requests(
    model: BlenderbotConfig,
    config: GenerationConfig,
    batch_sizes: Sequence[int],
    widths: Sequence[int],
    extras: dict[str, Any],
) -> Iterator[Request]:
    """A batch of each size; which ids it holds makes no difference to a program."""
    for width in widths:
        for batch in batch_sizes:
            ids = np.zeros((batch, width), np.int32)
            yield request(model, config, {"input_ids": ids, "attention_mask": np.ones_like(ids)}, **extras)
