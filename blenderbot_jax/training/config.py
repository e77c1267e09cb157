"""TrainingConfig: everything that decides what training computes, as one frozen record."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args, get_type_hints

from blenderbot_jax.lora import LoraConfig

Optimizer = Literal["adamw", "adafactor", "adamax", "sgd"]
Schedule = Literal["linear", "cosine", "constant", "plateau"]
Metric = Literal["loss", "perplexity", "token_accuracy"]


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained. What it costs in speed or memory alone (`accumulate`, `remat`) changes no result.

    Raises:
        ValueError: a value that makes no sense, with the rule.

    Example:
        >>> TrainingConfig.preset("400m", steps=500).learning_rate
        7e-06
    """

    steps: int = 1000
    """Updates of the weights."""
    batch_size: int = 32
    """Examples of an update, over all devices and processes."""
    learning_rate: float = 7e-6
    """At its highest."""
    optimizer: Optimizer = "adamw"
    schedule: Schedule = "linear"
    """What follows the warm-up: down to `final_rate` by the last step, or halved when validation no longer improves."""
    warmup_steps: int = 100
    final_rate: float = 0.0
    """Share of `learning_rate` that is left at the end."""
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    """Of kernels and embeddings; biases and norms do not decay."""
    clip_norm: float | None = 0.1
    """Longest gradient, over all weights; None clips nothing."""
    accumulate: int = 1
    """Parts of a batch that are computed one after the other."""
    label_smoothing: float = 0.0
    unlikelihood: float = 0.0
    """Weight of the unlikelihood of words the reply has had already (Welleck et al. 2019, arXiv:1908.04319)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; weights and their moments stay in float32."""
    remat: bool = False
    """Compute each layer again in the backward pass instead of keeping what it made."""
    average: float | None = None
    """Decay of a running mean of the weights, which is then what is validated and saved."""
    lora: LoraConfig | None = None
    """Train adapters alone."""
    seed: int = 0
    """Of the order of examples, of dropout and of adapters."""
    validate_every: int = 100
    """Steps between validations, which are also when a checkpoint is written."""
    patience: int | None = None
    """Validations without an improvement after which training ends; under `plateau`, after which the rate is halved."""
    metric: Metric = "perplexity"
    """Of validation, by which the best weights are told."""

    def __post_init__(self) -> None:
        if problems := [*self._problems()]:
            raise ValueError("; ".join(problems))

    def _problems(self) -> Iterator[str]:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                yield f"{name} is one of {', '.join(choices)}, not {getattr(self, name)!r}"
        for names, rule, holds in _RULES:
            for name in names:
                value = getattr(self, name)
                if value is not None and not holds(value):
                    yield f"{name} is {rule}, not {value}"
        if self.accumulate > 0 and self.batch_size % self.accumulate:
            yield f"batch_size={self.batch_size} does not divide into accumulate={self.accumulate} equal parts"
        if self.schedule == "plateau" and self.patience is None:
            yield 'the "plateau" schedule halves the rate after `patience` validations: say how many'

    @classmethod
    def preset(cls, size: str, **changes: Any) -> Self:
        """The settings published for fine-tuning a size, with some changed.

        ParlAI's commands (projects/recipes/README.md) for the 90M and the 2.7B model; for the others, which have none,
        those of the 2.7B model, as its authors advise (ParlAI issues 3343 and 4569).

        Args:
            size: "90m", "400m", "1b", "3b", "9b", or "demo" for the bundled model.
            changes: fields with other values.

        Raises:
            ValueError: a size without a preset.
        """
        if size not in PRESETS:
            raise ValueError(f"there are presets for {', '.join(PRESETS)}, not for {size!r}")
        return cls(**{**PRESETS[size], **changes})

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked like a new one."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """All fields as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        fields = json.loads(text)
        lora = fields.pop("lora", None)
        return cls(**fields, lora=None if lora is None else LoraConfig(**lora))

    @property
    def higher_is_better(self) -> bool:
        """Whether the metric is to grow."""
        return self.metric == "token_accuracy"


_CHOICES = {
    name: get_args(hint)
    for name, hint in get_type_hints(TrainingConfig).items()
    if name in ("optimizer", "schedule", "dtype", "metric")
}
_RULES: tuple[tuple[tuple[str, ...], str, Callable[[Any], bool]], ...] = (
    (("steps", "batch_size", "accumulate", "validate_every", "patience"), "at least 1", lambda value: value >= 1),
    (("warmup_steps", "weight_decay", "unlikelihood", "final_rate"), "at least 0", lambda value: value >= 0),
    (("learning_rate", "epsilon", "clip_norm"), "above 0", lambda value: value > 0),
    (("label_smoothing", "b1", "b2", "average"), "at least 0 and below 1", lambda value: 0 <= value < 1),
)
_LARGE = {"learning_rate": 7e-6, "warmup_steps": 100, "clip_norm": 0.1, "batch_size": 128, "schedule": "plateau",
          "patience": 3}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "90m": {"learning_rate": 1e-6, "optimizer": "adamax", "warmup_steps": 0, "clip_norm": 0.1, "batch_size": 16,
            "schedule": "plateau", "patience": 3},
    "400m": _LARGE,
    "1b": _LARGE,
    "3b": {**_LARGE, "remat": True},
    "9b": {**_LARGE, "remat": True, "optimizer": "adafactor"},
    # Ours: what takes the bundled model from a file of dialogues to a chat with it in minutes.
    "demo": {"learning_rate": 5e-4, "warmup_steps": 20, "clip_norm": 1.0, "b2": 0.98},
}  # fmt: skip
"""Size -> the fields that differ from the defaults."""
