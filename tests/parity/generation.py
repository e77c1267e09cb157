"""Decoding the same prompts in transformers and here, with the same noise, and telling a tie from a mistake."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from blenderbot_jax.generation import GenerateOutput, GenerationConfig
from tests.parity.reference import as_torch

TIE = 1e-5
_OWN = {"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}


@dataclass(frozen=True)
class Decoded:
    """What transformers found: [B, R, length] tokens and, under beams, [B, R] scores."""

    sequences: np.ndarray
    scores: np.ndarray | None


def decode_in_transformers(
    model: Any,
    ids: np.ndarray,
    mask: np.ndarray,
    config: GenerationConfig,
    pad_token_id: int = 0,
    decoder_input_ids: np.ndarray | None = None,
    **others: Any,
) -> Decoded:
    """Run transformers' generate under exactly these settings.

    Args:
        model: transformers'.
        ids, mask: [B, S].
        config: ours.
        pad_token_id: of the model.
        decoder_input_ids: what replies begin with.
        others: further arguments of transformers' generate.
    """
    # Fields left None would be taken from the model's own generation config, which carries a recipe.
    model.generation_config = transformers.GenerationConfig(**_OWN, pad_token_id=pad_token_id)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = model.generate(
            **as_torch(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_input_ids),
            generation_config=reference_config(config, pad_token_id),
            **others,
        )
    R = config.num_return_sequences or 1
    scores = getattr(out, "sequences_scores", None)
    return Decoded(
        out.sequences.numpy().reshape(len(ids), R, -1), None if scores is None else scores.numpy().reshape(-1, R)
    )


def reference_config(config: GenerationConfig, pad_token_id: int = 0) -> transformers.GenerationConfig:
    """Our settings as transformers' own, with scores asked for."""
    given = {name: as_list(value) for name, value in config.to_dict().items()}
    own = {**_OWN, "pad_token_id": pad_token_id, "return_dict_in_generate": True, "output_scores": True}
    return transformers.GenerationConfig(**{**own, **given})


def mismatches(
    model: Any,
    ids: np.ndarray,
    mask: np.ndarray,
    config: GenerationConfig,
    ours: GenerateOutput,
    theirs: Decoded,
    prompt_length: int = 1,
    key: jax.Array | None = None,
) -> list[str]:
    """Every reply that differs and is no tie, described.

    Under a search it is one if both replies, rescored in float64, are less than 1e-5 apart; a drawn token, if a change
    of the cut-offs or of the scores by 1e-5 makes transformers draw the other.
    """
    found = []
    lengths, sequences = np.asarray(ours.lengths), np.asarray(ours.sequences)
    for b, r in np.ndindex(*lengths.shape):
        mine = sequences[b, r, : lengths[b, r]].tolist()
        reference = theirs.sequences[b, r].tolist()
        # Past the end transformers fills with pad, or under beams with </s>.
        if reference[: len(mine)] == mine and set(reference[len(mine) :]) <= {0, 2}:
            continue
        end = reference.index(2, prompt_length) + 1 if 2 in reference[prompt_length:] else len(reference)
        replies = (mine, reference[:end])
        row = ids[b : b + 1], mask[b : b + 1]
        if config.do_sample:
            tied = key is not None and _on_an_edge(model, *row, replies, config, prompt_length, _stream(key, b, r))
        else:
            scores = [rescored(model, *row, reply, config, prompt_length) for reply in replies]
            tied = abs(scores[0] - scores[1]) <= TIE
        if not tied:
            found.append(f"prompt {b}, reply {r}: {replies[0]} for {replies[1]} under {config.to_dict()}")
    return found


def rescored(
    model: Any, ids: np.ndarray, mask: np.ndarray, reply: list[int], config: GenerationConfig, prompt_length: int = 1
) -> float:
    """The score transformers gives a reply, in float64, its own rules applied at each step."""
    tokens = torch.tensor([reply])
    processors = _processors(model, ids, config, prompt_length)
    logits = _precise_logits(model, ids, mask, tokens[:, :-1])
    total = 0.0
    for i in range(prompt_length, len(reply)):
        scores = processors(tokens[:, :i], torch.log_softmax(logits[:, i - 1], dim=-1))
        total += float(scores[0, reply[i]])
    penalty = config.length_penalty if config.length_penalty is not None else 1.0
    return total / (len(reply) - prompt_length) ** penalty


