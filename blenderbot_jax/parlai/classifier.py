"""The options of ParlAI's `transformer/classifier` (`model.opt`): an encoder's, and what stands behind it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from blenderbot_jax.parlai.options import Options, option

KIND = "transformer/classifier"
# What the command line gives where the file says nothing.
_REDUCTION, _THRESHOLD = "first", 0.5
_REDUCTIONS = ("first", "mean", "max")


@dataclass(frozen=True)
class ClassifierOptions:
    """What a classifier is, beside its encoder."""

    encoder: Options
    """The options without what `architecture` knows nothing of."""
    classes: tuple[str, ...]
    """In the order of the logits."""
    reduction: Literal["first", "mean", "max"]
    threshold: float | None
    """Above this probability a text is of the first of two classes; None: the likelier one."""
    segments: int
    output_scaling: float


def classifier_options(options: Options, where: str = "model.opt") -> ClassifierOptions:
    """What the options say of a classifier.

    Args:
        options: of `model.opt`.
        where: what messages call them.

    Raises:
        ValueError: they are of another model, or a value is not one that ParlAI gives; all such are named.

    Example:
        >>> found = classifier_options({"model": "transformer/classifier", "classes": ["__notok__", "__ok__"]})
        >>> found.reduction, found.threshold, found.segments
        ('first', None, 0)

    Source:
        ParlAI, `parlai/core/torch_classifier_agent.py` and `parlai/agents/transformer/transformer.py`.
    """
    if options.get("model") != KIND:
        raise ValueError(f"{where}: a classifier's model is {KIND!r}, this one is {options.get('model')!r}")
    values = {
        "classes": options.get("classes"),
        "reduction_type": _said(options, "reduction_type", _REDUCTION),
        "threshold": _said(options, "threshold", _THRESHOLD),
        "n_segments": option(options, "n_segments"),
        "output_scaling": option(options, "output_scaling"),
    }
    if problems := _problems(values):
        raise ValueError(f"{where} describes a classifier that is not supported: " + "; ".join(problems))
    classes = values["classes"]
    reference = options.get("ref_class")
    if reference in classes:
        # ParlAI moves it to the front, before it names what the logits say.
        classes = [reference, *(name for name in classes if name != reference)]
    own_threshold = len(classes) == 2 and values["threshold"] != _THRESHOLD
    return ClassifierOptions(
        encoder={**options, "n_segments": 0, "output_scaling": 1.0},
        classes=tuple(classes),
        reduction=values["reduction_type"],
        threshold=float(values["threshold"]) if own_threshold else None,
        segments=max(values["n_segments"], 0),
        output_scaling=float(values["output_scaling"]),
    )


def _said(options: Options, name: str, default: Any) -> Any:
    return default if options.get(name) is None else options[name]


def _problems(values: Mapping[str, Any]) -> list[str]:
    classes, found = values["classes"], []
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if not named or len(set(classes)) != len(classes) or len(classes) < 2:
        found.append(f"classes must be two names or more, each once, not {classes!r} (a file of classes is not read)")
    if values["reduction_type"] not in _REDUCTIONS:
        found.append(f"reduction_type must be {', '.join(_REDUCTIONS)}, not {values['reduction_type']!r}")
    for name in ("threshold", "output_scaling"):
        if isinstance(values[name], bool) or not isinstance(values[name], int | float) or not values[name] > 0:
            found.append(f"{name} must be a number above 0, not {values[name]!r}")
    if isinstance(values["n_segments"], bool) or not isinstance(values["n_segments"], int):
        found.append(f"n_segments must be a whole number, not {values['n_segments']!r}")
    return found
