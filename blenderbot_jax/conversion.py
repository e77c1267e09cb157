"""Conversion: any checkpoint that can be read, into a folder of safetensors that we and transformers load.

Weights go from file to file one tensor at a time, so a model larger than the memory can be converted.
"""

import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from blenderbot_jax import parlai
from blenderbot_jax.checkpoint import CheckpointError, fetch
from blenderbot_jax.checkpoint.folder import tensor_entries
from blenderbot_jax.checkpoint.load import Leaf, find_leaves, pack
from blenderbot_jax.checkpoint.names import BIAS, HEAD, SCALE, SHARED, flatten, lacks_head, target_of
from blenderbot_jax.checkpoint.save import SavesFolder, save_leaves
from blenderbot_jax.checkpoint.tensor_writer import Pending
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.generation import GenerationConfig
from blenderbot_jax.model import BlenderbotForCausalLM, BlenderbotForConditionalGeneration, BlenderbotModel
from blenderbot_jax.quantize import check_quantization
from blenderbot_jax.tokenizer import load_tokenizer

_DTYPES = ("float32", "bfloat16", "float16")
# Copied as they are: writing them anew could only lose what the other library understands and this one does not.
_TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
# ParlAI's own words for the same, kept beside them so that the way back ends where it began.
_PARLAI_FILES = tuple(f"{parlai.MODEL}{suffix}" for suffix in parlai.SUFFIXES)


@dataclass(frozen=True)
class Conversion:
    """What a conversion has written."""

    folder: Path
    model: str
    """The class of the model, such as "BlenderbotForConditionalGeneration"."""
    parameters: int
    """Without final_logits_bias, which nothing trains."""
    nbytes: int
    """Of the weights."""
    int8: bool
    """Whether the kernels are in 8 bits."""
    tokenizer: bool
    """Whether the source had a tokenizer to take along."""


def convert_checkpoint(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    quantize: str | None = None,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
    **hub_options: Any,
) -> Conversion:
    """Write a checkpoint anew: config.json, model.safetensors, and the files of tokenizer and generation.

    Kernels that are in 8 bits stay so, and the weights then go to `model_int8.safetensors`, which loads here alone.
    Of a checkpoint of ParlAI, options and dictionary go along too, for the way back.

    Args:
        source: a folder, a hub name, or "demo"; safetensors, `.bin` of any version of PyTorch, or Flax weights, whole
            or in shards; or a checkpoint of ParlAI, as a folder, its file of weights, or a `.tgz`.
        target: the folder to write; files of the same names in it are replaced once all are complete.
        dtype: "float32", "bfloat16" or "float16"; None keeps every tensor as it is stored.
        quantize: "int8" puts the kernels into 8 bits, as `blenderbot_jax.quantize` does; `dtype` is then of the rest.
        on_progress: called after each tensor with the bytes written and the bytes in all.
        hub_options: `revision`, `cache_dir`, `local_files_only`, `token`.

    Returns:
        What was written.

    Raises:
        CheckpointNotFoundError: there is no such source.
        CheckpointError: the weights are damaged or do not fit their config.json; every misfit is named.
        ValueError: the target is the source, or holds weights that would be read before the new ones; the dtype is none
            of the three; there is no such quantisation.

    Example:
        >>> done = convert_checkpoint("demo", "demo-in-half", dtype="bfloat16")
        >>> done.model, done.tokenizer
        ('BlenderbotForConditionalGeneration', True)
    """
    check_dtype(dtype)
    check_quantization(quantize)
    folder, target = fetch(source, **hub_options), Path(target)
    refuse_source(source, folder, target)
    config = read_config(folder)
    cls = model_class(folder, config)
    root = "model/" if cls is BlenderbotModel else ""
    expected = expected_tree(cls, config)
    leaves = pending_leaves(find_leaves(folder, config, expected, root=root), dtype, quantize is not None)
    total = sum(leaf.nbytes for leaf in leaves.values())
    tokenizer = _Copied(folder, _TOKENIZER_FILES)
    save_leaves(
        target,
        config,
        {path.removeprefix(root): leaf for path, leaf in leaves.items()},
        _Settings(folder),
        _Together(load_tokenizer(folder) if _is_of_parlai(folder) else tokenizer, _Copied(folder, _PARLAI_FILES)),
        counting(on_progress, total),
    )
    int8 = any(leaf.dtype == np.int8 for leaf in leaves.values())
    parameters = parameter_count(expected)
    return Conversion(target, model_name(cls, config), parameters, total, int8, bool(tokenizer.files))


def read_config(folder: Path) -> BlenderbotConfig:
    """A folder's configuration.

    Raises:
        CheckpointError: there is none.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} holds no config.json, so it is no checkpoint folder")
    return BlenderbotConfig.from_json(folder / "config.json")


def model_class(folder: Path, config: BlenderbotConfig) -> type[Any]:
    """Which of the models a folder's weights are: what they hold weighs more than the name in config.json."""
    targets = [target_of(key, tied=config.tie_word_embeddings) for key in tensor_entries(folder)]
    paths = {target.path for target in targets if target}
    if not any(path.startswith("model/encoder/layers/") for path in paths):
        return BlenderbotForCausalLM
    said = config.extra.get("architectures")
    headless = isinstance(said, list) and len(said) == 1 and str(said[0]).endswith("Model")
    return BlenderbotModel if headless and not paths & {BIAS, HEAD} else BlenderbotForConditionalGeneration


