"""Logs of a training: JSON Lines, TensorBoard, and a picture of the curves."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from blenderbot_jax.files import replacing, write_text

Log = Callable[[Mapping[str, Any]], None]
"""Told of every record: `step`, and under `train/` or `valid/` what was measured."""
LOG_FILE = "log.jsonl"
# A thread of tensorboardX writes; its `flush` does not wait for that, and its own pause of two minutes is long.
_FLUSH_SECONDS = 2


def jsonl_log(folder: str | Path, from_step: int = 0) -> Log:
    """A log that appends to `log.jsonl`; each line is on disk when the call returns.

    Args:
        folder: where the file is.
        from_step: the step that training goes on from: what was logged later, before it was stopped, is dropped.
    """
    path = Path(folder) / LOG_FILE
    kept = [record for record in read_log(folder) if record["step"] <= from_step]
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))

    def log(record: Mapping[str, Any]) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(record)) + "\n")

    return log


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """The records of a training; a last line that was cut off is left out.

    Args:
        folder: with a `log.jsonl`; none is an empty log.
    """
    path = Path(folder) / LOG_FILE
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:  # the writer was killed in the middle of it
            break
    return records


def tensorboard_log(folder: str | Path) -> Log:
    """A log that TensorBoard shows, some seconds later; needs the extra `train`.

    Args:
        folder: where event files are written.

    Raises:
        ImportError: without tensorboardX.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError("TensorBoard logs need tensorboardX: pip install 'blenderbot-jax[train]'") from error
    writer = SummaryWriter(str(folder), flush_secs=_FLUSH_SECONDS)

    def log(record: Mapping[str, Any]) -> None:
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                writer.add_scalar(name, value, record["step"])

    return log


def draw_curves(records: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw loss, validation, rate and speed against the step; needs the extra `plot`.

    Args:
        records: from `read_log`.
        path: .svg, .png or .pdf.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("curves need matplotlib: pip install 'blenderbot-jax[plot]'") from error
    panels = (
        ("loss, nats a token", ("train/loss", "valid/loss")),
        ("perplexity", ("valid/perplexity",)),
        ("learning rate", ("train/learning_rate",)),
        ("tokens a second", ("train/tokens_per_second",)),
    )
    figure = Figure(figsize=(9, 6), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for name in names:
            points = [(record["step"], record[name]) for record in records if name in record]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 30 else None)
        axes.set_title(title)
        axes.set_xlabel("step")
        if axes.lines:
            axes.legend(frameon=False)
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, format=Path(path).suffix.lstrip(".") or "svg")
