"""Training checkpoints: written by orbax in the background, whole or not at all, the latest and the best kept."""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from blenderbot_jax.files import write_text

_SETTINGS = "training.json"
_KIND = "blenderbot_jax training"


class TrainingFolderError(ValueError):
    """A folder that cannot be trained in, or resumed from."""


class TrainingCheckpoints:
    """The checkpoints of one training, in a folder that all processes see.

    A checkpoint has the state and a small record (position in the data, best value so far). Writing goes on while
    training does; a writer that is killed, or finds the disk full, loses the checkpoint it was writing and no other.

    Args:
        folder: made if it is missing.
        keep: the latest checkpoints that are kept; the best one is kept besides.
        metric: of the record, by which the best is told.
        higher_is_better: whether that metric is to grow.
        on_warning: told what went wrong without stopping anything.

    Example:
        >>> import tempfile
        >>> checkpoints = TrainingCheckpoints(tempfile.mkdtemp(), keep=1)
        >>> checkpoints.save(3, {"weights": jnp.ones(2)}, {"batch": 7}, metrics={"loss": 1.5})
        >>> checkpoints.wait()
        >>> state, record = checkpoints.restore({"weights": jnp.zeros(2)})
        >>> state["weights"].tolist(), record
        ([1.0, 1.0], {'batch': 7})
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep: int = 2,
        metric: str = "loss",
        higher_is_better: bool = False,
        on_warning: Callable[[str], None] | None = None,
    ) -> None:
        if keep < 1:
            raise ValueError(f"at least the latest checkpoint is kept, so keep is at least 1, not {keep}")
        self._folder = Path(folder).absolute() / "checkpoints"
        self._folder.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            self._clear()
        self._warn = on_warning or logging.getLogger(__name__).warning
        self._manager = _manager(self._folder, keep, metric, higher_is_better)

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that are there, whole, oldest first."""
        return tuple(sorted(self._manager.all_steps()))

    @property
    def best(self) -> int | None:
        """The step whose metric is best; None before any was measured."""
        return self._manager.best_step()

    def save(
        self, step: int, state: Any, record: Mapping[str, Any], *, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Begin to write a checkpoint; it is there when `wait` returns, or the next one is begun.

        Args:
            step: updates made.
            state: arrays, placed anyhow.
            record: what else is needed to go on; becomes JSON.
            metrics: of validation.
        """
        import orbax.checkpoint as ocp

        self.wait()
        if step in self._manager.all_steps():
            return
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(dict(record)))
        try:
            self._manager.save(step, args=args, metrics=None if metrics is None else dict(metrics))
        except OSError as error:
            self._lost(step, error)

    def wait(self) -> None:
        """Return when what was begun is written; a failure is told to `on_warning`, and loses that checkpoint alone."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except (OSError, ValueError, RuntimeError) as error:
            self._lost(None, error)

    def restore(self, like: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Read the latest checkpoint that can be read, or a given one.

        Args:
            like: arrays, or `ShapeDtypeStruct`s with shardings: shapes, dtypes and where each array is to be, on
                however many devices.
            step: one of `steps`; None takes the latest, and those before it where that is damaged.

        Returns:
            The state, and its record.

        Raises:
            TrainingFolderError: none there, or none that can be read.
        """
        self.wait()
        wanted = self.steps[::-1] if step is None else (step,)
        if not wanted or (step is not None and step not in self.steps):
            raise TrainingFolderError(f"{self._folder} holds no checkpoint{'' if step is None else f' of step {step}'}")
        reasons = []
        for one in wanted:
            try:
                return self._read(one, like)
            except Exception as error:  # orbax and tensorstore raise what they will for a damaged file
                reasons.append(f"step {one}: {str(error).splitlines()[0][:200]}")
                self._warn(f"the checkpoint of step {one} cannot be read, and an earlier one is taken: {reasons[-1]}")
        raise TrainingFolderError(f"no checkpoint in {self._folder} can be read: {'; '.join(reasons)}")

    def forget_after(self, step: int) -> None:
        """Remove checkpoints later than the one that was restored: they were damaged, and would be in the way.

        Args:
            step: the one that training goes on from.
        """
        for later in [one for one in self.steps if one > step]:
            self._manager.delete(later)

    def close(self) -> None:
        """Wait, and let the writer go."""
        self.wait()
        self._manager.close()

    def _read(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        import orbax.checkpoint as ocp

        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target), record=ocp.args.JsonRestore())
        found = self._manager.restore(step, args=args)
        return found["state"], found["record"]

    def _lost(self, step: int | None, error: Exception) -> None:
        name = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        self._warn(f"{name} could not be written, and training goes on without it: {error}")
        self._clear()

    def _clear(self) -> None:
        """Remove what a writer that was stopped half-way has left."""
        for path in self._folder.glob("*orbax-checkpoint-tmp*"):
            shutil.rmtree(path, ignore_errors=True)


def write_settings(folder: str | Path, settings: Mapping[str, Any]) -> None:
    """Note what a training folder is for, before anything else is written there.

    Args:
        folder: of the training.
        settings: become JSON.
    """
    write_text(Path(folder) / _SETTINGS, json.dumps({"kind": _KIND, **settings}, indent=2) + "\n")


def read_settings(folder: str | Path) -> dict[str, Any] | None:
    """What `write_settings` noted; None where there is no training yet.

    Args:
        folder: of the training.

    Raises:
        TrainingFolderError: a file that is not ours.
    """
    path = Path(folder) / _SETTINGS
    if not path.exists():
        return None
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if settings.pop("kind") != _KIND:
            raise ValueError("another kind of file")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise TrainingFolderError(f"{path} is no record of a training: {error}") from error
    return settings


def _manager(folder: Path, keep: int, metric: str, higher_is_better: bool) -> Any:
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers

    def value(metrics: Any) -> float:
        found = metrics[metric]
        return found if higher_is_better else -found

    best = checkpoint_managers.BestN(get_metric_fn=value, n=1, keep_checkpoints_without_metrics=False)
    policy = checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(keep), best])
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        best_fn=value,
        best_mode="max",
        enable_async_checkpointing=True,
    )
    return ocp.CheckpointManager(folder, options=options)
