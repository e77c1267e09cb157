"""What a PyTorch state dict is made of, in either container: storages, and tensors that are views of them.

In the pickle of a state dict every tensor is a call of `_rebuild_tensor_v2` on a storage, and every storage a
"persistent id": a tuple that names it, for its bytes lie elsewhere. The checks here stand in for those calls, so that
what comes out of `pickle_data` are views that are known to lie within their storages. Where those lie in the file is
the container's business (`torch_zip`, `torch_legacy`).

Sources: torch/_utils.py (`_rebuild_tensor_v2`, `_rebuild_parameter`), torch/serialization.py (`persistent_id`).
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from re import fullmatch

import ml_dtypes
import numpy as np

from blenderbot_jax.checkpoint.pickle_data import Symbol, SymbolTable
from blenderbot_jax.checkpoint.tensor_file import CheckpointError, TensorEntry, is_count, is_shape, quote, span

_STORAGE_DTYPES = {
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}
# What the state of a training run names beside tensors: settings of an optimizer, numbers of numpy, counters.
_TRAINING_MODULES = ("apex.", "fairscale.", "fairseq.", "numpy.", "parlai.", "torch.optim.")
_TRAINING_NAMES = frozenset(
    {
        "_codecs.encode",
        "collections.defaultdict",
        "collections.deque",
        *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("object", "set", "frozenset")),
        *(f"{module}._reconstructor" for module in ("copyreg", "copy_reg")),
        *(f"torch.{name}" for name in ("Size", "device", "float16", "float32", "float64", "int64")),
    }
)
MAX_PICKLE_BYTES = 64 * 2**20

# The ways out that error messages end with.
DAMAGED = "the file is damaged: download or save it again"
OTHER_FILE = "give a file written by torch.save, or download this one again"
RESAVE = "re-save it with a current PyTorch: `torch.save(torch.load(path, weights_only=True), path)`"
_SAVE_STATE_DICT = "save the weights alone: `torch.save(model.state_dict(), path)`"


@dataclass(frozen=True)
class Storage:
    """The elements that tensors are views of: `count` of them from element `first` of the record `key`."""

    key: str
    dtype: np.dtype
    count: int
    first: int = 0


@dataclass(frozen=True)
class View:
    """A tensor: a view of a storage from its element `offset` on, known to lie within it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None


