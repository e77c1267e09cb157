"""generate_many: prompts of any lengths, any number of them, in batches of a few shapes."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blenderbot_jax.checks import check_ids, check_positions
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.generation.config import GenerationConfig
from blenderbot_jax.generation.decode import decode
from blenderbot_jax.generation.fields import OUTPUTS
from blenderbot_jax.generation.generate import GenerativeModel
from blenderbot_jax.generation.inputs import Inputs, check_context, check_key, context_rows, seq2seq_inputs, to_bucket
from blenderbot_jax.generation.packing import Batch, Costs, Limits, covering, pack
from blenderbot_jax.generation.plan import LENGTH_BUCKETS, Plan, compile_config, pad_token
from blenderbot_jax.generation.sampling import Replies
from blenderbot_jax.generation.speculation import Draft, check_draft
from blenderbot_jax.generation.task import Task
from blenderbot_jax.parallel import gathered, mesh_of, spread

# What the keys and values of a batch may take of an accelerator's memory, and where its size is not known.
_SHARE, _DEFAULT_BYTES = 4, 2**31
# Prompts, and on a CPU the beams of all of them, from which on a step takes time in proportion: more of them are not
# faster, and wait for longer replies.
_ACCELERATOR_ROWS, _CPU_ROWS = 64, 80
# Replies of the published models take 17 to 31 tokens.
_USUAL_STEPS = 24


@dataclass(frozen=True)
class Packing:
    """How prompts are put together.

    Replies do not depend on it beyond rounding: the same prompt, key and place in the list give the same reply.

    Args:
        batch_size: the most prompts decoded together, rounded down to a power of two up to 64, then a multiple of 64;
            None takes 64 on an accelerator, and on a CPU as many as have 80 beams or samples between them.
        widths: what prompts are padded to, ascending; `choose_buckets` finds those that fit some lengths best. Past the
            last the library's own go on.
        memory: bytes that the keys and values of a batch may take; None takes a quarter of the accelerator's memory, or
            2 GiB where its size is not known.

    Raises:
        ValueError: a batch size below 1, widths that are not ascending.
    """

    batch_size: int | None = None
    widths: tuple[int, ...] = LENGTH_BUCKETS
    memory: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            Limits(self.batch_size)
        object.__setattr__(self, "widths", tuple(self.widths))
        covering(self.widths, self.widths[-1] if self.widths else 0)

    def most(self, plan: Plan) -> int:
        """The most prompts that are decoded together under a plan."""
        if self.batch_size is not None:
            return self.batch_size
        return _ACCELERATOR_ROWS if jax.default_backend() != "cpu" else max(_CPU_ROWS // plan.rows, 1)

    def batches(
        self, prompts: Mapping[int, Sequence[int]], model: GenerativeModel, plan: Plan, draft: Draft | None = None
    ) -> list[Batch]:
        """The batches for some prompts.

        Args:
            prompts: ids by place in the caller's list.
            model: whose keys and values take the memory.
            plan: how replies are decoded.
            draft: whose keys and values take memory too.
        """
        memory = _memory() if self.memory is None else self.memory
        place = _place_bytes(model) + (0 if draft is None else _place_bytes(draft.model))
        limits = Limits(self.most(plan), memory // place, plan.rows * plan.capacity)
        widths = covering(self.widths, model.config.max_position_embeddings)
        lengths = {place: len(prompt) for place, prompt in prompts.items()}
        return pack(lengths, widths, limits, Costs(place=1 / _reply_cost(model, plan)))


def generate_many(
    model: GenerativeModel,
    params: Any,
    prompts: Sequence[Sequence[int]] | Mapping[int, Sequence[int]],
    *,
    config: GenerationConfig,
    key: jax.Array | None = None,
    packing: Packing | None = None,
    draft: Draft | None = None,
    contexts: Sequence[Sequence[int]] | Mapping[int, Sequence[int]] | None = None,
) -> Iterator[tuple[tuple[int, ...], Replies]]:
    """Decode replies to prompts of different lengths, batch by batch, longest prompts first.

    Every reply is the one that its prompt gets alone: the rules that look at prompts never see what pads them, and the
    prompt at place i draws from stream i of the key, `jax.random.fold_in(key, i)`, wherever it is packed.

    Args:
        model: an encoder-decoder, `BlenderbotForConditionalGeneration`.
        params: its parameters.
        prompts: ids of each prompt, without padding; a mapping gives the places of some that belong to a longer list.
        config: how to decode; what it asks to record (`output_scores` and the like) is not recorded.
        key: a `jax.random.key`; needed for sampling, refused otherwise.
        packing: how prompts are put together; `Packing()` if None.
        draft: as `generate` takes it; with one, small batches are the faster ones, as in `Packing(batch_size=1)`.
        contexts: one for each prompt, at its place: what `generate` takes as rows of `context_ids`.

    Yields:
        Places in `prompts`, and their replies in that order: numpy arrays `tokens` [B, R, max_length], `lengths` and
        `scores` [B, R], `log_probs` [B, R, max_length], as `GenerateOutput` says.

    Raises:
        ValueError: a prompt that is empty, longer than the model's positions or outside its vocabulary, with its place;
            a key too many or too few, a draft that does not fit. All of it before anything is decoded.
        TypeError: a model without encoder.

    Example:
        >>> prompts = [tokenizer.encode(text) for text in ("Hi!", "Do you like music?")]
        >>> for places, replies in generate_many(model, params, prompts, config=GenerationConfig(max_length=8)):
        ...     print(places, replies.tokens.shape)
        (1, 0) (2, 1, 8)
    """
    if not model.config.is_encoder_decoder:
        raise TypeError("generate_many answers prompts that an encoder reads; a causal model has generate")
    check_key(config, key)
    check_context(config, contexts)
    if draft is not None:
        check_draft(draft, model.config, config)
    by_place = prompts if isinstance(prompts, Mapping) else dict(enumerate(prompts))
    _check_prompts(by_place, model.config)
    if contexts is not None:
        _check_contexts(contexts, by_place, model.config)
    config = config.replace(**{f"output_{name}": False for name in OUTPUTS})
    # Widths and lengths are each row's own, so the plan is the same for every batch.
    plan, _ = compile_config(config, model.config, 1)
    batches = (packing or Packing()).batches(by_place, model, plan, draft)
    decoded = partial(_decoded, model, params, by_place, config=config, key=key, draft=draft, contexts=contexts)
    return ((batch.places, decoded(batch)) for batch in batches)


def _decoded(
    model: GenerativeModel,
    params: Any,
    prompts: Mapping[int, Sequence[int]],
    batch: Batch,
    config: GenerationConfig,
    key: jax.Array | None,
    draft: Draft | None,
    contexts: Sequence[Sequence[int]] | Mapping[int, Sequence[int]] | None,
) -> Replies:
    """Replies to the prompts of a batch, as numpy arrays, in its order."""
    plan, settings = compile_config(config, model.config, batch.width)
    inputs = to_bucket(
        _inputs(prompts, batch, config, model.config), batch.width, plan.capacity, (batch.width,), plan.rows
    )
    looked_at, lengths = inputs.source_ids, inputs.source_mask.sum(axis=1, dtype=np.int32)
    if contexts is not None:
        own = [contexts[place] for place in batch.places]
        looked_at, lengths = context_rows(own, len(own), *inputs.shape[:2], model.config.vocab_size)
    task = Task(inputs.prompt, looked_at, inputs.valid, dataclasses.replace(settings, source_width=lengths))
    keys = None if key is None else _streams(key, batch)
    inputs, task, keys = spread(mesh_of(params), (inputs, task, keys), rows=inputs.shape[0])
    replies, _ = jax.device_get(gathered(decode(model, plan, params, inputs, task, keys, draft)))
    B, length = len(batch.places), int(settings.max_length[0])
    return Replies(
        replies.tokens[:B, :, :length], replies.lengths[:B], replies.scores[:B], replies.log_probs[:B, :, :length]
    )


def _inputs(
    prompts: Mapping[int, Sequence[int]], batch: Batch, config: GenerationConfig, model: BlenderbotConfig
) -> Inputs:
    """The prompts of a batch as arrays as wide as the longest of them."""
    lengths = np.array([len(prompts[place]) for place in batch.places])
    mask = np.arange(lengths.max()) < lengths[:, None]
    pad = pad_token(config, model)
    ids = np.full(mask.shape, pad, np.int32)
    ids[mask] = np.concatenate([prompts[place] for place in batch.places])
    start = model.decoder_start_token_id if config.decoder_start_token_id is None else config.decoder_start_token_id
    return seq2seq_inputs(model, ids, mask, None, None, None, pad=pad, start=start)


def _streams(key: jax.Array, batch: Batch) -> jax.Array:
    """[B] keys, each of a prompt's place in the caller's list; rows that fill the batch draw what nobody reads."""
    places = np.zeros(batch.rows, np.int32)
    places[: len(batch.places)] = batch.places
    return jax.vmap(jax.random.fold_in, (None, 0))(key, places)


def _check_prompts(prompts: Mapping[int, Sequence[int]], model: BlenderbotConfig) -> None:
    for place, prompt in prompts.items():
        check_ids(f"prompts[{place}]", np.asarray(prompt)[None], model.vocab_size)
        check_positions(f"prompts[{place}]", len(prompt), model.max_position_embeddings)


def _check_contexts(
    contexts: Sequence[Sequence[int]] | Mapping[int, Sequence[int]], places: Iterable[int], model: BlenderbotConfig
) -> None:
    for place in places:
        if not (place in contexts if isinstance(contexts, Mapping) else place < len(contexts)):
            raise ValueError(f"prompts[{place}] has no context: pass one for each prompt, or none at all")
        check_ids(f"contexts[{place}]", np.asarray(contexts[place])[None], model.vocab_size)


def _place_bytes(model: Any) -> int:
    """Bytes of the keys and values of one place in all layers of the decoder, or of an ensemble's decoders."""
    members = getattr(model, "members", (model,))
    return sum(2 * one.config.decoder_layers * one.config.d_model * _itemsize(one) for one in members)


def _itemsize(model: Any) -> int:
    return jnp.dtype(getattr(model, "cache_dtype", None) or model.dtype).itemsize


def _reply_cost(model: Any, plan: Plan) -> float:
    """Products that a reply takes, over those of one place of its prompt."""
    config = getattr(model, "members", (model,))[0].config
    D, L = config.d_model, config.decoder_layers
    encoder_layer = 4 * D * D + 2 * D * config.encoder_ffn_dim
    decoder_layer = 6 * D * D + 2 * D * config.decoder_ffn_dim
    # Encoded once, and made keys and values of every decoder layer.
    place = config.encoder_layers * encoder_layer + 2 * L * D * D
    token = L * decoder_layer + D * config.vocab_size
    return plan.rows * min(plan.capacity, _USUAL_STEPS) * token / place


def _memory() -> int:
    """Bytes for the keys and values of a batch on this machine's first device."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return _DEFAULT_BYTES if limit is None else limit // _SHARE
