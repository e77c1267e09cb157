"""A decoding program as a folder that runs without this package, on the platforms that it was lowered for."""

import dataclasses
import importlib.util
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from blenderbot_jax import run_exported
from blenderbot_jax.checkpoint.tensor_file import SAFETENSORS_DTYPES
from blenderbot_jax.checkpoint.tensor_writer import Pending, write_safetensors
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.dialogue import DialogueLayout
from blenderbot_jax.files import make_public
from blenderbot_jax.generation import GenerationConfig, ParlaiConfig
from blenderbot_jax.generation.decode import decode
from blenderbot_jax.generation.generate import GenerativeModel
from blenderbot_jax.generation.plan import Settings
from blenderbot_jax.generation.request import Request, request
from blenderbot_jax.generation.task import Task
from blenderbot_jax.kernels import is_native
from blenderbot_jax.tokenizer import BlenderbotSmallTokenizer, BlenderbotTokenizer

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_FORMAT = "blenderbot-jax decoding program 1"


@dataclass(frozen=True)
class ExportedProgram:
    """What was written."""

    folder: Path
    batch: int
    """B: prompts the program takes at most."""
    source_width: int
    """S: tokens a prompt has at most."""
    platforms: tuple[str, ...]
    program_bytes: int
    weight_bytes: int


def export_decode(
    folder: str | PathLike[str],
    model: GenerativeModel,
    params: Any,
    tokenizer: BlenderbotTokenizer | BlenderbotSmallTokenizer,
    config: GenerationConfig,
    *,
    batch: int = 1,
    source_width: int | None = None,
    platforms: Sequence[str] | None = None,
) -> ExportedProgram:
    """Write a folder that decodes on its own: jax, flatbuffers, numpy, safetensors and tokenizers are all it needs.

    The folder holds `decode.bin` (the program, as `jax.export` serialises it), `weights.safetensors`, the tokenizer's
    files, `manifest.json` (sizes, and the settings as numbers that each call may replace), and `run.py`. Its replies
    are those of `generate` under the same configuration. All is written to a temporary folder first.

    A program can be read by the jax that wrote it and by later ones for six months at least
    (https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees).

    Args:
        folder: made if it is missing; files of the same names are replaced.
        model: one with an encoder.
        params: its parameters, in any form that `generate` takes but the native one of `prepare`.
        tokenizer: the model's. That of a 90M model is saved too, but `run.py` then takes ids alone.
        config: how to decode; its plan is compiled in, its numbers are data.
        batch: B, prompts decoded together; rounded up to a bucket as `generate` does.
        source_width: S, tokens of the longest prompt; rounded up likewise. None takes the model's positions.
        platforms: of "cpu", "cuda", "rocm" and "tpu", any that the program is to run on; none need be here. None takes
            the one that is in use.

    Returns:
        Where it is, and its sizes.

    Raises:
        ValueError: a causal model, a size no program can have, a platform that is not one, a configuration that asks
            for what steps saw, parameters in a dtype that safetensors has no name for, or prepared for native kernels.

    Example:
        >>> config = GenerationConfig(max_length=12)
        >>> program = export_decode("greedy", model, params, tokenizer, config, source_width=16)
        >>> program.batch, program.source_width
        (1, 16)
    """
    targets = check_export(platforms)
    if is_native(params):
        raise ValueError(
            "the parameters are prepared for kernels of this machine, which a program in a folder cannot have: export "
            "those that were loaded, or prepare(..., natively=False)"
        )
    example = _request(model.config, config, batch, source_width)
    weights = _named(params)
    program = jax.export.export(jax.jit(_program(model, params, example)), platforms=targets)(
        {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in weights.items()},
        example.inputs.source_ids,
        example.inputs.source_mask,
        example.inputs.valid,
        _settings(example),
        *([np.zeros(2, np.uint32)] if config.do_sample else []),
    )
    serialized = program.serialize()
    with _staged(Path(folder)) as staging:
        (staging / "decode.bin").write_bytes(serialized)
        write_safetensors(staging / "weights.safetensors", weights)
        tokenizer.save_pretrained(staging)
        shutil.copyfile(run_exported.__file__, staging / "run.py")
        text = json.dumps(_manifest(model.config, config, tokenizer, example, targets), indent=1)
        (staging / "manifest.json").write_text(text + "\n", encoding="utf-8")
    rows, width, _ = example.inputs.shape
    nbytes = sum(leaf.nbytes for leaf in weights.values())
    return ExportedProgram(Path(folder), rows, width, targets, len(serialized), nbytes)


