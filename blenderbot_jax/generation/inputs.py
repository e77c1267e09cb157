"""From what a caller passes to the arrays of a bucket: checks, start tokens, masks, padding; in numpy where it can be.

Widths and batches are rounded up to a few sizes before anything is compiled, so that one program serves many prompts.
Places that only fill a bucket are masked, and no rule ever counts them. Traced arrays keep their shape.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blenderbot_jax.checks import check_embeds, check_ids, check_mask, check_one_of, check_positions, concrete
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.generation.config import GenerationConfig, ParlaiConfig
from blenderbot_jax.generation.plan import LENGTH_BUCKETS, round_up
from blenderbot_jax.generation.settings import power_of_two
from blenderbot_jax.outputs import as_encoder_output

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
_PROMPT_BUCKETS = (1, 8, *LENGTH_BUCKETS)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Inputs:
    """A batch of prompts; encoder and decoder each have a part that may be absent."""

    source_ids: Any
    """[B, S] int32, what the encoder reads; None where its embeddings or its output are given."""
    source_embeds: Any
    """[B, S, D], or None."""
    encoded: Any
    """[B, S, D] the encoder's output, or None."""
    source_mask: Any
    """[B, S] bool; None where there is nothing to encode."""
    prompt: Any
    """[B, W] int32, what replies begin with, a start token at least."""
    prompt_mask: Any
    """[B, W] bool, False at pads; None where there are none."""
    valid: Any
    """[B] bool; False for rows that only fill the bucket."""

    @property
    def source_width(self) -> int | None:
        """S where ids are known, so that rules may look at them."""
        return None if self.source_ids is None else self.source_ids.shape[1]

    @property
    def shape(self) -> tuple[int, int, int]:
        """B, S (0 without an encoder) and W."""
        return (*self.prompt.shape[:1], 0 if self.source_mask is None else self.source_mask.shape[1],
                self.prompt.shape[1])  # fmt: skip


def check_key(config: GenerationConfig, key: jax.Array | None) -> None:
    """Refuse to draw without a key, and a key where nothing is drawn."""
    if config.do_sample and key is None:
        raise ValueError("do_sample=True draws at random: pass key=jax.random.key(seed)")
    if key is not None and not config.do_sample:
        raise ValueError("a key was given, but nothing is drawn: set do_sample=True, or leave the key out")


def check_context(config: GenerationConfig, context: Any) -> None:
    """Refuse to bar what a whole conversation said without the conversation."""
    if isinstance(config, ParlaiConfig) and config.block_full_context and context is None:
        raise ValueError(
            "block_full_context=True looks at whole conversations, and their ids are not known here: pass context_ids, "
            "or config.replace(block_full_context=None) to look at what the model reads"
        )


def seq2seq_inputs(
    config: BlenderbotConfig,
    input_ids: Any,
    attention_mask: Any,
    decoder_input_ids: Any,
    encoder_outputs: Any,
    inputs_embeds: Any,
    *,
    pad: int,
    start: int,
) -> Inputs:
    """Check a batch for encoder and decoder.

    Args:
        config: the architecture.
        input_ids: [B, S], or None if one of the two that follow says what the encoder reads. Beside them it is what the
            rules look at.
        attention_mask: [B, S]; None keeps what is not `pad`, and everything where there are no ids.
        decoder_input_ids: [B, P] that replies begin with; the start token is put in front where no row has it.
        encoder_outputs: [B, S, D], a record or tuple that begins with it, or None.
        inputs_embeds: [B, S, D], or None.
        pad, start: ids.
    """
    encoded = as_encoder_output(encoder_outputs).last_hidden_state
    if encoded is None:
        check_one_of({"input_ids": input_ids, "inputs_embeds": inputs_embeds}, "or encoder_outputs, what `encode` gave")
    else:
        check_one_of({"encoder_outputs": encoded, "inputs_embeds": inputs_embeds})
        check_embeds("encoder_outputs", encoded, config.d_model)
    if inputs_embeds is not None:
        check_embeds("inputs_embeds", inputs_embeds, config.d_model)
        check_positions("inputs_embeds", inputs_embeds.shape[1], config.max_position_embeddings)
    source = next(given for given in (encoded, inputs_embeds, input_ids) if given is not None)
    if input_ids is not None:
        check_ids("input_ids", input_ids, config.vocab_size)
        check_positions("input_ids", input_ids.shape[1], config.max_position_embeddings)
        if input_ids.shape != source.shape[:2]:
            raise ValueError(
                f"input_ids {list(input_ids.shape)} must be those of encoder_outputs, {list(source.shape[:2])}"
            )
    B, S = source.shape[:2]
    if attention_mask is None:
        attention_mask = np.ones((B, S), bool) if input_ids is None else input_ids != pad
    check_mask("attention_mask", attention_mask, "input_ids" if input_ids is not None else "the source", (B, S))
    prompt = np.full((B, 1), start, np.int32)
    if decoder_input_ids is not None:
        prompt = _with_start(decoder_input_ids, config, B, start)
    return Inputs(input_ids, inputs_embeds, encoded, attention_mask, prompt, None, np.ones(B, bool))


