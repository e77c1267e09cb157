"""Checkpoint: everything a folder holds, loaded together."""

import os
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from blenderbot_jax.checkpoint import fetch
from blenderbot_jax.generation import GenerationConfig
from blenderbot_jax.model import BlenderbotForConditionalGeneration, Params
from blenderbot_jax.tokenizer import BlenderbotTokenizer


@dataclass(frozen=True)
class Checkpoint:
    """A model, its parameters, its tokenizer and how it is meant to decode.

    Example:
        >>> checkpoint = Checkpoint.from_pretrained("demo")
        >>> checkpoint.tokenizer.vocab_size == checkpoint.model.config.vocab_size
        True
    """

    model: BlenderbotForConditionalGeneration
    params: Params
    tokenizer: BlenderbotTokenizer
    generation_config: GenerationConfig

    @classmethod
    def from_pretrained(
        cls, name_or_folder: str | os.PathLike[str], *, dtype: Any = jnp.float32, **hub_options: Any
    ) -> "Checkpoint":
        """Load a folder, a hub name, or "demo".

        Args:
            name_or_folder: what to load.
            dtype: of the stored parameters and of the computation.
            hub_options: `revision`, `cache_dir`, `local_files_only`, `token`.

        Raises:
            CheckpointNotFoundError, CheckpointError, ValueError: as the parts do; among them, a tokenizer with more
                tokens than the model has rows.
        """
        folder = fetch(name_or_folder, **hub_options)
        model, params = BlenderbotForConditionalGeneration.from_pretrained(folder, dtype=dtype)
        if not model.config.normalize_before:
            raise ValueError(
                f"{folder} holds a BlenderbotSmall model (90M), whose tokenizer this version lacks: load the weights "
                "alone with BlenderbotForConditionalGeneration.from_pretrained"
            )
        tokenizer = BlenderbotTokenizer.from_pretrained(folder)
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size} rows; "
                "they do not belong together, or the model wants resize_token_embeddings"
            )
        return cls(model, params, tokenizer, GenerationConfig.from_pretrained(folder))