class StateDict:
    """What stands in for the calls in the pickle of a state dict, and the check of what comes out of it.

    Args:
        path: of the file.
        part: the entry of the pickled dict that is the state dict, where the file holds more, such as what goes on with
            training; the rest is left unread. None: the whole value is the state dict.
    """

    def __init__(self, path: Path, part: str | None = None):
        self._path = path
        self._part = part

    @property
    def symbols(self) -> SymbolTable:
        """The names that a state dict mentions."""
        return {
            "torch._utils._rebuild_tensor_v2": self.rebuild,
            "torch._utils._rebuild_parameter": self.rebuild_parameter,
            **dict.fromkeys(_STORAGE_DTYPES),
        }

    @property
    def unread(self) -> Callable[[str], bool] | None:
        """Which further names may be there, for objects outside the state dict; None where there is nothing outside."""
        return None if self._part is None else _is_of_training

    def storage(self, reference: object, length: int) -> tuple[str, np.dtype, object, object]:
        """Key, dtype, number of elements (unchecked) and what else a persistent id of `length` values holds.

        The values are ("storage", type, key, location, number of elements, in the legacy container a view or None).
        """
        if not isinstance(reference, tuple) or len(reference) != length or reference[0] != "storage":
            words = {5: "five", 6: "six"}[length]
            raise self.refusal(f"a storage is named by {words} values, not by {quote(reference)}", RESAVE)
        _, kind, key, _, count, *rest = reference
        dtype = _STORAGE_DTYPES.get(kind.name) if isinstance(kind, Symbol) else None
        if dtype is None:
            raise self.refusal(f"a storage has one of the types {', '.join(_STORAGE_DTYPES)}", RESAVE)
        # Keys are numbers in practice; a path would be harmless here, but nothing honest writes one.
        if not isinstance(key, str) or not fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", key) or ".." in key:
            raise self.refusal(f"the key of a storage must be a plain name, it is {quote(key)}", DAMAGED)
        return key, dtype, count, rest[0] if rest else None

    def rebuild(self, arguments: tuple[object, ...]) -> View:
        """For _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata=None)."""
        if len(arguments) not in {6, 7}:
            raise self.refusal(f"a tensor is built from 6 or 7 values, not {len(arguments)}", RESAVE)
        storage, offset, shape, strides, requires_grad, hooks = arguments[:6]
        if not isinstance(storage, Storage):
            raise self.refusal(f"a tensor must be a view of a storage, not of {quote(storage)}", RESAVE)
        # Metadata can negate or conjugate the values, so anything in it must not be passed over.
        if not _is_plain(requires_grad, hooks) or (len(arguments) == 7 and arguments[6] not in (None, {})):
            rule = "a tensor must have no hooks and no metadata such as a pending negation"
            raise self.refusal(rule, "save it after `.detach().resolve_neg()`")
        if not is_shape(shape) or not isinstance(strides, tuple) or len(strides) != len(shape):
            raise self.refusal("a tensor needs one size and one stride per dimension", DAMAGED)
        if not is_count(offset) or not all(is_count(stride) for stride in strides):
            rule = f"of storage {storage.key!r}: offset and strides must be whole numbers, zero or more"
            raise self.refusal(rule, DAMAGED)
        return self._view(storage, offset, tuple(shape), strides)

    def _view(self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> View:
        """A view whose first and last element lie within its storage."""
        count = math.prod(shape)
        end = offset + (span(shape, strides) if count else 0)
        if end > storage.count:
            rule = f"shape {shape}, strides {strides} from element {offset} reach element {end}"
            raise self.refusal(f"{rule}, storage {storage.key!r} has {storage.count}", DAMAGED)
        # A stride of 0 repeats elements: a file of a few bytes could ask for any amount of memory.
        if count > storage.count:
            rule = f"shape {shape} has more elements than its storage {storage.key!r}, {storage.count}"
            raise self.refusal(rule, "save it after `.contiguous()`")
        return View(storage, offset, shape, _element_strides(shape, strides))

    def rebuild_parameter(self, arguments: tuple[object, ...]) -> View:
        """For _rebuild_parameter(tensor, requires_grad, hooks)."""
        tensor, requires_grad, hooks = arguments if len(arguments) == 3 else (None, None, None)
        if not isinstance(tensor, View) or not _is_plain(requires_grad, hooks):
            raise self.refusal("a parameter is a tensor, a bool and no hooks", RESAVE)
        return tensor

    def views(self, value: object) -> dict[str, View]:
        """The value of the whole pickle, if it is tensors by name and no more."""
        if self._part is not None:
            if not isinstance(value, dict) or self._part not in value:
                held = ", ".join(map(quote, value)) if isinstance(value, dict) else quote(value)
                rule = f"must hold a state dict under {self._part!r}, holds {held[:200] or 'nothing'}"
                raise self.refusal(rule, OTHER_FILE)
            value = value[self._part]
        if not isinstance(value, dict):
            raise self.refusal(f"must hold a state dict, holds {quote(value)}", _SAVE_STATE_DICT)
        for name, view in value.items():
            if not isinstance(name, str):
                raise self.refusal(f"a tensor is named by a string, not by {quote(name)}", DAMAGED)
            if not isinstance(view, View):
                rule = f"entry {quote(name)} must be a tensor, as every value of a state dict, it is {quote(view)}"
                raise self.refusal(rule, _SAVE_STATE_DICT)
        return dict(value)

    def refusal(self, rule: str, way_out: str) -> CheckpointError:
        """The error that names the file, the rule and the way out."""
        return CheckpointError(f"{self._path}: {rule}; {way_out}")


def entries_of(path: Path, views: Mapping[str, View], begin: Callable[[str], int]) -> dict[str, TensorEntry]:
    """Where the views lie in the file, given where the bytes of each storage begin."""
    entries = {}
    for name, view in views.items():
        storage = view.storage
        position = begin(storage.key) + (storage.first + view.offset) * storage.dtype.itemsize
        entries[name] = TensorEntry(path, storage.dtype, view.shape, position, view.strides)
    return entries


def _is_of_training(name: str) -> bool:
    return name in _TRAINING_NAMES or name.startswith(_TRAINING_MODULES)


def _is_plain(requires_grad: object, hooks: object) -> bool:
    return isinstance(requires_grad, bool) and isinstance(hooks, OrderedDict) and not hooks


def _element_strides(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...] | None:
    """Strides as a TensorEntry states them: None for row-major, 0 in a dimension of one element or none."""
    row_major = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    moving = tuple(stride if size > 1 else 0 for size, stride in zip(shape, strides, strict=True))
    wanted = tuple(stride if size > 1 else 0 for size, stride in zip(shape, row_major, strict=True))
    return None if 0 in shape or moving == wanted else moving
