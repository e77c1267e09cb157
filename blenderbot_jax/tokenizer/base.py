"""What the tokenizers of both model families share: calls, decoding, look-ups, reading and writing folders."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self, overload

import numpy as np

from blenderbot_jax.absent import TOKENIZER, refuse_attribute
from blenderbot_jax.files import write_text
from blenderbot_jax.hub import SMALL_FILES, locate
from blenderbot_jax.tokenizer import arguments, batch
from blenderbot_jax.tokenizer.encoding import BatchEncoding
from blenderbot_jax.tokenizer.vocabulary import PathLike, find_vocabulary, read_settings, refuse_added, special_ids

SPECIALS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# What transformers' call takes beside our own arguments, with the values that change nothing here.
_NEUTRAL = {
    "return_attention_mask": (True, None),
    "return_token_type_ids": (False, None),
    "verbose": (True, False),
    "stride": (0, None),
    "tokenizer_kwargs": (None,),
    **dict.fromkeys(("text_target", "text_pair_target"), (None,)),
    **dict.fromkeys(
        ("is_split_into_words", "return_overflowing_tokens", "return_special_tokens_mask", "return_offsets_mapping",
         "return_length"),
        (False, None),
    ),
}  # fmt: skip


class BaseTokenizer(ABC):
    """A vocabulary with its special tokens; a subclass says how a text becomes ids and ids a text.

    Immutable: nothing changes after construction, so one tokenizer can serve threads and be a key of a dict.

    Args:
        vocab: token -> id, one-to-one onto 0..V-1.
        specials: the tokens of `SPECIALS`; None leaves one out.
        source: what messages call the vocabulary.
        model_max_length: the most ids the model takes, or None.
        padding_side, truncation_side: `left` or `right`.
        **settings: what else tells one tokenizer from another; becomes attributes.
    """

    bos_token: str | None
    eos_token: str
    unk_token: str | None
    sep_token: str | None
    pad_token: str
    cls_token: str | None
    mask_token: str | None
    bos_token_id: int | None
    eos_token_id: int
    unk_token_id: int | None
    sep_token_id: int | None
    pad_token_id: int
    cls_token_id: int | None
    mask_token_id: int | None
    vocab_size: int
    model_max_length: int | None
    padding_side: str
    truncation_side: str

    _ends_with_eos: ClassVar[bool]
    _reads_tokenizer_json: ClassVar[bool] = True
    _saved_settings: ClassVar[tuple[str, ...]] = ("model_max_length", "padding_side", "truncation_side")
    _vocab: dict[str, int]
    _tokens: tuple[str, ...]
    _special: dict[str, int]
    _suffix: tuple[int, ...]
    _content: tuple[Any, ...]

    def __init__(
        self,
        vocab: Mapping[str, int],
        specials: Mapping[str, str | None],
        source: str,
        *,
        model_max_length: float | None,
        padding_side: str,
        truncation_side: str,
        **settings: Any,
    ) -> None:
        ids = special_ids(vocab, specials, source)
        tokens = tuple(sorted(vocab, key=vocab.__getitem__))
        settings |= {
            "model_max_length": arguments.length_limit(model_max_length),
            "padding_side": arguments.side("padding_side", padding_side),
            "truncation_side": arguments.side("truncation_side", truncation_side),
        }
        vars(self).update(
            settings,
            **{f"{name}_token": token for name, token in specials.items()},
            **{f"{name}_token_id": number for name, number in ids.items()},
            vocab_size=len(tokens),
            _vocab=dict(vocab),
            _tokens=tokens,
            _special={tokens[number]: number for number in ids.values() if number is not None},
            _suffix=(ids["eos"],) if self._ends_with_eos else (),
            # A mask outside the vocabulary has no id, so two tokenizers that differ in it alone are the same.
            _content=(tokens, tuple(ids.items()), tuple(settings.items())),
        )

    @abstractmethod
    def _encode_texts(self, texts: Sequence[str], split_special_tokens: bool) -> batch.Rows:
        """The ids of each text, with nothing appended."""

    @abstractmethod
    def _join(self, ids: Sequence[int]) -> str:
        """The text of checked ids."""

    @abstractmethod
    def _own_files(self) -> dict[str, str]:
        """The files of a saved folder beside vocabulary and settings: name -> content."""

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: PathLike,
        *,
        revision: str | None = None,
        cache_dir: PathLike | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **overrides: Any,
    ) -> Self:
        """Read the tokenizer of a checkpoint.

        Args:
            name_or_folder: a folder, a hub name, or "demo", the bundled checkpoint.
            revision, cache_dir, local_files_only, token: how a hub name is looked up; see `hub.locate`.
            **overrides: keywords of the constructor that replace what the files say.

        Raises:
            FileNotFoundError: the folder or its files are missing; the message names them.
            ValueError: a file is damaged or belongs to another tokenizer; the message names file and rule.

        Example:
            >>> BlenderbotTokenizer.from_pretrained(folder, model_max_length=128, truncation_side="left")
            BlenderbotTokenizer(vocab_size=8008, model_max_length=128, padding_side='right', truncation_side='left')
        """
        folder = locate(
            name_or_folder,
            SMALL_FILES,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
        )
        # Files may list extra tokens under these two names; the constructor refuses any.
        names = (*cls._saved_settings, *_token_names(), "additional_special_tokens", "extra_special_tokens")
        files = find_vocabulary(folder, whole_too=cls._reads_tokenizer_json)
        given = {**files, **read_settings(folder, names), **overrides}
        try:
            tokenizer = cls(**given)
        except (TypeError, ValueError) as error:
            error.add_note(f"while reading the tokenizer in {folder}")
            raise
        refuse_added(folder, tokenizer._special)
        return tokenizer

    def save_pretrained(self, folder: PathLike) -> tuple[str, ...]:
        """Write a folder that this class and transformers load with the same ids.

        Args:
            folder: made if it does not exist; files of the same names are replaced.

        Returns:
            The paths written.
        """
        settings = {name: getattr(self, name) for name in self._saved_settings}
        specials = {name: getattr(self, name) for name in _token_names()}
        if self.mask_token_id is None:
            # Null, or transformers would add the mask as one id too many.
            specials["mask_token"] = None
        if self._ends_with_eos:
            # transformers 5 appends no </s> without this when it reads vocab.json and merges.txt.
            settings["add_eos_token"] = True
        if self.model_max_length is None:
            del settings["model_max_length"]
        contents = {
            "vocab.json": json.dumps(self._vocab, ensure_ascii=False),
            **self._own_files(),
            "special_tokens_map.json": json.dumps({k: v for k, v in specials.items() if v is not None}, indent=2),
            "tokenizer_config.json": json.dumps(
                {"tokenizer_class": type(self).__name__, **settings, **specials}, indent=2
            ),
        }
        for name, content in contents.items():
            write_text(Path(folder) / name, content)
        return tuple(os.path.join(folder, name) for name in contents)

    def __call__(
        self,
        text: str | Sequence[str],
        text_pair: None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str | None = None,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        padding_side: str | None = None,
        truncation_side: str | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        split_special_tokens: bool = False,
        **others: object,
    ) -> BatchEncoding:
        """Tokenize one text into flat lists, or a list of texts into int32 numpy arrays [B, T].

        Args:
            text: a `str`, or a list of `str`.
            text_pair: refused: these models read one text; `Conversation` joins turns the way they were trained.
            add_special_tokens: whether the closing `</s>` is appended.
            padding: True or `longest`, `max_length`, False or `do_not_pad`; None pads a list to its longest row.
            truncation: True or `longest_first` cuts to `max_length` ids and keeps the closing one; False never cuts;
                None cuts exactly when `max_length` is given and no padding is asked for, as transformers does.
            max_length: number of ids, the closing one included; None means `model_max_length`.
            padding_side: `left` or `right`; None means the tokenizer's own.
            truncation_side: `left` drops the oldest ids, `right` the newest; None means the tokenizer's own.
            pad_to_multiple_of: rounds the padded width up.
            return_tensors: `np` or `jax` force arrays [B, T], also for one text.
            split_special_tokens: True encodes a typed `</s>` as plain text, for text that users wrote.
            **others: transformers' further arguments, accepted at values that change nothing.

        Returns:
            `input_ids`, and `attention_mask`: 1 for text, 0 for pads.

        Raises:
            TypeError: `text` is neither a `str` nor a list of `str`, or an argument is not supported.
            ValueError: an argument has a value outside those above.

        Example:
            >>> tokenizer(["Hello world", "Hi"]).input_ids
            array([[6950, 1085,    2],
                   [4424,    2,    0]], dtype=int32)
        """
        arguments.refuse_pair(text_pair)
        arguments.refuse_unknown("the tokenizer's call", others, _NEUTRAL)
        batch.check_tensors(return_tensors)
        pad_side = arguments.side("padding_side", padding_side or self.padding_side)
        cut_side = arguments.side("truncation_side", truncation_side or self.truncation_side)
        batched = not isinstance(text, str)
        layout = batch.plan_layout(
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            model_max_length=self.model_max_length,
            batched=batched,
        )
        suffix = self._suffix if add_special_tokens else ()
        limit = layout.length if layout.truncate else None
        bodies = self._encode_texts(arguments.texts(text), split_special_tokens)
        rows = [batch.close_row(body, suffix, limit, cut_side) for body in bodies]
        width = layout.width(rows)
        columns = {
            "input_ids": batch.pad_rows(rows, width, self.pad_token_id, pad_side),
            "attention_mask": batch.pad_rows([[1] * len(row) for row in rows], width, 0, pad_side),
        }
        if return_tensors is not None or (batched and layout.padding != "do_not_pad"):
            return BatchEncoding({name: batch.to_array(rows, width, return_tensors) for name, rows in columns.items()})
        return BatchEncoding(columns if batched else {name: rows[0] for name, rows in columns.items()})

    @overload
    def encode(self, text: str, *, return_tensors: None = None, **options: Any) -> list[int]: ...
    @overload
    def encode(self, text: str, *, return_tensors: str, **options: Any) -> Any: ...
    def encode(self, text: str, **options: Any) -> Any:
        """The ids of one text, `</s>` included; the options are those of a call.

        Example:
            >>> tokenizer.encode("Hello world")
            [6950, 1085, 2]
        """
        if not isinstance(text, str):
            raise TypeError(
                f"encode takes one str; got {arguments.describe(text)}. For a list, call the tokenizer itself"
            )
        return self(text, **options)["input_ids"]

    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> str:
        """The text of one sequence of ids.

        Args:
            token_ids: an id, a list, or a numpy or JAX array [T].
            skip_special_tokens: leaves `</s>`, pads and their like out.
            clean_up_tokenization_spaces: for the 90M models, whether spaces before punctuation go; None means the
                tokenizer's own setting. Without effect on byte-level text, as in transformers 5.

        Returns:
            The text; byte-level text keeps its leading space.

        Raises:
            TypeError: something that is not whole numbers.
            ValueError: an id outside the vocabulary, or more than one sequence.

        Example:
            >>> tokenizer.decode([6950, 1085, 2], skip_special_tokens=True)
            ' Hello world'
        """
        return self._tidy(self._join(self._known(token_ids, skip_special_tokens)), clean_up_tokenization_spaces)

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> list[str]:
        """The texts of several sequences: a list of them, or an array [B, T]; see `decode`."""
        # One transfer for a JAX array, not one a row.
        rows = np.asarray(sequences) if hasattr(sequences, "shape") else sequences
        if not isinstance(rows, Iterable) or any(np.ndim(row) != 1 for row in rows):
            raise ValueError(
                "batch_decode takes a list of sequences of ids, or an array [B, T]; got "
                f"{getattr(rows, 'shape', None) or arguments.describe(rows)}. One sequence is decode's; "
                "sequences[:, 0] takes the best reply of each prompt out of [B, R, T]"
            )
        return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in rows]

    def tokenize(self, text: str, *, add_special_tokens: bool = False, split_special_tokens: bool = False) -> list[str]:
        """The tokens of one text as they stand in the vocabulary, by default without the closing one."""
        ids = self.encode(text, add_special_tokens=add_special_tokens, split_special_tokens=split_special_tokens)
        return [self._tokens[i] for i in ids]

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """The id of a token or the ids of several; an unknown token gives `unk_token_id`."""
        if isinstance(tokens, str):
            return self._token_id(tokens)
        return [self._token_id(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or the list of tokens of several; an id outside the vocabulary is a ValueError."""
        tokens = [self._tokens[i] for i in self._known(ids, skip_special_tokens and np.ndim(ids) > 0)]
        return tokens if np.ndim(ids) else tokens[0]

    def _token_id(self, token: str) -> int | None:
        return self._vocab.get(token, self.unk_token_id)

    def _tidy(self, text: str, wanted: bool | None) -> str:
        del wanted
        return text

    def _known(self, ids: Any, skip_special_tokens: bool) -> list[int]:
        special = self._special.values() if skip_special_tokens else ()
        return [i for i in arguments.token_ids(ids, self.vocab_size) if i not in special]

    @property
    def all_special_tokens(self) -> list[str]:
        """The special tokens of the vocabulary, each once."""
        return list(self._special)

    @property
    def all_special_ids(self) -> list[int]:
        """Their ids, in the same order."""
        return list(self._special.values())

    def get_vocab(self) -> dict[str, int]:
        """A copy of the vocabulary: token -> id."""
        return dict(self._vocab)

    def __len__(self) -> int:
        return self.vocab_size

    def __eq__(self, other: object) -> bool:
        return self._content == other._content if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        # Hashing every token and merge would cost a millisecond a look-up; equality tells the rest apart.
        return hash(repr(self))

    def __getattr__(self, name: str) -> NoReturn:
        refuse_attribute(type(self).__name__, name, TOKENIZER)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(
            f"a tokenizer is immutable; pass {name}={value!r} to a call, or to from_pretrained for a tokenizer with it"
        )

    def __repr__(self) -> str:
        sides = f"padding_side={self.padding_side!r}, truncation_side={self.truncation_side!r}"
        return f"{type(self).__name__}(vocab_size={self.vocab_size}, model_max_length={self.model_max_length}, {sides})"


def _token_names() -> list[str]:
    return [f"{name}_token" for name in SPECIALS]
