"""LoRA: low-rank changes beside frozen kernels, one for all rows or one for each row of a batch.

A kernel becomes W + scale * (down @ up), with down [in, r] and up [r, out] trained and W left alone (Hu et al. 2021,
arXiv:2106.09685). Adapters are a flat dict from a kernel's path to its pair, apart from the parameters: `attach` puts
them beside the kernels, quantised ones too; `merge` adds them up for good. Files are those of the PEFT library.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from blenderbot_jax.checkpoint import CheckpointError
from blenderbot_jax.checkpoint.names import flatten, source_name, target_of, unflatten
from blenderbot_jax.files import replacing, write_text
from blenderbot_jax.kernels import DType, matmul

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class LoraConfig:
    """Which kernels are adapted, and by how much.

    Args:
        rank: r, the inner width of the change.
        alpha: the change is multiplied by alpha / rank.
        targets: names of linear layers (`q_proj`, `fc1`), or regular expressions that match the end of a kernel's path
            without `/kernel`, such as `decoder/.*/encoder_attn/v_proj`.

    Raises:
        ValueError: a rank below 1, no targets.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        if self.rank < 1:
            raise ValueError(f"the rank of LoRA is at least 1, not {self.rank}")
        if not self.targets:
            raise ValueError('LoRA adapts at least one kind of kernel: name some, such as targets=("q_proj", "v_proj")')

    @property
    def scale(self) -> float:
        """What the change is multiplied by."""
        return self.alpha / self.rank


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Adapter:
    """The change of one kernel; or of one kernel for each row of a batch, with a leading axis B."""

    down: jax.Array
    """[in, r] or [B, in, r]."""
    up: jax.Array
    """[r, out] or [B, r, out]."""

    @property
    def by_row(self) -> bool:
        """Whether every row has its own."""
        return self.down.ndim == 3


Adapters = dict[str, Adapter]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LoraKernel:
    """A kernel, in any form that `matmul` takes, and what is added to it."""

    kernel: Any
    adapter: Adapter
    scale: float = field(metadata={"static": True})

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        down, up = self.adapter.down, self.adapter.up
        if self.adapter.by_row:
            down, up = (_for_rows(x, part) for part in (down, up))
        change = jnp.matmul(_product(x, down), up.astype(x.dtype))
        return matmul(x, self.kernel) + change * jnp.asarray(self.scale, x.dtype)


def _product(x: jax.Array, down: jax.Array) -> jax.Array:
    return jnp.matmul(x, down.astype(x.dtype))


def _for_rows(x: jax.Array, part: jax.Array) -> jax.Array:
    """[B, i, o] as [B, 1, ..., i, o] over x [B', ..., T, i]; rows that only fill up a batch get no change."""
    padded = jnp.pad(part, ((0, x.shape[0] - part.shape[0]), (0, 0), (0, 0)))
    return padded.reshape(len(padded), *(1,) * (x.ndim - 3), *part.shape[1:])


def init_lora(params: Mapping[str, Any], config: LoraConfig, key: jax.Array) -> Adapters:
    """Make adapters that change nothing yet: `down` is drawn, `up` is zero.

    Args:
        params: of the model; kernels may be quantised.
        config: which kernels, and the rank.
        key: a `jax.random.key`.

    Returns:
        A dict from kernel paths to `Adapter`s in float32, in the order of the paths.

    Raises:
        ValueError: a target that matches no kernel.

    Example:
        >>> adapters = init_lora(params, LoraConfig(rank=2, targets=("q_proj",)), jax.random.key(0))
        >>> adapters["model/decoder/layers/0/self_attn/q_proj/kernel"].down.shape[1]
        2
    """
    shapes = {path: _shape(leaf) for path, leaf in sorted(flatten(dict(params)).items()) if path.endswith("/kernel")}
    chosen = _chosen(shapes, config.targets)
    adapters = {}
    for number, path in enumerate(chosen):
        rows, features = shapes[path]
        # As the kernels of PEFT are begun: uniform, of variance 1 / (3 in).
        bound = rows**-0.5
        down = jax.random.uniform(jax.random.fold_in(key, number), (rows, config.rank), jnp.float32, -bound, bound)
        adapters[path] = Adapter(down, jnp.zeros((config.rank, features), jnp.float32))
    return adapters


