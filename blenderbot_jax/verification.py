"""Verification: does a checkpoint say the same here and in transformers?

Both load the same folder in float32, are given the same ids, and are compared twice: by their logits along the reply
that transformers gives, and by the replies under the folder's own recipe. Replies that differ count as a tie where
transformers itself, in float64, scores both alike.
"""

import copy
import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blenderbot_jax.checkpoint import CheckpointError, fetch
from blenderbot_jax.checkpoint.folder import INT8_FILE, weights_in
from blenderbot_jax.config import BlenderbotConfig, as_ids
from blenderbot_jax.conversion import model_class, read_config
from blenderbot_jax.generation import GenerationConfig, ParlaiConfig, generate
from blenderbot_jax.model import BlenderbotForCausalLM
from blenderbot_jax.pretrained import Checkpoint

UTTERANCES = (
    "Hello, how are you today?",
    "My friends are cool but they eat too many carbs.",
    "I just got a new puppy, and she chews on everything!",
    "What do you do for a living?",
    "Have you ever been to Iceland? I would love to see the northern lights.",
    "My grandmother is ill, and I do not know what to say to her.",
    "Which is better: tea or coffee?",
    "I ran 12 km this morning; my legs hurt...",
    "Tell me something about the history of the bicycle.",
    "ok",
)
_TIE = 1e-5
_INSTALL = "comparing needs PyTorch and transformers: pip install torch 'transformers>=5.8'"


@dataclass(frozen=True)
class Comparison:
    """One utterance in both libraries."""

    utterance: str
    difference: float
    """max |ours - theirs| over the logits along transformers' reply."""
    largest: float
    """max |theirs| over the same logits."""
    ours: str
    theirs: str
    equal: bool
    """The replies are the same token for token."""
    tie: bool
    """They are not, but transformers in float64 scores both alike."""

    def passes(self, tolerance: float) -> bool:
        """Whether logits agree within `tolerance`, or that part of logits larger than 1, and replies up to ties."""
        return self.difference <= tolerance * max(1.0, self.largest) and (self.equal or self.tie)


def verify_checkpoint(
    name_or_folder: str | os.PathLike[str],
    utterances: Sequence[str] = UTTERANCES,
    *,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
    **hub_options: Any,
) -> list[Comparison]:
    """Compare a checkpoint's logits and replies with those of transformers.

    The 90M model is compared under the decoder scaling of transformers, which differs from what its weights were
    trained with (`docs/differences.md`). A recipe that samples is compared without sampling.

    Args:
        name_or_folder: a folder, a hub name, or "demo"; safetensors or `.bin`, for transformers reads no Flax weights.
        utterances: texts, each answered on its own.
        on_progress: called after each with the number done and the number in all.
        hub_options: `revision`, `cache_dir`, `local_files_only`, `token`.

    Returns:
        One comparison per utterance.

    Raises:
        ImportError: PyTorch or transformers is missing; the message says how to install them.
        CheckpointNotFoundError, CheckpointError, ValueError: the checkpoint cannot be loaded, here or there.

    Example:
        >>> all(one.passes(1e-4) for one in verify_checkpoint(folder, ["Hello there!"]))
        True
    """
    if not utterances:
        raise ValueError("there is nothing to compare: give at least one utterance")
    libraries = _libraries()
    folder = fetch(name_or_folder, **hub_options)
    found = weights_in(folder)
    if found and found[0].name.endswith(".msgpack"):
        raise CheckpointError(
            f"{folder} holds Flax weights, which transformers 5 does not read: convert them first "
            "(blenderbot-jax convert) and verify the result"
        )
    if found and found[0].name == INT8_FILE:
        raise CheckpointError(
            f"{folder} holds weights in 8 bits, which transformers does not read, and which agree with none in more: "
            "verify the checkpoint that they were made from"
        )
    if model_class(folder, read_config(folder)) is BlenderbotForCausalLM:
        raise CheckpointError(f"{folder} holds a decoder alone, which answers nothing: verify the whole model it is of")
    pair = _Pair(folder, *libraries)
    compared = []
    for utterance in utterances:
        compared.append(pair.compare(utterance))
        on_progress(len(compared), len(utterances))
    return compared


def _libraries() -> tuple[Any, Any]:
    """PyTorch and transformers, which this package never needs but to be compared with."""
    try:
        torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    except ImportError as error:
        raise ImportError(f"{error}: {_INSTALL}") from error
    # Its bars would run across the caller's.
    importlib.import_module("transformers.utils.logging").disable_progress_bar()
    return torch, transformers