def causal_inputs(
    config: BlenderbotConfig,
    input_ids: Any,
    attention_mask: Any,
    encoder_outputs: Any,
    encoder_attention_mask: Any,
    *,
    pad: int,
) -> Inputs:
    """Check a batch for a decoder that stands alone, or over given encoder states.

    Args:
        config: the architecture.
        input_ids: [B, P] that replies continue; shorter rows are padded on the left.
        attention_mask: [B, P]; None keeps what is not `pad`.
        encoder_outputs: [B, S, D], a record or tuple that begins with it, or None.
        encoder_attention_mask: [B, S]; None keeps all.
        pad: id.
    """
    if input_ids is None:
        raise ValueError("input_ids is required: a language model continues a prompt, if only bos_token_id")
    check_ids("input_ids", input_ids, config.vocab_size)
    B, P = input_ids.shape
    check_positions("input_ids", P, config.max_position_embeddings)
    mask = input_ids != pad if attention_mask is None else attention_mask
    check_mask("attention_mask", mask, "input_ids", (B, P))
    values = concrete(mask)
    if values is not None and not values[:, -1].all():
        raise ValueError(
            f"row {int(np.argmin(values[:, -1] != 0))} of the prompts ends in padding, and a reply would follow it: "
            'pad shorter prompts on the left (padding_side="left")'
        )
    encoded = as_encoder_output(encoder_outputs).last_hidden_state
    if encoded is None:
        if encoder_attention_mask is not None:
            raise ValueError("encoder_attention_mask is a mask over encoder_outputs, and there are none")
        source_mask = None
    else:
        check_embeds("encoder_outputs", encoded, config.d_model)
        if encoded.shape[0] != B:
            raise ValueError(f"encoder_outputs are for a batch of {encoded.shape[0]}, input_ids for one of {B}")
        source_mask = np.ones(encoded.shape[:2], bool) if encoder_attention_mask is None else encoder_attention_mask
        check_mask("encoder_attention_mask", source_mask, "encoder_outputs", encoded.shape[:2])
    full = values is not None and values.all()
    return Inputs(None, None, encoded, source_mask, input_ids, None if full else mask, np.ones(B, bool))


def to_bucket(
    inputs: Inputs,
    max_positions: int,
    capacity: int,
    widths: tuple[int, ...] = LENGTH_BUCKETS,
    beams: int = 1,
) -> Inputs:
    """Pad a batch to a bucket's rows and widths; arrays that are traced stay as they are.

    Args:
        inputs: checked.
        max_positions: of the model, the widest source.
        capacity: C, the widest prompt.
        widths: what sources are padded to, ascending.
        beams: K, rows decoded per prompt.
    """
    if any(concrete(leaf) is None for leaf in jax.tree.leaves(inputs)):
        return jax.tree.map(jnp.asarray, _typed(inputs))
    B, S, W = inputs.shape
    rows = batch_bucket(B)
    if rows * beams == 1 and jax.default_backend() == "gpu":
        # XLA turns products with a single row into reductions that leave most of a GPU idle.
        rows = 2
    source = rows, min(round_up(S, widths), max_positions)
    prompt = rows, min(round_up(W, _PROMPT_BUCKETS), capacity)
    typed = _typed(inputs)
    padded = Inputs(
        source_ids=_padded(typed.source_ids, source),
        source_embeds=_padded(typed.source_embeds, source),
        encoded=_padded(typed.encoded, source),
        source_mask=_padded(typed.source_mask, source),
        prompt=_padded(typed.prompt, prompt),
        # What fills the prompt's width is written over by the reply, which is kept.
        prompt_mask=_padded(typed.prompt_mask, prompt, fill=True),
        valid=_padded(typed.valid, (rows,)),
    )
    # A row that may look nowhere is legal but wasteful to reason about: fillers look at their first place.
    if padded.source_mask is not None:
        padded.source_mask[B:, 0] = True
    return padded