def attach(params: Mapping[str, Any], adapters: Adapters, config: LoraConfig) -> dict[str, Any]:
    """Parameters whose adapted kernels are `LoraKernel`s; everything else is the same, and shared.

    Args:
        params: of the model.
        adapters: from `init_lora`, `load_lora`, or `by_row`.
        config: for the scale.

    Raises:
        ValueError: adapters for kernels that the model does not have, or of other shapes.

    Example:
        >>> config = LoraConfig(rank=2)
        >>> adapted = attach(params, init_lora(params, config, jax.random.key(0)), config)
        >>> generate(model, adapted, [[300, 2]], config=GenerationConfig(max_length=12)).sequences.shape
        (1, 1, 12)
    """
    leaves = flatten(dict(params))
    _check_fit(leaves, adapters)
    return unflatten({path: _adapted(leaf, adapters.get(path), config.scale) for path, leaf in leaves.items()})


def merge(params: Mapping[str, Any], adapters: Adapters, config: LoraConfig) -> dict[str, Any]:
    """Plain parameters that compute the same, kernel + scale * down @ up, in the dtype of each kernel.

    Args:
        params: of the model, kernels plain.
        adapters: one change for each kernel.
        config: for the scale.

    Raises:
        ValueError: adapters that do not fit, that are many, or kernels that are not plain arrays.
    """
    leaves = flatten(dict(params))
    _check_fit(leaves, adapters)
    for path, adapter in adapters.items():
        if adapter.by_row:
            raise ValueError(f"{path} has adapters for {len(adapter.down)} rows: merge one at a time")
        if not hasattr(leaves[path], "dtype"):
            kind = type(leaves[path]).__name__
            raise ValueError(f"{path} is a {kind}: merge into the parameters as they were loaded, then quantize")
        wide = jnp.asarray(leaves[path]).astype(jnp.float32)
        exact = jnp.matmul(adapter.down, adapter.up, precision=jax.lax.Precision.HIGHEST)
        leaves[path] = (wide + config.scale * exact).astype(leaves[path].dtype)
    return unflatten(leaves)


def by_row(bank: Sequence[Adapters], rows: Sequence[int]) -> Adapters:
    """Adapters for the rows of one batch, each row with the one it names; -1 has none.

    Args:
        bank: several sets of adapters of the same kernels and rank.
        rows: of each of the B prompts, its place in the bank.

    Returns:
        Adapters with a leading axis B, for `attach` and a batch of exactly B prompts.

    Raises:
        ValueError: sets that do not match, or a place that is not there.

    Example:
        >>> config = LoraConfig(rank=2)
        >>> bank = [init_lora(params, config, jax.random.key(seed)) for seed in range(2)]
        >>> mixed = attach(params, by_row(bank, [1, 0, -1]), config)
        >>> generate(model, mixed, [[300, 2]] * 3, config=GenerationConfig(max_length=12)).sequences.shape
        (3, 1, 12)
    """
    if not bank or any(jax.tree.map(jnp.shape, one) != jax.tree.map(jnp.shape, bank[0]) for one in bank[1:]):
        raise ValueError(
            "adapters that share a batch adapt the same kernels with the same rank, and there is at least one"
        )
    if wrong := [row for row in rows if not -1 <= row < len(bank)]:
        raise ValueError(f"there are adapters 0 to {len(bank) - 1}, and -1 for none, not {wrong[0]}")
    places = np.asarray(rows, np.int32)

    def gather(*parts: jax.Array) -> jax.Array:
        return jnp.stack([*parts, jnp.zeros_like(parts[0])])[places]

    return jax.tree.map(gather, *bank)


def save_lora(folder: str | os.PathLike[str], adapters: Adapters, config: LoraConfig, base: str = "") -> None:
    """Write adapters in the layout of the PEFT library, which transformers reads.

    Args:
        folder: made if it is missing; what it held of an adapter is replaced.
        adapters: one change for each kernel.
        config: rank, alpha and targets.
        base: the name of the model that was adapted.
    """
    tensors = {}
    for path, adapter in adapters.items():
        if adapter.by_row:
            raise ValueError("adapters by row belong to one batch: save the sets they were made of")
        name = _PREFIX + source_name(path).removesuffix(".weight")
        tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(np.asarray(adapter.down, np.float32).T)
        tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(np.asarray(adapter.up, np.float32).T)
    said = {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        # Names, or for patterns the full path of each module, which PEFT compares by its end.
        "target_modules": sorted(_modules(adapters, config)),
        "blenderbot_jax_targets": list(config.targets),
    }
    with replacing(Path(folder) / WEIGHTS_FILE) as temporary:
        save_file(tensors, temporary, {"format": "pt"})
    write_text(Path(folder) / CONFIG_FILE, json.dumps(said, indent=2) + "\n")


