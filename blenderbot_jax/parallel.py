"""Several devices: one mesh, and one table that says how every parameter is split over it.

The mesh has three axes. Batches are split over `data` and `fsdp`; parameters over `fsdp` and `tensor`, and there is a
whole copy of them at each place along `data`. Programs need not know: `jit` compiles them for where their arguments
lie, so `model.apply`, `jax.grad` and `generate` take placed parameters as they take others, and give the same results
up to rounding.

The split over `tensor` is that of Megatron-LM (Shoeybi et al. 2019, arXiv:1909.08053): a sublayer's first kernels by
columns, its last one by rows, so that it needs one sum over devices.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from blenderbot_jax.processes import initialize  # noqa: F401, offered here beside the mesh it comes before

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))
"""How the rows of a batch are split."""


@dataclass(frozen=True)
class Rule:
    """Parameters whose path ends in `pattern` are split as the first of `specs` whose parts come out even says."""

    pattern: str
    specs: tuple[P, ...]


_FIRST, _LAST = r"(q_proj|k_proj|v_proj|fc1)", r"(out_proj|fc2)"
# A kernel beside an adapter stands one level lower.
_KERNEL = r"kernel(/kernel)?"

# Kernels are [in, out], their values in 8 bits [out, in]. P() is a whole copy on every device.
TABLE = (
    # What Adafactor keeps of a kernel: a row and a column.
    Rule(r"v_(row|col)/.*", (P(),)),
    Rule(rf"{_FIRST}/{_KERNEL}", (P("fsdp", "tensor"),)),
    Rule(rf"{_FIRST}/{_KERNEL}/values", (P("tensor", "fsdp"),)),
    Rule(rf"{_FIRST}/({_KERNEL}/scales|bias)", (P("tensor"),)),
    Rule(rf"{_LAST}/{_KERNEL}", (P("tensor", "fsdp"),)),
    Rule(rf"{_LAST}/{_KERNEL}/values", (P("fsdp", "tensor"),)),
    Rule(rf"{_LAST}/{_KERNEL}/scales", (P("fsdp"),)),
    Rule(rf"{_LAST}/bias", (P(),)),
    # A vocabulary that does not come out even, as 8008 over 16 devices, leaves the split to the width.
    Rule(r"(shared|embed_tokens)/embedding", (P("tensor", "fsdp"), P(None, ("fsdp", "tensor")))),
    Rule(rf"lm_head/{_KERNEL}", (P("fsdp", "tensor"), P(("fsdp", "tensor"), None))),
    Rule(rf"lm_head/{_KERNEL}/values", (P("tensor", "fsdp"), P(None, ("fsdp", "tensor")))),
    Rule(rf"lm_head/{_KERNEL}/scales", (P("tensor"), P())),
    # Small beside a layer.
    Rule(r"embed_positions/embedding", (P(),)),
    Rule(r"(\w+_layer_norm|layer_norm|layernorm_embedding)/(scale|bias)", (P(),)),
    Rule(r"final_logits_bias", (P(),)),
    # What LoRA adds to a kernel.
    Rule(r"kernel(/adapter)?/(down|up)", (P(),)),
)
_COMPILED = tuple((re.compile(rf"(?:.*/)?{rule.pattern}"), rule) for rule in TABLE)


def make_mesh(*, data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Arrange devices in the three axes, neighbours along `tensor` first, which talks most.

    Args:
        data: copies of the parameters; -1 for as many as there are devices left.
        fsdp: parts that every parameter is kept in, and gathered from when its layer's turn comes.
        tensor: parts that every layer is computed in.
        devices: those to use; all of all processes if None.

    Raises:
        ValueError: sizes that do not multiply to the number of devices.

    Example:
        >>> dict(make_mesh(devices=jax.devices()[:1]).shape)
        {'data': 1, 'fsdp': 1, 'tensor': 1}
    """
    devices = jax.devices() if devices is None else list(devices)
    for name, size, least in (("data", data, -1), ("fsdp", fsdp, 1), ("tensor", tensor, 1)):
        if isinstance(size, bool) or not isinstance(size, int) or size < least or size == 0:
            raise ValueError(f"{name} counts devices, so it is at least 1{', or -1' * (least < 0)}, not {size!r}")
    copies = len(devices) // (fsdp * tensor) if data == -1 else data
    if copies * fsdp * tensor != len(devices):
        first = "" if data == -1 else f"data={data} x "
        raise ValueError(
            f"{first}fsdp={fsdp} x tensor={tensor} does not make {len(devices)} devices: choose sizes that multiply to "
            "it, or pass devices=jax.devices()[:n] to use fewer"
        )
    return jax.make_mesh((copies, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def partition_specs(params: Any, mesh: Mesh | AbstractMesh | None = None) -> Any:
    """How each leaf is split: a tree of `PartitionSpec` of the same structure.

    Args:
        params: arrays or anything of their shapes: parameters of any of the models, in 8 bits too, or what an optimiser
            keeps of them. Leaves of a single number are never split.
        mesh: to check that parts come out even, and to choose among a rule's specs; None takes its first.

    Raises:
        ValueError: naming a parameter that no rule knows, or one that does not divide.

    Example:
        >>> partition_specs(params)["model"]["encoder"]["layers"]["0"]["fc2"]["kernel"]
        P('tensor', 'fsdp')
    """
    sizes = None if mesh is None else mesh.shape
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _spec(_name(path), leaf.shape, sizes), params)


def shardings(mesh: Mesh, params: Any) -> Any:
    """Where each leaf lies: a tree of `NamedSharding`, for `jit`, `shard` and orbax; arguments as `partition_specs`."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), partition_specs(params, mesh), is_leaf=_is_spec)


def shard(mesh: Mesh, params: Any) -> Any:
    """Place parameters on a mesh; every process places the pieces of its own devices, and no device holds more.

    Args:
        mesh: from `make_mesh`.
        params: as `partition_specs` takes them, the same in every process. They are copied, never changed.

    Example:
        >>> placed = shard(make_mesh(devices=jax.devices()[:1]), params)
        >>> generate(model, placed, [[300, 2]], config=GenerationConfig(max_length=12)).sequences.shape
        (1, 1, 12)
    """
    return jax.tree.map(_put, params, shardings(mesh, params))


def unsplit(mesh: Mesh, params: Any) -> Any:
    """Parameters whole along `fsdp`, for use inside a program that is differentiated: the first line of a loss.

    A program that is compiled without it may split states by their width over `fsdp`, where batches are split, and
    move them back and forth; with it, weights move, and gradients come back split.

    Args:
        mesh: from `make_mesh`.
        params: placed on it; being traced.

    Example:
        >>> mesh = make_mesh(devices=jax.devices()[:1])
        >>> jax.jit(lambda tree: unsplit(mesh, tree))(params).keys() == params.keys()
        True
    """
    if mesh.shape["fsdp"] == 1:
        return params

    def whole(spec: P) -> NamedSharding:
        entries = ((entry,) if isinstance(entry, str) else entry or () for entry in spec)
        return NamedSharding(mesh, P(*(tuple(name for name in names if name != "fsdp") or None for names in entries)))

    specs = partition_specs(params, mesh)
    return jax.lax.with_sharding_constraint(params, jax.tree.map(whole, specs, is_leaf=_is_spec))


def place(mesh: Mesh, path: str, array: np.ndarray, dtype: Any) -> jax.Array:
    """One tensor, as it was read, in `dtype` on a mesh: each device gets its own piece, and nothing else is copied.

    Args:
        mesh: from `make_mesh`.
        path: its place in the parameter tree, such as `model/shared/embedding`.
        array: of any dtype and order in memory.
        dtype: of the result.
    """
    return _from_host(array, NamedSharding(mesh, _spec(path, array.shape, mesh.shape)), dtype)


def placing(mesh: Mesh | None, expected: Any) -> Callable[[str, np.ndarray, Any], jax.Array] | None:
    """`place` for a loader, once it is clear that every parameter can be placed; None without a mesh.

    Args:
        mesh: from `make_mesh`, or None.
        expected: the parameters that will be loaded, or anything of their shapes.

    Raises:
        ValueError: as `partition_specs` does.
    """
    if mesh is None:
        return None
    partition_specs(expected, mesh)
    return partial(place, mesh)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Where the rows of a batch lie: split over `data` and `fsdp`, whole along `tensor`."""
    return NamedSharding(mesh, BATCH)


def batch_share(mesh: Mesh) -> tuple[int, int]:
    """Which share of every batch this process reads, and of how many; processes of one `tensor` group read the same.

    Raises:
        ValueError: a mesh whose processes hold rows that overlap in part.

    Example:
        >>> batch_share(make_mesh(devices=jax.devices()[:1]))
        (0, 1)
    """
    groups = mesh.devices.reshape(-1, mesh.shape["tensor"])
    held: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        for process in {device.process_index for device in group}:
            held.setdefault(process, []).append(row)
    shares = sorted({tuple(rows) for rows in held.values()})
    if sum(map(len, shares)) != len(groups) or len({*map(len, shares)}) > 1:
        raise ValueError(
            f"the processes of this mesh hold rows {shares} of the batch, which overlap in part: choose a tensor size "
            "that divides the devices of a process, or is a multiple of them"
        )
    return shares.index(tuple(held[jax.process_index()])), len(shares)


def global_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Join the rows that the processes read into arrays over the mesh.

    Args:
        mesh: from `make_mesh`.
        batch: this process's rows, [B, ...] each: its share, as `batch_share` says, of the whole batch.

    Returns:
        Arrays of all rows under the same names, split over `data` and `fsdp`.

    Raises:
        ValueError: rows that the devices cannot be given equal parts of.

    Example:
        >>> mesh = make_mesh(devices=jax.devices()[:1])
        >>> global_batch(mesh, {"labels": np.ones((2, 8), np.int32)})["labels"].shape
        (2, 8)
    """
    _, shares = batch_share(mesh)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    for name, rows in batch.items():
        if len(rows) * shares % parts:
            raise ValueError(
                f"{name} has {len(rows)} rows in each of {shares} shares, and data={mesh.shape['data']} x "
                f"fsdp={mesh.shape['fsdp']} devices want equal parts: make it a multiple of {parts // shares}"
            )
    return {
        name: jax.make_array_from_process_local_data(
            batch_sharding(mesh), np.asarray(rows), (len(rows) * shares, *np.shape(rows)[1:])
        )
        for name, rows in batch.items()
    }


def mesh_of(params: Any) -> Mesh | None:
    """The mesh that parameters were placed on; None for any others, and for those that are being traced."""
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf, jax.Array) and not _is_traced(leaf):
            sharding = leaf.sharding
            mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
            if isinstance(mesh, Mesh) and mesh.axis_names == AXES:
                return mesh
    return None


def spread(mesh: Mesh | None, tree: Any, rows: int) -> Any:
    """Inputs that all processes have alike, on a mesh: what has `rows` rows split as a batch, if that comes out even.

    Args:
        mesh: None leaves all as it is.
        tree: arrays; those that are being traced stay as they are.
        rows: of the batch.
    """
    leaves = jax.tree.leaves(tree)
    if mesh is None or any(map(_is_traced, leaves)):
        return tree
    even = rows % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0

    def put(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array | np.ndarray):
            return leaf
        split = even and np.ndim(leaf) > 0 and np.shape(leaf)[0] == rows
        return _put(leaf, NamedSharding(mesh, BATCH if split else P()))

    return jax.tree.map(put, tree)


def gathered(tree: Any) -> Any:
    """The same, with copies on every device of what lies on other processes' devices alone, so that all can read it.

    All processes must call it together.
    """
    leaves, structure = jax.tree.flatten(tree)
    apart = {place: NamedSharding(leaf.sharding.mesh, P()) for place, leaf in enumerate(leaves) if _is_apart(leaf)}
    if apart:
        copies = jax.jit(_same, out_shardings=[*apart.values()])([leaves[place] for place in apart])
        for place, copy in zip(apart, copies, strict=True):
            leaves[place] = copy
    return jax.tree.unflatten(structure, leaves)


def _is_traced(leaf: Any) -> bool:
    try:
        return isinstance(leaf, jax.Array) and leaf.is_fully_addressable is None
    except jax.errors.ConcretizationTypeError:
        return True


def _is_apart(leaf: Any) -> bool:
    if not isinstance(leaf, jax.Array) or _is_traced(leaf):
        return False
    return not (leaf.is_fully_addressable or leaf.is_fully_replicated)


# One function for all calls, so that `jit` compiles it once for each kind of argument.
def _same(arrays: list[jax.Array]) -> list[jax.Array]:
    return arrays


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return _from_host(np.asarray(leaf), sharding, leaf.dtype)


def _from_host(array: np.ndarray, sharding: NamedSharding, dtype: Any) -> jax.Array:
    # A copy of each piece, in its own order: what it was cut from may be an array of the caller's, or a mapped file.
    return jax.make_array_from_callback(
        array.shape, sharding, lambda index: np.array(array[index], np.dtype(dtype), order="C", copy=True)
    )


def _spec(path: str, shape: Sequence[int], sizes: Mapping[str, int] | None) -> P:
    if math.prod(shape) == 1:
        return P()
    rule = next((rule for pattern, rule in _COMPILED if pattern.fullmatch(path)), None)
    if rule is None or len(rule.specs[0]) not in (0, len(shape)):
        raise ValueError(
            f"no rule says how {path} {list(shape)} is split over devices: the table in parallel.py knows parameters "
            "as they are loaded, trained or quantised; what prepare() or vmap made of them stays on one device"
        )
    if sizes is None:
        return rule.specs[0]
    for spec in rule.specs:
        if not _uneven(spec, shape, sizes):
            return spec
    problem = _misfits(rule, shape, sizes)
    raise ValueError(f"{path} {list(shape)} cannot be split as the rule {rule.pattern!r} says: {problem}")


def _uneven(spec: P, shape: Sequence[int], sizes: Mapping[str, int]) -> list[tuple[int, str]]:
    """The sizes that a spec does not divide, each with the axes it is split over."""
    found = []
    for size, names in zip(shape, spec, strict=False):
        axes = (names,) if isinstance(names, str) else names or ()
        if size % math.prod(sizes[name] for name in axes):
            found.append((size, " x ".join(f"{name}={sizes[name]}" for name in axes)))
    return found


def _misfits(rule: Rule, shape: Sequence[int], sizes: Mapping[str, int]) -> str:
    uneven = [misfit for spec in rule.specs for misfit in _uneven(spec, shape, sizes)]
    problems = ", ".join(f"{size} is no multiple of {axes}" for size, axes in dict.fromkeys(uneven))
    size = uneven[0][0]
    divisors = [n for n in range(1, math.prod(sizes.values()) + 1) if size % n == 0]
    return f"{problems}; give that axis of the mesh a size that divides {size}, such as {divisors[-1]}"


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_spec(leaf: Any) -> bool:
    return isinstance(leaf, P)
