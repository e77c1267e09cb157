"""A classifier of texts in ParlAI's `transformer/classifier` layout, as a filter."""

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blenderbot_jax.checkpoint.parlai_classifier import read_classifier
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.files import write_text
from blenderbot_jax.model.classifier import EncoderClassifier
from blenderbot_jax.parlai import architecture, beside, find, read_options, read_vocabulary
from blenderbot_jax.parlai.classifier import classifier_options
from blenderbot_jax.parlai.options import Options, longest_text
from blenderbot_jax.parlai.source import is_archive, unpack
from blenderbot_jax.safety.filters import Finding
from blenderbot_jax.tokenizer import BlenderbotSmallTokenizer, BlenderbotTokenizer, load_tokenizer

UNSAFE = ("__notok__",)
"""What ParlAI's classifiers of dialogue safety call what should not be said."""
_START, _END = 1, 2  # in every dictionary of ParlAI
_BATCH = 32
_WIDTH = 32  # texts are padded to a multiple of it, so that few programs are compiled


@dataclass(frozen=True)
class SafetyClassifier:
    """A trained classifier that finds texts of certain classes.

    Args:
        model: the classifier.
        params: its parameters.
        tokenizer: of its dictionary.
        classes: names, in the order of the logits.
        unsafe: the classes that are findings.
        threshold: with two classes: a text is of the first one where that has more than this probability; None takes
            the likelier class, whatever their number.
        max_tokens: the most ids of a text that are read, start and end besides; of a longer one the last are.
        name: what findings call the filter.

    Source:
        ParlAI, `parlai/core/torch_classifier_agent.py` (threshold) and `agents/transformer/transformer.py` (start and
        end around a text). Published is `zoo:dialogue_safety/single_turn` (Dinan et al. 2019, arXiv:1908.06083).
    """

    model: EncoderClassifier
    params: dict[str, Any]
    tokenizer: BlenderbotTokenizer | BlenderbotSmallTokenizer
    classes: tuple[str, ...]
    unsafe: tuple[str, ...] = UNSAFE
    threshold: float | None = None
    max_tokens: int = 510
    name: str = "classifier"

    def __post_init__(self) -> None:
        if strange := sorted(set(self.unsafe) - set(self.classes)):
            raise ValueError(
                f"the classifier knows no class {', '.join(map(repr, strange))}: say which of its classes "
                f"{', '.join(map(repr, self.classes))} are not to be said, as unsafe=(...)"
            )
        if not self.unsafe or set(self.unsafe) == set(self.classes):
            raise ValueError("a filter needs a class that is unsafe and one that is not")

    @classmethod
    def from_parlai(
        cls, path: str | os.PathLike[str], *, unsafe: Sequence[str] = UNSAFE, dtype: Any = jnp.float32
    ) -> "SafetyClassifier":
        """Load a checkpoint of ParlAI's `transformer/classifier`: a folder, the file of its weights, or a `.tgz`.

        Args:
            path: with `model`, `model.opt`, `model.dict` and the files of the tokenizer.
            unsafe: the classes that are findings.
            dtype: of parameters and computation.

        Raises:
            FileNotFoundError: no such checkpoint, or a file of it is missing.
            CheckpointError, ValueError: a file is damaged or hostile, or is of another kind of model.
        """
        path = Path(path)
        model = find(path)
        if model is None:
            raise FileNotFoundError(
                f"{path} holds no checkpoint of ParlAI: give a folder with model, model.opt and model.dict, or a .tgz"
            )
        with tempfile.TemporaryDirectory(prefix="blenderbot_jax-") as folder:
            where = unpack(model, Path(folder), weights=True) if is_archive(model) else model
            return cls._read(where, Path(folder), str(path), tuple(unsafe), dtype)

    @classmethod
    def _read(cls, model: Path, folder: Path, name: str, unsafe: tuple[str, ...], dtype: Any) -> "SafetyClassifier":
        path = beside(model, ".opt")
        options = read_options(path)
        own = classifier_options(options, str(path))
        config, tokenizer = _small_files(model, folder, own.encoder, str(path))
        params = read_classifier(
            model,
            config,
            len(own.classes),
            segments=own.segments,
            output_scaling=own.output_scaling,
            learned_positions=bool(options.get("learn_positional_embeddings")),
            dtype=dtype,
        )
        return cls(
            EncoderClassifier(config, len(own.classes), own.reduction, dtype),
            params,
            tokenizer,
            own.classes,
            unsafe,
            own.threshold,
            min(longest_text(own.encoder), config.max_position_embeddings - 2),
            name,
        )

    @property
    def description(self) -> str:
        """What tells the filter from others: its classes, and a digest of its weights."""
        whole = hashlib.blake2b(digest_size=16)
        for path, leaf in jax.tree.leaves_with_path(self.params):
            whole.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
        return f"{self.classes} {self.unsafe} {self.threshold} {self.max_tokens} {whole.hexdigest()}"

    def __call__(self, texts: Sequence[str]) -> list[Finding | None]:
        """The class of each text that is of an unsafe one, with its probability; None for the others."""
        return [self._finding(probabilities) for probabilities in self.probabilities(texts)]

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """[len(texts), C], those of the classes in their order.

        Raises:
            TypeError: a single text instead of a list.
        """
        if isinstance(texts, str):
            raise TypeError("texts are a list: write [text]")
        rows = [self._ids(text) for text in texts]
        places = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        found = np.zeros((len(rows), len(self.classes)), np.float32)
        for begin in range(0, len(places), _BATCH):
            chosen = places[begin : begin + _BATCH]
            found[chosen] = self._batch([rows[place] for place in chosen])
        return found

    def _ids(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return [_START, *ids[-self.max_tokens :], _END]

    def _batch(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """Rows padded to one of a few shapes, which are the programs that are compiled."""
        limit = self.model.config.max_position_embeddings
        width = min(-(-max(map(len, rows)) // _WIDTH) * _WIDTH, limit)
        ids = np.zeros((1 << (len(rows) - 1).bit_length(), width), np.int32)
        mask = np.zeros(ids.shape, bool)
        for row, given in enumerate(rows):
            ids[row, : len(given)], mask[row, : len(given)] = given, True
        return np.asarray(_probabilities(self.model, self.params, ids, mask))[: len(rows)]

    def _finding(self, probabilities: np.ndarray) -> Finding | None:
        best = int(probabilities.argmax())
        if self.threshold is not None:
            best = 0 if probabilities[0] > self.threshold else 1
        if self.classes[best] not in self.unsafe:
            return None
        return Finding(self.name, f"is {self.classes[best]} with probability {probabilities[best]:.2f}")


@partial(jax.jit, static_argnums=0)
def _probabilities(model: EncoderClassifier, params: dict[str, Any], ids: jax.Array, mask: jax.Array) -> jax.Array:
    logits = model.apply({"params": params}, ids, mask)
    assert isinstance(logits, jax.Array)  # nothing is collected beside it
    return jax.nn.softmax(logits)


def _small_files(
    model: Path, folder: Path, options: Options, where: str
) -> tuple[BlenderbotConfig, BlenderbotTokenizer | BlenderbotSmallTokenizer]:
    """The encoder's architecture, and the tokenizer of the dictionary."""
    architecture(options, 1, where)  # the dictionary of an unsupported model need not be read
    vocabulary = read_vocabulary(model, options)
    config = BlenderbotConfig.from_dict(architecture(options, len(vocabulary.tokens), where))
    for name, content in vocabulary.files().items():
        write_text(folder / name, content)
    return config, load_tokenizer(folder)