def load_lora(folder: str | os.PathLike[str], dtype: DType = jnp.float32) -> tuple[Adapters, LoraConfig]:
    """Read adapters that `save_lora`, or PEFT, wrote.

    Args:
        folder: with `adapter_model.safetensors` and `adapter_config.json`.
        dtype: of the adapters.

    Raises:
        CheckpointError: files that are missing or damaged, another kind of adapter, keys that name no kernel.
    """
    try:
        said = json.loads((Path(folder) / CONFIG_FILE).read_text(encoding="utf-8"))
        tensors = load_file(Path(folder) / WEIGHTS_FILE)
        rank, alpha, targets = (
            said["r"],
            said["lora_alpha"],
            said.get("blenderbot_jax_targets") or said["target_modules"],
        )
    except Exception as error:  # whatever a damaged file brings
        raise CheckpointError(f"{folder} holds no readable LoRA adapter: {error}") from error
    unlike = {"peft_type": "LORA", "bias": "none", "use_dora": False, "use_rslora": False, "fan_in_fan_out": False}
    for name, value in unlike.items():
        if said.get(name, value) != value:
            raise CheckpointError(f"{folder}: {name} is {said[name]!r}, and only {value!r} is read here")
    names = (targets,) if isinstance(targets, str) else tuple(targets)
    return _from_tensors(folder, tensors, dtype), LoraConfig(rank, alpha, names)


def _from_tensors(folder: str | os.PathLike[str], tensors: dict[str, np.ndarray], dtype: DType) -> Adapters:
    adapters = {}
    for key in sorted(tensors):
        found = re.fullmatch(re.escape(_PREFIX) + r"(.+)\.lora_([AB])\.weight", key)
        target = target_of(f"{found[1]}.weight") if found else None
        if found is None or target is None or not target.path.endswith("/kernel"):
            raise CheckpointError(f"{folder}: {key} names no kernel of a BlenderBot")
        other = key.replace(".lora_A.", ".lora_B.")
        if found[2] == "A":
            if other not in tensors:
                raise CheckpointError(f"{folder}: {key} is there, {other} is not")
            down, up = (jnp.asarray(tensors[name].T).astype(dtype) for name in (key, other))
            adapters[target.path] = Adapter(down, up)
    if len(tensors) != 2 * len(adapters) or not adapters:
        raise CheckpointError(f"{folder}: every adapted kernel has a lora_A and a lora_B, and there is at least one")
    return adapters


def _modules(adapters: Adapters, config: LoraConfig) -> set[str]:
    plain = all(re.fullmatch(r"\w+", target) for target in config.targets)
    return set(config.targets) if plain else {source_name(path).removesuffix(".weight") for path in adapters}


def _chosen(paths: Mapping[str, Any], targets: Sequence[str]) -> list[str]:
    modules = {path: path.removesuffix("/kernel") for path in paths}
    chosen: set[str] = set()
    for target in targets:
        found = {path for path, module in modules.items() if re.search(rf"(?:^|/)(?:{target})$", module)}
        if not found:
            names = sorted({module.rsplit("/", 1)[-1] for module in modules.values()})
            raise ValueError(f"no kernel is called {target!r}; there are {', '.join(names)}")
        chosen |= found
    return sorted(chosen)


def _adapted(leaf: Any, adapter: Adapter | None, scale: float) -> Any:
    return leaf if adapter is None else LoraKernel(leaf, adapter, scale)


def _check_fit(leaves: Mapping[str, Any], adapters: Adapters) -> None:
    for path, adapter in adapters.items():
        if path not in leaves:
            raise ValueError(f"these adapters change {path}, which the model does not have: they belong to another one")
        wanted = _shape(leaves[path])
        found = adapter.down.shape[-2], adapter.up.shape[-1]
        if wanted != found or adapter.down.shape[-1] != adapter.up.shape[-2]:
            raise ValueError(f"the adapter of {path} is for a kernel {list(found)}, and the model's is {list(wanted)}")


def _shape(kernel: Any) -> tuple[int, int]:
    """[in, out] of a kernel, plain or in 8 bits."""
    if hasattr(kernel, "values"):
        features, rows = kernel.values.shape
        return rows, features
    if not hasattr(kernel, "shape"):
        raise ValueError(f"a {type(kernel).__name__} cannot be adapted: take parameters that are not prepared")
    rows, features = kernel.shape
    return rows, features
