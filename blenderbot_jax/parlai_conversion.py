"""Conversion to ParlAI: any checkpoint that can be read, in the form in which BlenderBot was trained.

Weights go from file to file one tensor at a time, as in `conversion`, whose other direction this is.
"""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from blenderbot_jax import parlai
from blenderbot_jax.checkpoint import fetch
from blenderbot_jax.checkpoint.load import Leaf, find_leaves
from blenderbot_jax.checkpoint.names import BIAS, target_of
from blenderbot_jax.checkpoint.parlai_file import START, STATE, sinusoids, tensor_names
from blenderbot_jax.checkpoint.tensor_writer import Pending
from blenderbot_jax.checkpoint.torch_writer import write_torch
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.conversion import (
    Conversion,
    check_dtype,
    counting,
    expected_tree,
    model_class,
    model_name,
    parameter_count,
    pending_leaves,
    read_config,
    refuse_source,
)
from blenderbot_jax.files import replacing, write_text
from blenderbot_jax.generation import GenerationConfig
from blenderbot_jax.model import BlenderbotForConditionalGeneration
from blenderbot_jax.tokenizer import BlenderbotSmallTokenizer, load_tokenizer

_POSITIONS = tuple(f"model/{side}/embed_positions/embedding" for side in ("encoder", "decoder"))


def convert_to_parlai(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
    **hub_options: Any,
) -> Conversion:
    """Write a checkpoint in ParlAI's form: `model`, `model.opt`, `model.dict` and the files of its tokenizer.

    The weights are what `torch.save` writes, in the zip container, without a state of training. Where the source holds
    ParlAI's own options and dictionary, as `convert_checkpoint` keeps them, and they still say the same as its other
    files, they are taken as they are.

    Args:
        source: as for `convert_checkpoint`; a model with head and with a tokenizer.
        target: the folder to write.
        dtype, on_progress, hub_options: as for `convert_checkpoint`.

    Returns:
        What was written.

    Raises:
        CheckpointNotFoundError, CheckpointError: as for `convert_checkpoint`.
        ValueError: the target is the source, or holds a config.json, beside which ParlAI's files would be passed over;
            or the model has something that ParlAI's form cannot say, which is named.

    Example:
        >>> done = convert_to_parlai("demo", "demo-in-parlai")
        >>> sorted(path.name for path in done.folder.iterdir())[:3]
        ['model', 'model.dict', 'model.dict-merges.txt']
    """
    check_dtype(dtype)
    folder, target = fetch(source, **hub_options), Path(target)
    refuse_source(source, folder, target)
    if (target / "config.json").exists():
        raise ValueError(f"{target} holds a config.json, which is read before ParlAI's files: choose another folder")
    config = read_config(folder)
    cls = model_class(folder, config)
    if cls is not BlenderbotForConditionalGeneration:
        raise ValueError(
            f"{folder} holds a {model_name(cls, config)}, ParlAI's form is of a model with head and encoder"
        )
    expected = expected_tree(cls, config)
    leaves = find_leaves(folder, config, expected)
    state = _state(folder, config, pending_leaves(leaves, dtype, int8=False), leaves)
    files = _files(folder, config, leaves)
    total = sum(tensor.nbytes for tensor in state.values())
    names = tensor_names(config)
    aliases = {key: "embeddings.weight" for key, named in names.items() if named.alias}
    with replacing(target / parlai.MODEL) as temporary:
        advance = counting(on_progress, total)
        write_torch(temporary, state, part=STATE, aliases=aliases, on_progress=advance)
        for suffix, text in files.items():
            write_text(target / f"{parlai.MODEL}{suffix}", text)
    return Conversion(target, model_name(cls, config), parameter_count(expected), total, int8=False, tokenizer=True)


def _state(
    folder: Path, config: BlenderbotConfig, pending: Mapping[str, Pending], leaves: Mapping[str, Leaf]
) -> dict[str, Pending]:
    """The state dict by ParlAI's names, each tensor read when its turn comes."""
    if any(leaf.scales for leaf in leaves.values()):
        raise ValueError(f"{folder} holds kernels in 8 bits, which ParlAI has no form for: convert the original")
    if np.any(leaves[BIAS].read()):
        raise ValueError(f"{folder}: final_logits_bias is not zero, and ParlAI's model has no such tensor")
    start = np.array([config.decoder_start_token_id])
    state = {START: Pending(start.shape, start.dtype, lambda: start)}
    for key, named in tensor_names(config).items():
        target = target_of(named.published)
        if target is not None and not named.alias:
            tensor = pending[target.path]
            state[key] = tensor.transposed if target.transposed else tensor
    return state


def _files(folder: Path, config: BlenderbotConfig, leaves: Mapping[str, Leaf]) -> dict[str, str]:
    """The small files of a ParlAI checkpoint, by what their names have behind that of the weights."""
    with tempfile.TemporaryDirectory() as place:
        tokenizer = load_tokenizer(folder)
        tokenizer.save_pretrained(place)
        merges = tuple(Path(place, "merges.txt").read_text(encoding="utf-8").split("\n")[1:-1])
    if tokenizer.vocab_size != config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size} rows; in ParlAI "
            "the dictionary alone says how many there are"
        )
    vocab, generation = tokenizer.get_vocab(), GenerationConfig.from_pretrained(folder).to_dict()
    delimiter = getattr(tokenizer, "delimiter", None)
    kept = _kept(folder, config, generation, vocab, merges, delimiter)
    if kept is not None:
        return kept
    kind = parlai.SUBWORDS if isinstance(tokenizer, BlenderbotSmallTokenizer) else parlai.BYTE_LEVEL
    tables = [leaves[path].read() for path in _POSITIONS]
    computed = [np.array_equal(table, sinusoids(*table.shape).astype(table.dtype)) for table in tables]
    options = parlai.options_of(config.to_dict(), generation, kind, sinusoidal=all(computed), delimiter=delimiter)
    return {".opt": json.dumps(options, indent=4) + "\n", **parlai.dictionary_files(vocab, merges, kind)}


def _kept(
    folder: Path,
    config: BlenderbotConfig,
    generation: Mapping[str, Any],
    vocab: Mapping[str, int],
    merges: tuple[str, ...],
    delimiter: str | None,
) -> dict[str, str] | None:
    """The folder's own files of ParlAI's form, if it has them and they say what its other files say."""
    model = folder / parlai.MODEL
    paths = {suffix: parlai.beside(model, suffix) for suffix in parlai.SUFFIXES}
    if not paths[".opt"].is_file() or not paths[".dict"].is_file():
        return None
    options = parlai.read_options(paths[".opt"])
    said, found = parlai.architecture(options, len(vocab)), config.to_dict()
    vocabulary = parlai.read_vocabulary(model, options)
    same = all(found[name] == value for name, value in said.items() if name != "architectures")
    tokens = tuple(sorted(vocab, key=vocab.__getitem__))
    told = (vocabulary.tokens, vocabulary.merges, dict(vocabulary.settings).get("delimiter"))
    if not same or parlai.decoding(options) != generation or told != (tokens, merges, delimiter):
        return None
    return {suffix: path.read_bytes().decode() for suffix, path in paths.items() if path.is_file()}
