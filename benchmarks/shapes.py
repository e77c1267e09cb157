"""Checkpoints of the published shapes with seeded random weights, in the published folder layout.

Speed depends on shapes, not on values, and the published weights are large; so every program is measured on the same
random ones: float16 on disk, as on the hub, uniform with the standard deviation of the architecture's initialisation.
"""

import json
import math
import re
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import jax
import numpy as np

import blenderbot_jax
from blenderbot_jax import BlenderbotConfig, BlenderbotForConditionalGeneration, GenerationConfig
from blenderbot_jax.checkpoint.names import flatten, source_name
from blenderbot_jax.files import replacing

SIZES: dict[str, Callable[[], BlenderbotConfig]] = {
    "90m": BlenderbotConfig.blenderbot_small_90m,
    "400m": BlenderbotConfig.blenderbot_400m_distill,
    "1b": BlenderbotConfig.blenderbot_1b_distill,
    "3b": BlenderbotConfig.blenderbot_3b,
}
DEMO = "demo"
Shapes = dict[str, tuple[int, ...]]

_CHUNK = 4 * 2**20  # elements written at a time
_TINY_VOCABULARY, _TINY_WIDTH = 512, 256


def config_of(size: str) -> BlenderbotConfig:
    """The architecture a size stands for.

    Args:
        size: a published one (`400m`), `demo`, or decoder layers x width (`6x640`): 2 encoder layers, a feed-forward
            width of 4 D, and a small vocabulary below D = 256, for tests.

    Raises:
        ValueError: another name.

    Example:
        >>> config_of("6x640").decoder_ffn_dim
        2560
    """
    if size == DEMO:
        return BlenderbotConfig.from_pretrained(DEMO)
    if size in SIZES:
        return SIZES[size]()
    found = re.fullmatch(r"(\d+)x(\d+)", size)
    if found is None or int(found[2]) % 32:
        raise ValueError(f"a size is one of {', '.join((*SIZES, DEMO))}, or layers x a multiple of 32, not {size!r}")
    layers, D = int(found[1]), int(found[2])
    base = SIZES["400m"]()
    heads = base.decoder_attention_heads if D % base.decoder_attention_heads == 0 and D >= 640 else D // 16
    return base.replace(
        d_model=D,
        decoder_layers=layers,
        encoder_ffn_dim=4 * D,
        decoder_ffn_dim=4 * D,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        vocab_size=_TINY_VOCABULARY if D < _TINY_WIDTH else base.vocab_size,
    )


def shapes_of(config: BlenderbotConfig) -> Shapes:
    """The tensors of a published file, by their keys in it."""
    params = jax.eval_shape(BlenderbotForConditionalGeneration(config).init_params, jax.random.key(0))
    leaves = flatten(params).items()
    return {source_name(path): x.shape[::-1] if path.endswith("/kernel") else x.shape for path, x in leaves}


@cache
def count_parameters(config: BlenderbotConfig) -> int:
    """How many numbers a checkpoint holds."""
    return sum(math.prod(shape) for shape in shapes_of(config).values())


def write_safetensors(path: Path, shapes: Shapes, spread: float = 0.02) -> None:
    """Random float16 weights, streamed to a safetensors file.

    Args:
        path: where to.
        shapes: by key. Scales of layer norms are 1, biases 0.
        spread: the standard deviation of the others.
    """
    header, end = {}, 0
    for key, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for number, (key, shape) in enumerate(shapes.items()):
            if "norm" in key or key.endswith("bias"):
                file.write(np.full(shape, key.endswith(".weight"), "<f2").tobytes())
            else:
                file.writelines(random_bytes(math.prod(shape), spread, seed=number))


def random_bytes(count: int, spread: float = 1.0, seed: int = 0) -> Iterator[bytes]:
    """Uniform float16 numbers of mean 0 and a standard deviation, in pieces."""
    rng = np.random.default_rng(seed)
    for begin in range(0, count, _CHUNK):
        numbers = rng.random(min(_CHUNK, count - begin), np.float32)
        yield ((numbers - 0.5) * np.float32(math.sqrt(12) * spread)).astype("<f2").tobytes()


def checkpoint_folder(size: str, workspace: Path) -> Path:
    """The folder with a size's weights, written on first use and kept.

    Args:
        size: see `config_of`; `demo` is the bundled checkpoint.
        workspace: where the folders stand.
    """
    if size == DEMO:
        return Path(blenderbot_jax.__file__).parent / DEMO
    folder, config = workspace / size, config_of(size)
    if not (folder / "model.safetensors").exists():
        config.save_json(folder / "config.json")
        GenerationConfig.recipe().save_json(folder / "generation_config.json")
        with replacing(folder / "model.safetensors") as temporary:
            write_safetensors(temporary, shapes_of(config), config.init_std)
    return folder