def _on_an_edge(
    model: Any,
    ids: np.ndarray,
    mask: np.ndarray,
    replies: tuple[list[int], list[int]],
    config: GenerationConfig,
    prompt_length: int,
    stream: jax.Array,
) -> bool:
    """Whether the first token in which two drawn replies differ hangs on less than 1e-5 of a score or a cut-off."""
    if config.num_beams not in (None, 1):
        return False
    place = next(i for i, (mine, other) in enumerate(zip(*replies, strict=False)) if mine != other)
    tokens = torch.tensor([replies[0][:place]])
    logits = _precise_logits(model, ids, mask, tokens)[:, -1]
    noise = np.asarray(jax.random.gumbel(jax.random.fold_in(stream, place), logits.shape[1:], jnp.float32))
    drawn: set[int] = set()
    for nudge in (-TIE, 0.0, TIE):
        cutoffs = ("top_p", "typical_p", "min_p", "top_h", "epsilon_cutoff", "eta_cutoff")
        nudged = {name: value + nudge for name in cutoffs if (value := getattr(config, name))}
        scores = _processors(model, ids, config.replace(**nudged), prompt_length)(tokens, logits.clone())
        totals = scores[0].numpy() + noise
        drawn |= set(np.flatnonzero(totals >= totals.max() - TIE).tolist())
    return {reply[place] for reply in replies} <= drawn


def _precise_logits(model: Any, ids: np.ndarray, mask: np.ndarray, tokens: torch.Tensor) -> torch.Tensor:
    """What a transformers model says in float64 after each token."""
    precise = type(model)(model.config).double().eval()
    precise.load_state_dict({name: tensor.double() for name, tensor in model.state_dict().items()})
    with torch.no_grad():
        return precise(**as_torch(input_ids=ids, attention_mask=mask), decoder_input_ids=tokens).logits


def _processors(model: Any, ids: np.ndarray, config: GenerationConfig, prompt_length: int) -> Any:
    """transformers' own rules for a configuration, in its order."""
    reference = reference_config(config)
    reference._eos_token_tensor = torch.tensor(reference.eos_token_id).reshape(-1)
    return model._get_logits_processor(
        generation_config=reference,
        input_ids_seq_length=prompt_length,
        encoder_input_ids=torch.from_numpy(ids.astype(np.int64)),
        prefix_allowed_tokens_fn=None,
        logits_processor=[],
        device="cpu",
        model_kwargs={},
    )


@contextmanager
def shared_noise(key: jax.Array, B: int, config: GenerationConfig, prompt_length: int = 1) -> Iterator[None]:
    """Let transformers draw with our noise: `torch.multinomial` is answered from the key as `generate` would.

    Drawing without replacement in the order of probability plus Gumbel noise is what torch.multinomial promises; with
    the same noise on both sides, sampled replies can be compared token for token.
    """
    K, R = config.num_beams or 1, config.num_return_sequences or 1
    length = prompt_length

    def draw(probabilities: torch.Tensor, num_samples: int) -> torch.Tensor:
        nonlocal length
        with np.errstate(divide="ignore"):
            scores = np.log(probabilities.numpy())
        noise = _beam_noise(key, length, B, K, scores.shape[1] // K) if K > 1 else _row_noise(key, length, B, R, scores)
        length += 1
        order = np.argsort(-(scores + noise.reshape(scores.shape)), axis=1, kind="stable")
        return torch.from_numpy(order[:, :num_samples].copy())

    original = torch.multinomial
    torch.multinomial = draw
    try:
        yield
    finally:
        torch.multinomial = original


def _stream(key: jax.Array, b: Any, r: Any) -> jax.Array:
    """The key that row r of prompt b draws with."""
    return jax.random.fold_in(jax.random.fold_in(key, b), r)


def _beam_noise(key: jax.Array, length: int, B: int, K: int, V: int) -> np.ndarray:
    def one(row: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(jax.random.fold_in(key, row), length), (K, V), jnp.float32)

    return np.asarray(jax.vmap(one)(jnp.arange(B)))


def _row_noise(key: jax.Array, length: int, B: int, R: int, scores: np.ndarray) -> np.ndarray:
    def one(b: jax.Array, r: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(_stream(key, b, r), length), scores.shape[1:], jnp.float32)

    return np.asarray(jax.vmap(jax.vmap(one, (None, 0)), (0, None))(jnp.arange(B), jnp.arange(R)))


def as_list(value: Any) -> Any:
    """Tuples as lists, at any depth."""
    return [as_list(item) for item in value] if isinstance(value, tuple) else value
