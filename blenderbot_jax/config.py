"""The architecture of a BlenderBot, as a frozen record that is read from and written to `config.json`."""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from blenderbot_jax.files import write_text
from blenderbot_jax.hub import SMALL_FILES, locate

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish")

# Keys of published files that repeat, in older words, what the two families are. Each must agree with the family.
_PRE_NORM_SAYS = {
    "normalize_before": True,
    "add_final_layer_norm": True,
    "normalize_embedding": False,
    "layernorm_variant": "prelayernorm",
}
_POST_NORM_SAYS = {
    "normalize_before": False,
    "add_final_layer_norm": False,
    "normalize_embedding": True,
    "do_blenderbot_90_layernorm": True,
    "layernorm_variant": "xlm",
}
# Other keys of published files that ask for an architecture no released BlenderBot has.
_ONLY_ACCEPTED = {
    "extra_pos_embeddings": 0,
    "static_position_embeddings": False,
    "extra_layer_norm": False,
    "add_bias_logits": False,
    "force_bos_token_to_be_generated": False,
}
_MODEL_TYPES = {"blenderbot": True, "blenderbot-small": False}
# Names that the transformers class answers to beside its own.
_ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "encoder_attention_heads",
    "num_hidden_layers": "encoder_layers",
    "num_layers": "encoder_layers",
}