def check_export(platforms: Sequence[str] | None) -> tuple[str, ...]:
    """Refuse before any work what could not be written down; the platforms, each once.

    Args:
        platforms: as `export_decode` takes them.

    Raises:
        ImportError: flatbuffers is missing.
        ValueError: a platform that is not one.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ImportError(
            "programs are written with flatbuffers, which is not installed: pip install 'blenderbot-jax[export]'"
        )
    if platforms is None:
        # Where JAX says "gpu", a program is lowered for one kind or the other.
        names = {"gpu": "rocm" if "rocm" in jax.devices()[0].client.platform_version else "cuda"}
        return (names.get(jax.default_backend(), jax.default_backend()),)
    if isinstance(platforms, str) or not platforms or not set(platforms) <= set(PLATFORMS):
        raise ValueError(
            f"platforms are some of {', '.join(PLATFORMS)}, as in platforms=['cpu', 'tpu'], not {platforms!r}"
        )
    return tuple(dict.fromkeys(platforms))


def _request(model: BlenderbotConfig, config: GenerationConfig, batch: int, source_width: int | None) -> Request:
    """A batch of the program's own shapes; which ids it holds makes no difference."""
    if not model.is_encoder_decoder:
        raise ValueError("a model with an encoder can be exported; of a causal one, whose prompt is its reply's, none")
    if isinstance(config, ParlaiConfig) and config.block_full_context:
        raise ValueError(
            "an exported program knows no conversation beyond its prompt: config.replace(block_full_context=None)"
        )
    width = model.max_position_embeddings if source_width is None else source_width
    for name, size, limit in (("batch", batch, math.inf), ("source_width", width, model.max_position_embeddings)):
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= limit:
            most = "" if limit == math.inf else f" up to the model's positions, {limit}"
            raise ValueError(f"{name} is an integer from 1{most}, not {size!r}")
    example = request(model, config, {"input_ids": np.zeros((batch, width), np.int32)})
    if example.plan.outputs:
        asked = ", ".join(f"output_{name}=False" for name in example.plan.outputs)
        raise ValueError(f"an exported program gives back replies alone: config.replace({asked})")
    return example


def _named(params: Any) -> dict[str, Pending]:
    """Every array of the parameters by its path."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name, dtype = jax.tree_util.keystr(path, simple=True, separator="/"), np.dtype(leaf.dtype)
        if dtype not in SAFETENSORS_DTYPES.values():
            raise ValueError(f"{name} is {dtype}, which weights.safetensors cannot hold: give it another dtype")
        leaves[name] = Pending(tuple(leaf.shape), dtype, partial(np.asarray, leaf))
    return leaves


def _program(model: GenerativeModel, params: Any, example: Request) -> Callable[..., dict[str, jax.Array]]:
    """Decoding as a function of plain dictionaries and arrays, which `jax.export` can write down."""
    tree = jax.tree.structure(params)

    def run(weights: Any, ids: Any, mask: Any, valid: Any, settings: Any, key_data: Any = None) -> dict[str, jax.Array]:
        # A dictionary comes in the order of its names; the tree has an order of its own.
        leaves = [weights[name] for name in names]
        inputs = dataclasses.replace(example.inputs, source_ids=ids, source_mask=mask, valid=valid)
        task = Task(inputs.prompt, ids, valid, Settings(**settings))
        key = None if key_data is None else jax.random.wrap_key_data(key_data, impl="threefry2x32")
        replies, _ = decode(model, example.plan, jax.tree.unflatten(tree, leaves), inputs, task, key)
        return {field.name: getattr(replies, field.name) for field in dataclasses.fields(replies)}

    names = tuple(_named(params))
    return run


def _settings(example: Request) -> dict[str, np.ndarray]:
    settings = example.task.settings
    return {field.name: np.asarray(getattr(settings, field.name)) for field in dataclasses.fields(settings)}


def _manifest(
    model: BlenderbotConfig,
    config: GenerationConfig,
    tokenizer: BlenderbotTokenizer | BlenderbotSmallTokenizer,
    example: Request,
    platforms: tuple[str, ...],
) -> dict[str, Any]:
    rows, width, _ = example.inputs.shape
    # The 90M model's tokenizer is no pipeline of the tokenizers library.
    layout = None if isinstance(tokenizer, BlenderbotSmallTokenizer) else DialogueLayout.of(tokenizer)
    return {
        "format": _FORMAT,
        "jax": jax.__version__,
        "platforms": platforms,
        "batch": rows,
        "source_width": width,
        "capacity": example.plan.capacity,
        "returned": example.plan.returned,
        "samples": bool(config.do_sample),
        "vocab_size": model.vocab_size,
        "separator": None if layout is None else layout.separator,
        "end": None if layout is None else layout.end,
        "settings": {
            name: {"dtype": str(array.dtype), "shape": array.shape, "values": array.ravel().tolist()}
            for name, array in _settings(example).items()
        },
    }


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files are moved to `folder` if the block ends well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Inside the folder where there is one: files move only within a file system.
    parent = folder if folder.is_dir() else folder.parent
    staging = Path(tempfile.mkdtemp(dir=parent, prefix=f".{folder.name}."))
    try:
        yield staging
        folder.mkdir(exist_ok=True)
        for path in sorted(staging.iterdir()):
            make_public(path)
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(staging)
