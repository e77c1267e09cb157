"""Decoding the same prompts in transformers and here, and telling a tie from a mistake."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from transformers.generation import logits_process as rules

from blenderbot_jax.generation import GenerateOutput, GenerationConfig
from tests.parity.reference import as_torch

TIE = 1e-5


@dataclass(frozen=True)
class Decoded:
    """What transformers found: [B, R, length] tokens and, under beams, [B, R] scores."""

    sequences: np.ndarray
    scores: np.ndarray | None


def decode_in_transformers(
    model: Any, ids: np.ndarray, mask: np.ndarray, config: GenerationConfig, pad_token_id: int = 0
) -> Decoded:
    """Run transformers' generate under exactly these settings."""
    # Fields left None would be taken from the model's own generation config, which carries a recipe.
    own = {"pad_token_id": pad_token_id, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    model.generation_config = transformers.GenerationConfig(**own)
    given = {name: _as_list(value) for name, value in config.to_dict().items()}
    out = model.generate(
        **as_torch(input_ids=ids, attention_mask=mask),
        generation_config=transformers.GenerationConfig(**{**own, **given}),
        return_dict_in_generate=True,
        output_scores=True,
    )
    R = config.num_return_sequences or 1
    scores = getattr(out, "sequences_scores", None)
    return Decoded(
        out.sequences.numpy().reshape(len(ids), R, -1), None if scores is None else scores.numpy().reshape(-1, R)
    )


def mismatches(
    model: Any, ids: np.ndarray, mask: np.ndarray, config: GenerationConfig, ours: GenerateOutput, theirs: Decoded
) -> list[str]:
    """Every reply that differs and is no tie, described."""
    found = []
    lengths, sequences = np.asarray(ours.lengths), np.asarray(ours.sequences)
    for b, r in np.ndindex(*lengths.shape):
        mine = sequences[b, r, : lengths[b, r]].tolist()
        reference = theirs.sequences[b, r].tolist()
        # Past the end transformers fills with pad, or under beams with </s>.
        if reference[: len(mine)] == mine and set(reference[len(mine) :]) <= {0, 2}:
            continue
        end = reference.index(2, 1) + 1 if 2 in reference[1:] else len(reference)
        scores = [rescored(model, ids[b : b + 1], mask[b : b + 1], reply, config) for reply in (mine, reference[:end])]
        if abs(scores[0] - scores[1]) > TIE:
            found.append(f"prompt {b}, reply {r}: {mine} ({scores[0]}) for {reference} ({scores[1]}) under {config}")
    return found


def rescored(model: Any, ids: np.ndarray, mask: np.ndarray, reply: list[int], config: GenerationConfig) -> float:
    """The score transformers gives a reply, in float64, its own rules applied at each step."""
    precise = type(model)(model.config).double().eval()
    precise.load_state_dict({name: tensor.double() for name, tensor in model.state_dict().items()})
    tokens = torch.tensor([reply])
    processors = _processors(config, torch.from_numpy(ids.astype(np.int64)))
    with torch.no_grad():
        logits = precise(**as_torch(input_ids=ids, attention_mask=mask), decoder_input_ids=tokens[:, :-1]).logits
        total = 0.0
        for i in range(1, len(reply)):
            scores = torch.log_softmax(logits[:, i - 1], dim=-1)
            for processor in processors:
                scores = processor(tokens[:, :i], scores)
            total += float(scores[0, reply[i]])
    return total / (len(reply) - 1) ** (config.length_penalty if config.length_penalty is not None else 1.0)


def _processors(config: GenerationConfig, ids: torch.Tensor) -> list[Any]:
    made: list[Any] = []
    if config.repetition_penalty:
        made.append(rules.RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.no_repeat_ngram_size:
        made.append(rules.NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size))
    if config.encoder_no_repeat_ngram_size:
        made.append(rules.EncoderNoRepeatNGramLogitsProcessor(config.encoder_no_repeat_ngram_size, ids))
    if config.bad_words_ids:
        made.append(rules.NoBadWordsLogitsProcessor(_as_list(config.bad_words_ids), 2))
    if config.min_length:
        made.append(rules.MinLengthLogitsProcessor(config.min_length, 2))
    if config.forced_eos_token_id:
        made.append(rules.ForcedEOSTokenLogitsProcessor(config.max_length or 21, config.forced_eos_token_id))
    return made


def _as_list(value: Any) -> Any:
    return [_as_list(item) for item in value] if isinstance(value, tuple) else value