def context_rows(context: Any, B: int, rows: int, width: int, vocab_size: int) -> tuple[Any, Any]:
    """What the rules look at in place of the prompts, padded to a bucket: ids [rows, S'] and how many count [rows].

    Args:
        context: B rows of ids, of any lengths; all of an array's count.
        B: the caller's prompts.
        rows: of the bucket.
        width: S of the bucket, which is kept where it is enough; otherwise a power of two.
        vocab_size: V.
    """
    if len(context) != B:
        raise ValueError(f"context_ids are for a batch of {len(context)}, the prompts for one of {B}")
    if isinstance(context, jax.Array) and concrete(context) is None:
        check_ids("context_ids", context, vocab_size)
        padded = jnp.pad(context.astype(jnp.int32), ((0, rows - B), (0, 0)))
        return padded, jnp.full(rows, context.shape[1], jnp.int32)
    for b, row in enumerate(context):
        check_ids(f"context_ids[{b}]", np.asarray(row)[None], vocab_size)
    lengths = np.zeros(rows, np.int32)
    lengths[:B] = [len(row) for row in context]
    longest = int(lengths.max())
    ids = np.zeros((rows, width if longest <= width else power_of_two(longest)), np.int32)
    ids[np.arange(ids.shape[1]) < lengths[:, None]] = np.concatenate([np.asarray(row) for row in context])
    return ids, lengths


def batch_bucket(rows: int) -> int:
    """The number of rows a batch is padded to: a power of two up to 64, then a multiple of 64."""
    return rows + -rows % 64 if rows > BATCH_BUCKETS[-1] else round_up(rows, BATCH_BUCKETS)


def _with_start(ids: Any, config: BlenderbotConfig, B: int, start: int) -> Any:
    check_ids("decoder_input_ids", ids, config.vocab_size)
    if ids.shape[0] != B:
        raise ValueError(f"decoder_input_ids are for a batch of {ids.shape[0]}, the prompts for one of {B}")
    check_positions("decoder_input_ids", ids.shape[1], config.max_position_embeddings)
    values = concrete(ids)
    if values is None:
        return ids
    begun = values[:, 0] == start
    if begun.any() and not begun.all():
        raise ValueError(
            f"rows of decoder_input_ids begin with the start token {start} or none of them does; here row "
            f"{int(np.argmax(begun))} does and row {int(np.argmin(begun))} does not"
        )
    return values if begun.all() else np.concatenate([np.full((B, 1), start, values.dtype), values], axis=1)


def _typed(inputs: Inputs) -> Inputs:
    """The same with int32 ids and boolean masks."""
    types = {"source_ids": jnp.int32, "prompt": jnp.int32, "source_mask": bool, "prompt_mask": bool, "valid": bool}
    typed = {name: _astype(getattr(inputs, name), dtype) for name, dtype in types.items()}
    return Inputs(source_embeds=inputs.source_embeds, encoded=inputs.encoded, **typed)


def _astype(array: Any, dtype: Any) -> Any:
    return None if array is None else (jnp if concrete(array) is None else np).asarray(array).astype(dtype)


def _padded(array: Any, sizes: tuple[int, ...], fill: int = 0) -> Any:
    if array is None:
        return None
    array = np.asarray(array)
    padded = np.full(sizes + array.shape[len(sizes) :], fill, array.dtype)
    padded[tuple(slice(size) for size in array.shape[: len(sizes)])] = array
    return padded
