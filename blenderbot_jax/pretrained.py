"""Checkpoint: everything a folder holds, loaded together."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from blenderbot_jax.checkpoint import fetch, load_params
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.dialogue import Conversation, EncodedConversation
from blenderbot_jax.generation import GenerationConfig
from blenderbot_jax.model import BlenderbotForConditionalGeneration, Params
from blenderbot_jax.parallel import placing
from blenderbot_jax.quantize import check_quantization
from blenderbot_jax.tokenizer import BlenderbotSmallTokenizer, BlenderbotTokenizer, load_tokenizer, tokenizer_class
from blenderbot_jax.tokenizer.arguments import length_limit
from blenderbot_jax.tokenizer.vocabulary import read_settings


@dataclass(frozen=True)
class Checkpoint:
    """A model, its parameters, its tokenizer and how it is meant to decode.

    The tokenizer of a 90M model reads text in the mode that its files name, and as ParlAI, which trained the weights,
    where they name none. For transformers' ids, take `dataclasses.replace(checkpoint, tokenizer=...)` with a
    `BlenderbotSmallTokenizer` of mode `hf`.

    Example:
        >>> checkpoint = Checkpoint.from_pretrained("demo")
        >>> checkpoint.tokenizer.vocab_size == checkpoint.model.config.vocab_size
        True
    """

    model: BlenderbotForConditionalGeneration
    params: Params
    tokenizer: BlenderbotTokenizer | BlenderbotSmallTokenizer
    generation_config: GenerationConfig

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | os.PathLike[str],
        *,
        dtype: Any = jnp.float32,
        cache_dtype: Any = None,
        quantize: str | None = None,
        mesh: Mesh | None = None,
        **hub_options: Any,
    ) -> "Checkpoint":
        """Load a folder, a hub name, or "demo".

        Args:
            name_or_folder: what to load.
            dtype: of the stored parameters and of the computation.
            cache_dtype: of the keys and values that decoding keeps; None: `dtype`. bfloat16 halves what a cache takes.
            quantize: "int8" puts the kernels into 8 bits as they are read; those of a folder that holds them so stay so
                in any case. `dtype` is then of the other parameters and of the computation.
            mesh: of `parallel.make_mesh`; each device gets its own pieces of the parameters. None: the first device.
            hub_options: `revision`, `cache_dir`, `local_files_only`, `token`.

        Raises:
            CheckpointNotFoundError, CheckpointError, ValueError: as the parts do; among them, a tokenizer with more
                tokens than the model has rows, a quantisation that there is not, and a mesh that divides it unevenly.
        """
        check_quantization(quantize)
        folder = fetch(name_or_folder, **hub_options)
        model, params = _model(folder, dtype, mesh, int8=quantize is not None)
        tokenizer = tokenizer_of(folder, model.config.max_position_embeddings)
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size} rows; "
                "they do not belong together, or the model wants resize_token_embeddings"
            )
        return cls(model.clone(cache_dtype=cache_dtype), params, tokenizer, GenerationConfig.from_pretrained(folder))

    def encode(self, conversation: Conversation) -> EncodedConversation:
        """A conversation as this model reads it: what is too long loses its oldest turns.

        Args:
            conversation: with at least one turn.
        """
        positions = self.model.config.max_position_embeddings
        return conversation.encode(self.tokenizer, min(self.tokenizer.model_max_length or positions, positions))

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Ids as people write: without special tokens, and with no space before punctuation, which the 90M model has.

        Args:
            ids: of one text.
        """
        tokenizer = self.tokenizer
        return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=True).strip()


def _model(
    folder: Path, dtype: Any, mesh: Mesh | None, *, int8: bool
) -> tuple[BlenderbotForConditionalGeneration, Params]:
    if not int8 or not (folder / "config.json").is_file():  # without it, the model says what is wrong
        return BlenderbotForConditionalGeneration.from_pretrained(folder, dtype=dtype, mesh=mesh)
    model = BlenderbotForConditionalGeneration(BlenderbotConfig.from_json(folder / "config.json"), dtype)
    expected = jax.eval_shape(model.init_params, jax.random.key(0))
    return model, load_params(folder, model.config, expected, dtype, int8=True, place=placing(mesh, expected))


def tokenizer_of(folder: Path, positions: int) -> BlenderbotTokenizer | BlenderbotSmallTokenizer:
    """The folder's tokenizer; where its files are silent, with the model's limit and the mode of its training.

    Args:
        folder: of a checkpoint.
        positions: P, of its model.
    """
    said, missing = read_settings(folder, ("mode", "model_max_length")), {}
    # transformers writes "no limit" where it knows none.
    if length_limit(said.get("model_max_length")) is None:
        missing["model_max_length"] = positions
    if tokenizer_class(folder) is BlenderbotSmallTokenizer and "mode" not in said:
        missing["mode"] = "parlai"
    return load_tokenizer(folder, **missing)