def expected_tree(cls: type[Any], config: BlenderbotConfig) -> dict[str, Any]:
    """The shapes of a model's parameters."""
    return jax.eval_shape(cls(config).init_params, jax.random.key(0))


def parameter_count(tree: Mapping[str, Any]) -> int:
    """The numbers in a tree's leaves, final_logits_bias aside: it is a buffer in PyTorch, and nothing trains it."""
    leaves = flatten(dict(tree))
    return sum(math.prod(leaf.shape) for path, leaf in leaves.items() if path != BIAS)


def model_name(cls: type[Any], config: BlenderbotConfig) -> str:
    """The name that transformers gives the class for this architecture."""
    return cls.__name__ if config.normalize_before else cls.__name__.replace("Blenderbot", "BlenderbotSmall")


def pending_leaves(leaves: Mapping[str, Leaf], dtype: str | None, int8: bool) -> dict[str, Pending]:
    """The leaves as tensors to write, each read when its turn comes."""
    [*stored] = (leaf.entry.dtype for leaf in leaves.values() if leaf.entry and not leaf.scales)
    made: dict[str, Pending] = {}
    for path, leaf in leaves.items():
        # What the file lacks is zeros, in the dtype of the rest.
        own = leaf.entry.dtype if leaf.entry else stored[0]
        if leaf.entry and leaf.scales:
            made[path] = Pending(leaf.shape[::-1], own, leaf.entry.read)
            made[path + SCALE] = Pending(leaf.scales.shape, leaf.scales.dtype, leaf.scales.read)
        elif int8 and path.endswith("/kernel"):
            made |= _quantised(path, leaf.shape, leaf.read)
        else:
            made[path] = Pending(leaf.shape, own if dtype is None else np.dtype(dtype), leaf.read)
    if int8 and lacks_head(leaves):
        table = leaves[SHARED]
        made |= _quantised(HEAD, table.shape[::-1], lambda: table.read().T)
    return made


def _quantised(path: str, shape: tuple[int, ...], read: Callable[[], np.ndarray]) -> dict[str, Pending]:
    """A kernel [in, out] in 8 bits, read once for its scales and once for its values: they lie apart in the file."""

    def scales() -> np.ndarray:
        found = np.asarray(pack(read()).scales)
        if not np.isfinite(found).all():
            raise CheckpointError(f"{path} holds {found[~np.isfinite(found)][0]}: what is not finite has no int8 form")
        return found

    return {
        path: Pending(shape[::-1], np.dtype(np.int8), lambda: np.asarray(pack(read()).values)),
        path + SCALE: Pending(shape[1:], np.dtype(np.float32), scales),
    }


def _is_of_parlai(folder: Path) -> bool:
    """Whether a folder in the published layout was made for a checkpoint of ParlAI, whose weights it holds."""
    return (folder / parlai.MODEL).is_file() and parlai.beside(folder / parlai.MODEL, ".opt").is_file()


def check_dtype(dtype: str | None) -> None:
    """Refuse a dtype that is none of the three, nor None for what is stored."""
    if dtype is not None and dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, or None to keep what is stored; not {dtype!r}")


def refuse_source(source: str | os.PathLike[str], folder: Path, target: Path) -> None:
    """Refuse to write a checkpoint over itself."""
    own = Path(source)
    places = {folder.resolve(), own.resolve(), own.parent.resolve() if own.is_file() else folder.resolve()}
    if target.exists() and target.resolve() in places:
        raise ValueError(f"{target} is the source itself: choose another folder")


def counting(on_progress: Callable[[int, int], object], total: int) -> Callable[[int], None]:
    """What reports the bytes done so far, given those of each tensor."""
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        on_progress(done, total)

    return advance


class _Together:
    """Several things that write files into one folder."""

    def __init__(self, *parts: SavesFolder) -> None:
        self._parts = parts

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        for part in self._parts:
            part.save_pretrained(folder)


class _Copied:
    """Those of a folder's files that it has, to be copied into another."""

    def __init__(self, folder: Path, names: tuple[str, ...]):
        self.files = [folder / name for name in names if (folder / name).is_file()]

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        for path in self.files:
            shutil.copyfile(path, Path(folder) / path.name)


class _Settings:
    """The decoding settings of a folder: the file as it is, or one made of the older keys in config.json."""

    def __init__(self, folder: Path):
        self._folder = folder

    def save_json(self, path: str | os.PathLike[str]) -> None:
        stored = self._folder / "generation_config.json"
        if stored.is_file():
            shutil.copyfile(stored, path)
        else:
            GenerationConfig.from_pretrained(self._folder).save_json(path)
