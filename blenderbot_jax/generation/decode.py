"""The whole of decoding as one compiled program per model, plan and bucket.

It encodes, computes the cross-attention keys and values once, and decodes in a `lax.while_loop` that ends as soon as
every row has.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from blenderbot_jax.cache import expand_beams, grow, over_caches, reorder, rewind
from blenderbot_jax.generation.beam import beam_search
from blenderbot_jax.generation.inputs import Inputs
from blenderbot_jax.generation.plan import Plan
from blenderbot_jax.generation.replay import Recording, record
from blenderbot_jax.generation.sampling import Replies, decode_rows
from blenderbot_jax.generation.task import Task


@partial(jax.jit, static_argnums=(0, 1))
def decode(
    model: Any, plan: Plan, params: Any, inputs: Inputs, task: Task, key: jax.Array | None
) -> tuple[Replies, Recording]:
    """The whole of decoding; compiled once per model, plan and bucket."""
    variables = {"params": params}
    encoded = inputs.encoded
    if encoded is None and model.config.is_encoder_decoder:
        embeds = {} if inputs.source_embeds is None else {"inputs_embeds": inputs.source_embeds}
        encoded = model.apply(variables, inputs.source_ids, inputs.source_mask, method="encode", **embeds)
    cache = _begin(model, plan, variables, encoded, inputs, task)
    positions = model.config.max_position_embeddings

    def grow_all(cache: Any, capacity: int) -> Any:
        return over_caches(lambda one: grow(one, min(capacity, positions)), cache)

    def step(tokens: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        logits, cache = model.apply(variables, tokens[:, :, None], cache, method="decode_step")
        return logits[:, :, 0], cache

    if plan.mode in ("beam", "beam_sample"):
        replies = beam_search(step, _reorder_all, cache, task, plan, key, grow_all)
    else:
        replies = decode_rows(step, cache, task, plan, key, grow_all)
    replies = jax.tree.map(lambda leaf: leaf[:, : plan.returned], replies)
    return replies, record(model, plan, variables, encoded, inputs, task, replies)


def _begin(model: Any, plan: Plan, variables: Any, encoded: Any, inputs: Inputs, task: Task) -> Any:
    """A cache that has read all but the last token of what replies begin with."""
    B, _, W = inputs.shape
    # The prompt is read into the first segment.
    first = next(capacity for capacity in (*plan.segments, plan.capacity) if capacity >= min(W, plan.capacity))
    room = min(first, model.config.max_position_embeddings)
    beams = plan.mode in ("beam", "beam_sample") and plan.rows > 1
    options: dict[str, Any] = {} if encoded is not None else {"batch": B}
    if inputs.prompt_mask is not None:
        generated = jnp.ones((B, max(room - W, 0)), bool)
        options["target_mask"] = jnp.concatenate([inputs.prompt_mask, generated], axis=1)[:, :room]
    prefill = partial(model.apply, variables, encoded, inputs.source_mask, method="prefill", capacity=room, **options)
    if W == 1:
        return prefill(beams=plan.rows, ancestry=beams)
    # The prompt is read once, in the width of its bucket; what fills the bucket is written over by the reply.
    _, cache = model.apply(variables, task.prompt[:, None, : W - 1], prefill(beams=1), method="decode_step")
    length = task.prompt_length - 1
    return over_caches(lambda one: expand_beams(rewind(one, length), plan.rows, ancestry=beams), cache)


def _reorder_all(cache: Any, parents: jax.Array) -> Any:
    return over_caches(lambda one: reorder(one, parents), cache)
