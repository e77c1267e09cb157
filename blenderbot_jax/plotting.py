"""Pictures, drawn with matplotlib (the extra `plot`) and none of its global state."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blenderbot_jax.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INCHES_PER_TOKEN = 0.26
_LARGEST_SIDE = 40.0
_DOTS_PER_INCH = 150


def plot_attribution(
    weights: Any,
    source_tokens: Sequence[str],
    reply_tokens: Sequence[str],
    path_or_axes: "str | os.PathLike[str] | Axes",
    *,
    label: str = "",
) -> "Axes":
    """Draw a heat map: a row for each reply token, a column for each token of the prompt.

    Weights of both signs are drawn red above 0 and blue below, white at 0; weights without a negative one from white to
    dark blue.

    Args:
        weights: [T, S], such as a row of what `attribution` gives.
        source_tokens: S strings.
        reply_tokens: T strings.
        path_or_axes: a file to write, whole or not at all, its ending saying the format (.png, .svg, .pdf, ...); or
            matplotlib axes to draw in.
        label: what the colour bar measures, such as "nats".

    Returns:
        The axes drawn in.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
        ValueError: weights that are not finite or do not fit the tokens, or an ending matplotlib cannot write.

    Example:
        >>> axes = plot_attribution([[0.5, -0.2], [0.0, 0.1]], ["Hello", "</s>"], ["Hi", "</s>"], "moved.png")
        >>> [tick.get_text() for tick in axes.get_xticklabels()]
        ['Hello', '</s>']
    """
    values = _checked(weights, source_tokens, reply_tokens)
    if not isinstance(path_or_axes, str | os.PathLike):
        _heat_map(path_or_axes, values, source_tokens, reply_tokens, label)
        return path_or_axes
    path = Path(path_or_axes)
    check_picture(path)
    figure = _new_figure(*values.shape)
    axes = figure.add_subplot()
    _heat_map(axes, values, source_tokens, reply_tokens, label)
    _save(figure, path)
    return axes


def check_picture(path: str | os.PathLike[str]) -> None:
    """Refuse a picture that could not be written: call it before long work.

    Args:
        path: the file.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
        ValueError: an ending matplotlib cannot write.
    """
    formats = sorted(_new_figure(1, 1).canvas.get_supported_filetypes())
    if _format(Path(path)) not in formats:
        endings = ", ".join(f".{name}" for name in formats)
        raise ValueError(f"the ending of a picture says its format, one of {endings}; {str(path)!r} has none of these")


def _checked(weights: Any, source_tokens: Sequence[str], reply_tokens: Sequence[str]) -> np.ndarray:
    values = np.asarray(weights, np.float32)
    if values.shape != (len(reply_tokens), len(source_tokens)) or not values.size:
        raise ValueError(
            f"weights must have shape [T, S] = [{len(reply_tokens)}, {len(source_tokens)}], a row for each reply token "
            f"and a column for each source token, at least one of each, not {list(values.shape)}: "
            "of a batch [B, T, S] pass one row"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"weights must be finite to have a colour, and {(~np.isfinite(values)).sum()} are not")
    return values


def _new_figure(rows: int, columns: int) -> "Figure":
    """A figure outside pyplot, which would keep it in a global list; large enough for its labels."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  (an extra, and slow to import)
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "pictures are drawn with matplotlib, which is not installed: pip install 'blenderbot-jax[plot]'"
        ) from error
    width = min(2.5 + _INCHES_PER_TOKEN * columns, _LARGEST_SIDE)
    height = min(1.5 + _INCHES_PER_TOKEN * rows, _LARGEST_SIDE)
    figure = Figure(figsize=(width, height), dpi=_DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _heat_map(
    axes: "Axes", values: np.ndarray, source_tokens: Sequence[str], reply_tokens: Sequence[str], label: str
) -> None:
    largest = float(np.abs(values).max()) or 1.0
    signed = bool((values < 0).any())
    image = axes.imshow(
        values, cmap="RdBu_r" if signed else "Blues", vmin=-largest if signed else 0.0, vmax=largest, aspect="auto"
    )
    # A token may hold dollar signs, which matplotlib would set as mathematics.
    axes.set_xticks(range(len(source_tokens)), labels=_labels(source_tokens), rotation=90, parse_math=False)
    axes.set_yticks(range(len(reply_tokens)), labels=_labels(reply_tokens), parse_math=False)
    axes.set_xlabel("prompt")
    axes.set_ylabel("reply")
    axes.figure.colorbar(image, ax=axes, label=label)


def _labels(tokens: Sequence[str]) -> list[str]:
    """Tokens on one line each."""
    return [token.replace("\n", "\\n").replace("\t", "\\t") for token in tokens]


def _format(path: Path) -> str:
    return path.suffix.removeprefix(".").lower()


def _save(figure: "Figure", path: Path) -> None:
    with replacing(path) as temporary, warnings.catch_warnings():
        # A box stands for a character that no installed font has; the picture is good all the same.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(temporary, format=_format(path))
