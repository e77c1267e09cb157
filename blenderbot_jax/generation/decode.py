"""The whole of decoding as one compiled program per model, plan and bucket.

It encodes, computes the cross-attention keys and values once, and decodes in a `lax.while_loop` that ends as soon as
every row has.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from blenderbot_jax.cache import expand_beams, grow, over_caches, reorder, rewind
from blenderbot_jax.generation.beam import beam_search
from blenderbot_jax.generation.inputs import Inputs
from blenderbot_jax.generation.parlai_beam import parlai_search
from blenderbot_jax.generation.plan import Plan
from blenderbot_jax.generation.replay import Recording, record
from blenderbot_jax.generation.sampling import Replies, decode_rows
from blenderbot_jax.generation.speculation import Draft, speculate
from blenderbot_jax.generation.task import Task
from blenderbot_jax.kernels import is_native


@partial(jax.jit, static_argnums=(0, 1))
def decode(
    model: Any,
    plan: Plan,
    params: Any,
    inputs: Inputs,
    task: Task,
    key: jax.Array | None,
    draft: Draft | None = None,
) -> tuple[Replies, Recording]:
    """The whole of decoding; compiled once per model, plan, bucket and model of a draft."""
    variables = {"params": params}
    encoded = _encoded(model, variables, inputs)
    if draft is None:
        replies, rounds = _decoded(model, plan, variables, encoded, inputs, task, key), None
    else:
        replies, rounds = _speculated(model, plan, variables, encoded, inputs, task, key, draft)
    replies = jax.tree.map(lambda leaf: leaf[:, : plan.returned], replies)
    recording = record(model, plan, variables, encoded, inputs, task, replies)
    return replies, dataclasses.replace(recording, rounds=rounds)


def _encoded(model: Any, variables: Any, inputs: Inputs) -> Any:
    """The encoder's output, given or computed; None for a decoder that stands alone."""
    if inputs.encoded is not None or not model.config.is_encoder_decoder:
        return inputs.encoded
    embeds = {} if inputs.source_embeds is None else {"inputs_embeds": inputs.source_embeds}
    return model.apply(variables, inputs.source_ids, inputs.source_mask, method="encode", **embeds)


def _decoded(
    model: Any, plan: Plan, variables: Any, encoded: Any, inputs: Inputs, task: Task, key: jax.Array | None
) -> Replies:
    """Token by token."""
    if is_native(variables["params"]):
        # Native kernels read what is written, however large the cache.
        plan = dataclasses.replace(plan, segments=())
    cache = _begin(model, plan, variables, encoded, inputs, task)
    positions = model.config.max_position_embeddings

    def grow_all(cache: Any, capacity: int) -> Any:
        return over_caches(lambda one: grow(one, min(capacity, positions)), cache)

    def step(tokens: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        logits, cache = _read(model, variables, tokens[:, :, None], cache)
        return logits[:, :, 0], cache

    if plan.mode == "parlai":
        return parlai_search(step, _reorder_all, cache, task, plan, key, grow_all)
    if plan.searches:
        return beam_search(step, _reorder_all, cache, task, plan, key, grow_all)
    return decode_rows(step, cache, task, plan, key, grow_all)


def _speculated(
    model: Any,
    plan: Plan,
    variables: Any,
    encoded: Any,
    inputs: Inputs,
    task: Task,
    key: jax.Array | None,
    draft: Draft,
) -> tuple[Replies, jax.Array]:
    """Some tokens a round; the replies, and the rounds."""
    # A round writes several tokens, so the cache has one segment.
    plan = dataclasses.replace(plan, segments=())
    own = {"params": draft.params}
    prompts = dataclasses.replace(inputs, encoded=None, source_embeds=None)
    return speculate(
        partial(_read, model, variables),
        _begin(model, plan, variables, encoded, inputs, task),
        partial(_read, draft.model, own),
        _begin(draft.model, plan, own, _encoded(draft.model, own, prompts), prompts, task),
        task,
        plan,
        key,
        tokens=draft.tokens,
        room=min(plan.capacity, model.config.max_position_embeddings),
    )


def _read(model: Any, variables: Any, tokens: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
    return model.apply(variables, tokens, cache, method="decode_step")


def _begin(model: Any, plan: Plan, variables: Any, encoded: Any, inputs: Inputs, task: Task) -> Any:
    """A cache that has read all but the last token of what replies begin with."""
    B, _, W = inputs.shape
    # The prompt is read into the first segment.
    first = next(capacity for capacity in (*plan.segments, plan.capacity) if capacity >= min(W, plan.capacity))
    room = min(first, model.config.max_position_embeddings)
    beams = plan.searches and plan.rows > 1
    options: dict[str, Any] = {} if encoded is not None else {"batch": B}
    if inputs.prompt_mask is not None:
        generated = jnp.ones((B, max(room - W, 0)), bool)
        options["target_mask"] = jnp.concatenate([inputs.prompt_mask, generated], axis=1)[:, :room]
    options |= {"capacity": room, "native": is_native(variables["params"])}
    prefill = partial(model.apply, variables, encoded, inputs.source_mask, method="prefill", **options)
    if W == 1:
        return prefill(beams=plan.rows, ancestry=beams)
    # The prompt is read once, in the width of its bucket; what fills the bucket is written over by the reply.
    _, cache = model.apply(variables, task.prompt[:, None, : W - 1], prefill(beams=1), method="decode_step")
    length = task.prompt_length - 1
    return over_caches(lambda one: expand_beams(rewind(one, length), plan.rows, ancestry=beams), cache)


def _reorder_all(cache: Any, parents: jax.Array) -> Any:
    return over_caches(lambda one: reorder(one, parents), cache)
