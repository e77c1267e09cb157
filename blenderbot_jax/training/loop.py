"""fit: the loop around `train_step`, with validation, logs, checkpoints, and stopping at any time."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from blenderbot_jax.evaluation.likelihood import likelihood
from blenderbot_jax.model import IGNORED_LABEL, BlenderbotForConditionalGeneration, Params
from blenderbot_jax.parallel import global_batch
from blenderbot_jax.training.checkpoints import (
    TrainingCheckpoints,
    TrainingFolderError,
    read_settings,
    write_settings,
)
from blenderbot_jax.training.config import TrainingConfig
from blenderbot_jax.training.logs import Log, jsonl_log
from blenderbot_jax.training.placement import place_state
from blenderbot_jax.training.signals import noting_stop
from blenderbot_jax.training.step import StepMetrics, TrainState, assemble, best_weights, compile_step, halve_rate

Ended = Literal["all steps", "no improvement", "stopped"]


class DivergedError(ArithmeticError):
    """A loss that is no number any more."""


class TrainingData(Protocol):
    """Batches of fixed shapes in an order that the epoch decides: `data.Batches`."""

    @property
    def fingerprint(self) -> str:
        """What tells these batches from others."""
        ...

    def __len__(self) -> int:
        """Batches of an epoch."""
        ...

    def epoch(self, number: int, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """The batches of an epoch from one on."""
        ...


@dataclass(frozen=True)
class Trained:
    """What training has come to."""

    weights: Any
    """Parameters, or adapters with LoRA: those of the best validation, or the last ones where there was none."""
    params: Params
    """For the model: the same, with adapters beside their kernels."""
    step: int
    """Updates made."""
    ended: Ended
    best: float | None
    """The best value of the metric."""


@dataclass(frozen=True)
class _Standing:
    """Where validation stands: what `record` in a checkpoint keeps."""

    best: float | None = None
    stale: int = 0
    """Validations since the best one, or since the rate was halved."""

    def after(self, value: float, higher_is_better: bool) -> "_Standing":
        better = self.best is None or (value > self.best if higher_is_better else value < self.best)
        return _Standing(value) if better else replace(self, stale=self.stale + 1)


def fit(
    model: BlenderbotForConditionalGeneration,
    params: Params,
    data: TrainingData,
    config: TrainingConfig,
    *,
    valid: Sequence[dict[str, np.ndarray]] | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    keep: int = 2,
    mesh: Mesh | None = None,
    logs: Iterable[Log] = (),
    log_every: int = 10,
    on_warning: Callable[[str], None] | None = None,
) -> Trained:
    """Train a model.

    Ctrl-C and SIGTERM end it after the step it is in, with a checkpoint. The same configuration, data and number of
    devices give the same weights bit for bit, in one go or resumed, however it was stopped.

    Args:
        model: an encoder-decoder with head; dropout and layerdrop are those of its config.
        params: its parameters, plain arrays; with a mesh, placed on it.
        data: training batches, of `config.batch_size` examples over all processes.
        config: how to train.
        valid: batches to validate on; None validates nothing.
        folder: for checkpoints and `log.jsonl`; None keeps none.
        resume: go on from the latest checkpoint of the folder.
        keep: the latest checkpoints that are kept, the best one besides.
        mesh: from `make_mesh`; None trains on one device.
        logs: told of every record, beside the folder's log.
        log_every: steps between records of the training loss.
        on_warning: told what went wrong without stopping training.

    Raises:
        TrainingFolderError: a folder that has a training already, or another one than this where it is resumed.
        DivergedError: a loss that is no number; the checkpoints before it are there.
        ValueError: no batches.
    """
    if len(data) == 0:
        raise ValueError("there is nothing to train on: the data make no batch")
    state, placed = place_state(params, config, mesh)
    # What cannot be trained is refused by now, and leaves no trace.
    checkpoints, begun = _open(folder, model, data, config, resume, keep, on_warning)
    frozen = params if config.lora is not None else {}
    standing = _Standing()
    if begun and checkpoints is not None:
        state, record = checkpoints.restore(state)
        checkpoints.forget_after(int(state.step))
        standing = _Standing(**record)
    every = [*logs]
    if folder is not None and jax.process_index() == 0:
        every.append(jsonl_log(folder, int(state.step)))
    run = _Run(model, config, frozen, data, valid, checkpoints, mesh, tuple(every), log_every)
    with noting_stop() as stopped:
        state, standing, ended, kept = run.train(state, standing, compile_step(model, config, placed), stopped)
    weights = _best(checkpoints, state, kept)
    if checkpoints is not None:
        checkpoints.close()
    return Trained(weights, assemble(weights, frozen, config), int(state.step), ended, standing.best)


@dataclass(frozen=True)
class _Run:
    """What stays the same while a training runs."""

    model: BlenderbotForConditionalGeneration
    config: TrainingConfig
    frozen: Params
    data: TrainingData
    valid: Sequence[dict[str, np.ndarray]] | None
    checkpoints: TrainingCheckpoints | None
    mesh: Mesh | None
    logs: tuple[Log, ...]
    log_every: int

    def train(
        self, state: TrainState, standing: _Standing, step: Callable[..., Any], stopped: Callable[[], bool]
    ) -> tuple[TrainState, _Standing, Ended, Any]:
        """Step by step to the end; also gives the best weights, where no checkpoint keeps them."""
        done, kept = int(state.step), None
        if self._is_over(standing):
            return state, standing, "no improvement", kept
        meter = _Meter(self.log_every)
        for batch in self._batches(done):
            state, metrics = step(state, self.frozen, self._placed(batch))
            done += 1
            self._tell(done, meter.after(metrics, batch, last=done == self.config.steps))
            if stopped():
                self._save(done, state, standing, {})
                return state, standing, "stopped", kept
            if done % self.config.validate_every and done < self.config.steps:
                continue
            found = self._validate(done, state)
            if found:
                standing = standing.after(found[self.config.metric], self.config.higher_is_better)
                if standing.stale == 0 and self.checkpoints is None:
                    kept = jax.device_get(best_weights(state))
                if self.config.schedule == "plateau" and standing.stale == self.config.patience:
                    state, standing = halve_rate(state), replace(standing, stale=0)
            self._save(done, state, standing, found)
            if self._is_over(standing):
                return state, standing, "no improvement", kept
            meter.restart()
        return state, standing, "all steps", kept

    def _batches(self, done: int) -> Iterator[dict[str, np.ndarray]]:
        """The batches of the steps that are left."""
        left, (number, start) = self.config.steps - done, divmod(done, len(self.data))
        while left > 0:
            for batch in self.data.epoch(number, start):
                if left == 0:
                    return
                left -= 1
                yield batch
            number, start = number + 1, 0

    def _placed(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        return batch if self.mesh is None else global_batch(self.mesh, batch)

    def _validate(self, step: int, state: TrainState) -> dict[str, float]:
        if self.valid is None:
            return {}
        params = assemble(best_weights(state), self.frozen, self.config)
        model = self.model.clone(dtype=jax.numpy.dtype(self.config.dtype))
        found = likelihood(model, params, (self._placed(batch) for batch in self.valid))
        values = {"loss": found.loss, "perplexity": found.perplexity, "token_accuracy": found.token_accuracy}
        self._tell(step, {f"valid/{name}": value for name, value in values.items()})
        return values

    def _save(self, step: int, state: TrainState, standing: _Standing, metrics: Mapping[str, float]) -> None:
        if self.checkpoints is not None:
            record = {"best": standing.best, "stale": standing.stale}
            self.checkpoints.save(step, state, record, metrics=dict(metrics) or None)

    def _tell(self, step: int, record: Mapping[str, float] | None) -> None:
        for log in self.logs if record else ():
            log({"step": step, **(record or {})})

    def _is_over(self, standing: _Standing) -> bool:
        patience = None if self.config.schedule == "plateau" else self.config.patience
        return patience is not None and standing.stale >= patience


class _Meter:
    """Metrics and speed between two records; they stay on the device until then, so that steps follow each other."""

    def __init__(self, every: int) -> None:
        self._every = every
        self.restart()

    def restart(self) -> None:
        """Forget the time that something else took."""
        self._since, self._metrics, self._tokens = time.perf_counter(), [], 0

    def after(self, metrics: StepMetrics, batch: dict[str, np.ndarray], *, last: bool) -> dict[str, float] | None:
        """Take a step in; a record if it is time for one."""
        self._metrics.append(metrics)
        self._tokens += int(batch["attention_mask"].sum()) + int((batch["labels"] != IGNORED_LABEL).sum())
        if len(self._metrics) < self._every and not last:
            return None
        found = jax.device_get(self._metrics)
        counts = np.array([one.tokens for one in found], np.float64)
        losses = np.array([one.loss for one in found], np.float64)
        loss = float((losses * counts).sum() / max(counts.sum(), 1))
        if not math.isfinite(loss):
            raise DivergedError(
                "the training loss is no number any more: lower the learning rate, clip gradients (clip_norm), or warm "
                "up for longer, and go on from the last checkpoint"
            )
        record = {
            "train/loss": loss,
            "train/objective": float(found[-1].objective),
            "train/gradient_norm": float(found[-1].gradient_norm),
            "train/learning_rate": float(found[-1].learning_rate),
            "train/tokens_per_second": self._tokens / (time.perf_counter() - self._since),
        }
        self.restart()
        return record


def _open(
    folder: str | Path | None,
    model: BlenderbotForConditionalGeneration,
    data: TrainingData,
    config: TrainingConfig,
    resume: bool,
    keep: int,
    on_warning: Callable[[str], None] | None,
) -> tuple[TrainingCheckpoints | None, bool]:
    """The folder's checkpoints, and whether there is one to go on from."""
    if folder is None:
        if resume:
            raise TrainingFolderError("only a training with a folder can be resumed")
        return None, False
    settings = {"config": config.to_json(), "data": data.fingerprint, "model": repr(model.config)}
    before = read_settings(folder)
    if before is not None and not resume:
        raise TrainingFolderError(f"{folder} holds a training already: resume it, or take another folder")
    if before is not None and before != settings:
        changed = ", ".join(name for name in settings if before.get(name) != settings[name])
        raise TrainingFolderError(
            f"{folder} holds another training: its {changed} differs, and weights would no longer follow from what "
            "they were made of; resume with the same, or take another folder"
        )
    if before is None and jax.process_index() == 0:
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_settings(folder, settings)
    checkpoints = TrainingCheckpoints(
        folder, keep=keep, metric=config.metric, higher_is_better=config.higher_is_better, on_warning=on_warning
    )
    return checkpoints, bool(checkpoints.steps)


def _best(checkpoints: TrainingCheckpoints | None, state: TrainState, kept: Any) -> Any:
    """The weights of the best validation: from its checkpoint, from memory, or the last ones."""
    if checkpoints is None:
        return best_weights(state) if kept is None else kept
    checkpoints.wait()
    if checkpoints.best is None:
        return best_weights(state)
    best, _ = checkpoints.restore(state, checkpoints.best)
    return best_weights(best)