class _Pair:
    """The same checkpoint in both libraries."""

    def __init__(self, folder: Path, torch: Any, transformers: Any):
        checkpoint = Checkpoint.from_pretrained(folder)
        config = checkpoint.model.config
        self.torch, self.transformers = torch, transformers
        self.tokenizer, self.params = checkpoint.tokenizer, checkpoint.params
        # transformers has not scaled the post-norm decoder's embeddings since 4.53.
        self.model = checkpoint.model.clone(config=config.replace(scale_decoder_embedding=False))
        self.recipe = checkpoint.generation_config
        if isinstance(self.recipe, ParlaiConfig):  # transformers decodes by its own rules alone
            self.recipe = GenerationConfig.recipe()
        if self.recipe.do_sample:
            self.recipe = self.recipe.replace(do_sample=False, temperature=None, top_k=None, top_p=None)
        self.reference = self._load(folder, config)
        self._precise: Any = None

    def _load(self, folder: Path, config: BlenderbotConfig) -> Any:
        family = "Blenderbot" if config.normalize_before else "BlenderbotSmall"
        cls = getattr(self.transformers, f"{family}ForConditionalGeneration")
        model, report = cls.from_pretrained(
            folder, dtype=self.torch.float32, attn_implementation="eager", output_loading_info=True
        )
        if missing := sorted(report["missing_keys"]):
            raise CheckpointError(f"{folder}: transformers does not find {', '.join(missing)} and would make them up")
        # What a generation config leaves open is taken from the model's own, which has a recipe.
        model.generation_config = self.transformers.GenerationConfig()
        return model.eval()

    def compare(self, utterance: str) -> Comparison:
        limit = self.model.config.max_position_embeddings
        ids = np.asarray(self.tokenizer(utterance, truncation=True, max_length=limit)["input_ids"], np.int32)[None]
        if not ids.size:
            raise ValueError(f"{utterance!r} is no text that the tokenizer has ids for: leave it out")
        ours, theirs = self._our_reply(ids), self._their_reply(ids)
        difference, largest = self._logits(ids, theirs)
        tie = ours != theirs and abs(self._score(ids, ours) - self._score(ids, theirs)) < _TIE
        mine, other = (self.tokenizer.decode(reply, skip_special_tokens=True).strip() for reply in (ours, theirs))
        return Comparison(utterance, difference, largest, mine, other, equal=ours == theirs, tie=tie)

    def _our_reply(self, ids: np.ndarray) -> list[int]:
        out = generate(self.model, self.params, jnp.asarray(ids), jnp.ones_like(ids), config=self.recipe)
        return np.asarray(out.sequences)[0, 0, : int(out.lengths[0, 0])].tolist()

    def _their_reply(self, ids: np.ndarray) -> list[int]:
        config = self.model.config
        special = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
        given = {**{name: getattr(config, name) for name in special}, **self.recipe.to_dict()}
        settings = self.transformers.GenerationConfig(**{name: _as_lists(value) for name, value in given.items()})
        tensor = self.torch.from_numpy(ids.astype(np.int64))
        with self.torch.no_grad():
            out = self.reference.generate(
                tensor, attention_mask=self.torch.ones_like(tensor), generation_config=settings
            )
        reply = out[0].tolist()
        # Past the end transformers fills with pad, or under beams with </s>.
        ends = [place for place, token in enumerate(reply) if place and token in as_ids(settings.eos_token_id)]
        return reply[: ends[0] + 1] if ends else reply

    def _logits(self, ids: np.ndarray, reply: list[int]) -> tuple[float, float]:
        """max |ours - theirs| and max |theirs| over the logits along a reply."""
        target = np.asarray([reply[:-1]], np.int32)
        theirs = self._their_logits(self.reference, ids, target)
        # Padded to full width: one program serves every length.
        room = self.model.config.max_position_embeddings
        source, mask, target = (_padded(array, room) for array in (ids, np.ones_like(ids), target))
        ours = np.asarray(_forward(self.model, self.params, source, mask, target))[:, : theirs.shape[1]]
        return float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())

    def _their_logits(self, model: Any, ids: np.ndarray, target: np.ndarray) -> np.ndarray:
        given = {"input_ids": ids, "decoder_input_ids": target}
        tensors = {name: self.torch.from_numpy(array.astype(np.int64)) for name, array in given.items()}
        with self.torch.no_grad():
            return model(**tensors).logits.numpy()

    def _score(self, ids: np.ndarray, reply: list[int]) -> float:
        """The score of a reply by transformers in float64: log-probabilities over length to the recipe's power."""
        if self._precise is None:
            self._precise = copy.deepcopy(self.reference).double()
        logits = self._their_logits(self._precise, ids, np.asarray([reply[:-1]], np.int32))[0]
        logits = logits - logits.max(axis=-1, keepdims=True)
        scores = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        total = scores[np.arange(len(reply) - 1), reply[1:]]
        # A forced last token costs nothing.
        if self.recipe.forced_eos_token_id is not None and len(reply) == self.recipe.max_length:
            total = total[:-1]
        penalty = 1.0 if self.recipe.length_penalty is None else self.recipe.length_penalty
        return float(total.sum()) / (len(reply) - 1) ** penalty


def _as_lists(value: Any) -> Any:
    return [_as_lists(item) for item in value] if isinstance(value, tuple) else value


def _padded(array: np.ndarray, width: int) -> np.ndarray:
    return np.pad(array, ((0, 0), (0, width - array.shape[1])))


@partial(jax.jit, static_argnums=0)
def _forward(model: Any, params: Any, ids: jax.Array, mask: jax.Array, target: jax.Array) -> jax.Array:
    """[B, S] ids and [B, T] target to logits [B, T, V]."""
    return model.apply({"params": params}, ids, mask, target).logits