@dataclass(frozen=True)
class BlenderbotConfig:
    """The architecture and the special ids of one model, under the field names of `transformers`.

    The defaults are those of the transformers class, `scale_embedding=False` among them, which no published checkpoint
    uses: take `blenderbot_400m_distill()` and its siblings, or a checkpoint's own `config.json`, for those.

    `normalize_before` tells the two architectures apart: True is Blenderbot (400M to 9.4B), False is BlenderbotSmall
    (90M). `scale_decoder_embedding` concerns the latter: the 90M weights were trained with the decoder's embeddings
    multiplied by sqrt(d_model), as the encoder's are, which transformers stopped doing in 4.53; False gives that.

    Example:
        >>> BlenderbotConfig(d_model=64, encoder_attention_heads=4, decoder_attention_heads=4).encoder_head_dim
        16
    """

    vocab_size: int = 8008
    max_position_embeddings: int = 128
    encoder_layers: int = 2
    encoder_ffn_dim: int = 10240
    encoder_attention_heads: int = 32
    decoder_layers: int = 24
    decoder_ffn_dim: int = 10240
    decoder_attention_heads: int = 32
    encoder_layerdrop: float = 0.0
    decoder_layerdrop: float = 0.0
    use_cache: bool = True
    is_encoder_decoder: bool = True
    activation_function: str = "gelu"
    d_model: int = 2560
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    init_std: float = 0.02
    decoder_start_token_id: int = 1
    scale_embedding: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    encoder_no_repeat_ngram_size: int = 3
    forced_eos_token_id: int | tuple[int, ...] | None = 2
    is_decoder: bool = False
    tie_word_embeddings: bool = True
    normalize_before: bool = True
    scale_decoder_embedding: bool = True
    unknown_keys: str = field(default="{}", compare=False, repr=False)
    """JSON of the keys of `config.json` that the architecture has no use for, kept so that saving loses nothing."""

    def __post_init__(self) -> None:
        for name in ("eos_token_id", "forced_eos_token_id"):
            value = getattr(self, name)
            if isinstance(value, list | tuple):
                object.__setattr__(self, name, tuple(value))
        problems = [*_type_problems(self)] or [*_value_problems(self)]
        if problems:
            raise ValueError(f"{type(self).__name__} contradicts itself: " + "; ".join(problems))

    def __getattr__(self, name: str) -> Any:
        if name in _ALIASES:
            return getattr(self, _ALIASES[name])
        raise AttributeError(f"{type(self).__name__} has no field {name!r}")

    @property
    def encoder_head_dim(self) -> int:
        """Width H of one encoder head."""
        return self.d_model // self.encoder_attention_heads

    @property
    def decoder_head_dim(self) -> int:
        """Width H of one decoder head."""
        return self.d_model // self.decoder_attention_heads

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The end tokens, always as a tuple; empty when the model has none."""
        return as_ids(self.eos_token_id)

    @property
    def model_type(self) -> str:
        """`"blenderbot"` or `"blenderbot-small"`, as `config.json` names the family."""
        return "blenderbot" if self.normalize_before else "blenderbot-small"

    @property
    def extra(self) -> dict[str, Any]:
        """The keys of `config.json` that are no field here, with their values."""
        return json.loads(self.unknown_keys)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked like a new one."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def blenderbot_400m_distill(cls) -> "BlenderbotConfig":
        """facebook/blenderbot-400M-distill: 364,802,560 parameters."""
        return _published(d_model=1280, encoder_ffn_dim=5120, decoder_ffn_dim=5120, decoder_layers=12)

    @classmethod
    def blenderbot_1b_distill(cls) -> "BlenderbotConfig":
        """facebook/blenderbot-1B-distill: 1,437,393,920 parameters."""
        return _published(decoder_layers=12)

    @classmethod
    def blenderbot_3b(cls) -> "BlenderbotConfig":
        """facebook/blenderbot-3B: 2,696,268,800 parameters."""
        return _published()

    @classmethod
    def blenderbot_9b(cls) -> "BlenderbotConfig":
        """The 9.4B model of the paper (Roller et al. 2020, arXiv:2004.13637): 9,431,810,048 parameters."""
        return _published(
            d_model=4096, encoder_layers=4, decoder_layers=32, encoder_ffn_dim=16384, decoder_ffn_dim=16384
        )

    @classmethod
    def blenderbot_small_90m(cls) -> "BlenderbotSmallConfig":
        """facebook/blenderbot_small-90M, also published as blenderbot-90M: 87,508,992 parameters."""
        return BlenderbotSmallConfig(vocab_size=54944, scale_embedding=True)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BlenderbotConfig":
        """Read the content of a `config.json`, older keys of published files included.

        The family is told by `model_type`, but `normalize_before` and `add_final_layer_norm` weigh more: third parties
        have saved the 90M model under the other family's name. Absent fields take that family's class defaults.

        Args:
            values: the parsed JSON object.

        Returns:
            A `BlenderbotConfig`, or a `BlenderbotSmallConfig` for the post-norm family.

        Raises:
            ValueError: naming the key, when the file describes another kind of model or contradicts itself.
        """
        pre_norm = _family(values, default=cls.normalize_before)
        _refuse_contradictions(values, _PRE_NORM_SAYS if pre_norm else _POST_NORM_SAYS)
        values = _with_aliases_read(values)
        target = BlenderbotConfig if pre_norm else BlenderbotSmallConfig
        names = {f.name for f in dataclasses.fields(target)} - {"unknown_keys", "normalize_before"}
        known = {key: value for key, value in values.items() if key in names}
        derived = {"model_type", "normalize_before"}
        rest = {key: value for key, value in values.items() if key not in names | derived}
        return target(**known, normalize_before=pre_norm, unknown_keys=json.dumps(rest, sort_keys=True))

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json`: every field, the family, and the unknown keys as they came."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "unknown_keys"}
        fields = {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}
        # A second name that the file had is kept, with what its field says now: the two must not come to disagree.
        extra = {key: fields[_ALIASES[key]] if key in _ALIASES else value for key, value in self.extra.items()}
        return {**extra, **fields, "model_type": self.model_type}

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> "BlenderbotConfig":
        """Read a `config.json`; errors name the file."""
        path = Path(path)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ValueError(f"a configuration is a JSON object, this is a {type(values).__name__}")
            return cls.from_dict(values)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write `config.json`, to a temporary name first."""
        write_text(Path(path), json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n")

    @classmethod
    def from_pretrained(cls, name_or_folder: str | os.PathLike[str], **hub_options: Any) -> "BlenderbotConfig":
        """Read the `config.json` of a checkpoint.

        Args:
            name_or_folder: a folder, a hub name, or "demo".
            hub_options: `revision`, `cache_dir`, `local_files_only`, `token`; see `locate`.

        Example:
            >>> BlenderbotConfig.from_pretrained("demo").decoder_layers
            3
        """
        return cls.from_json(locate(name_or_folder, SMALL_FILES, **hub_options) / "config.json")

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `config.json` into a folder, which is made if it is missing."""
        self.save_json(Path(folder) / "config.json")


@dataclass(frozen=True)
class BlenderbotSmallConfig(BlenderbotConfig):
    """The post-norm architecture of the 90M model, with the defaults of transformers' BlenderbotSmallConfig.

    Example:
        >>> BlenderbotSmallConfig().model_type
        'blenderbot-small'
    """

    vocab_size: int = 50265
    max_position_embeddings: int = 512
    encoder_layers: int = 8
    encoder_ffn_dim: int = 2048
    encoder_attention_heads: int = 16
    decoder_layers: int = 8
    decoder_ffn_dim: int = 2048
    decoder_attention_heads: int = 16
    d_model: int = 512
    encoder_no_repeat_ngram_size: int = 0
    normalize_before: bool = False


def as_ids(value: int | Sequence[int] | None) -> tuple[int, ...]:
    """One id, several or none, as a tuple."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, Sequence) else (value,)


def _published(**changes: Any) -> BlenderbotConfig:
    # Every published checkpoint scales its embeddings; the class default does not.
    return BlenderbotConfig(scale_embedding=True, **changes)


def _family(values: Mapping[str, Any], default: bool) -> bool:
    """True for pre-norm; decided by the most specific key present."""
    for key in ("normalize_before", "add_final_layer_norm"):
        if isinstance(values.get(key), bool):
            return values[key]
    if "model_type" not in values:
        return default
    model_type = values["model_type"]
    if model_type not in _MODEL_TYPES:
        raise ValueError(f"model_type must be one of {sorted(_MODEL_TYPES)}, not {model_type!r}: this is another model")
    return _MODEL_TYPES[model_type]


def _with_aliases_read(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with each field that stands under a second name under its first one too."""
    resolved = dict(values)
    for alias in _ALIASES.keys() & values.keys():
        field_name = _ALIASES[alias]
        if resolved.setdefault(field_name, values[alias]) != values[alias]:
            raise ValueError(
                f"the configuration says {field_name}={resolved[field_name]!r} and, under its other name, "
                f"{alias}={values[alias]!r}: remove one"
            )
    return resolved


def _refuse_contradictions(values: Mapping[str, Any], family_says: Mapping[str, Any]) -> None:
    wrong = [
        f"{key}={values[key]!r}, where this architecture has {expected!r}"
        for key, expected in {**family_says, **_ONLY_ACCEPTED}.items()
        if key in values and values[key] is not None and values[key] != expected
    ]
    if wrong:
        raise ValueError("the configuration asks for an architecture that no BlenderBot has: " + "; ".join(wrong))


_COUNTS = (
    "vocab_size",
    "max_position_embeddings",
    "d_model",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "encoder_attention_heads",
    "decoder_attention_heads",
)
_RATES = ("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop")
_FLAGS = (
    "use_cache",
    "is_encoder_decoder",
    "scale_embedding",
    "is_decoder",
    "tie_word_embeddings",
    "normalize_before",
    "scale_decoder_embedding",
)
_IDS = ("decoder_start_token_id", "pad_token_id", "bos_token_id", "eos_token_id", "forced_eos_token_id")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _type_problems(config: BlenderbotConfig) -> Iterator[str]:
    for name in (*_COUNTS, "encoder_layers", "decoder_layers", "encoder_no_repeat_ngram_size"):
        least = 1 if name in _COUNTS else 0
        value = getattr(config, name)
        if not _is_int(value) or value < least:
            yield f"{name} must be an integer of at least {least}, not {value!r}"
    for name in (*_RATES, "init_std"):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            yield f"{name} must be a number, not {value!r}"
    for name in _FLAGS:
        if not isinstance(getattr(config, name), bool):
            yield f"{name} must be true or false, not {getattr(config, name)!r}"
    for name in _IDS:
        value = getattr(config, name)
        several = isinstance(value, tuple) and name in ("eos_token_id", "forced_eos_token_id")
        missing = value is None and name == "decoder_start_token_id"
        if missing or not (value is None or several or _is_int(value)) or not all(map(_is_int, as_ids(value))):
            yield f"{name} must be a token id{' or a list of them' if 'eos' in name else ''}, not {value!r}"


def _value_problems(config: BlenderbotConfig) -> Iterator[str]:
    for side in ("encoder", "decoder"):
        heads = getattr(config, f"{side}_attention_heads")
        if config.d_model % heads:
            yield f"d_model={config.d_model} must be a multiple of {side}_attention_heads={heads}"
    for name in _RATES:
        if not 0 <= getattr(config, name) <= 1:
            yield f"{name} is a probability between 0 and 1, not {getattr(config, name)}"
    if config.init_std < 0:
        yield f"init_std must not be negative, it is {config.init_std}"
    for name in _IDS:
        for token in as_ids(getattr(config, name)):
            if not 0 <= token < config.vocab_size:
                yield f"{name}={token} lies outside the vocabulary of {config.vocab_size} tokens"
    if config.activation_function not in ACTIVATIONS:
        yield f"activation_function must be one of {', '.join(ACTIVATIONS)}, not {config.activation_function!r}"
