"""The byte-level tokenizer of the 8008-token models (400M, 1B, 3B, 9.4B)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE

from blenderbot_jax.tokenizer import arguments
from blenderbot_jax.tokenizer.base import SPECIALS, BaseTokenizer
from blenderbot_jax.tokenizer.batch import Rows
from blenderbot_jax.tokenizer.vocabulary import SMALL_TOKENS, Merge, PathLike, load_merges, load_vocab

DELIMITER = "  "
_ERRORS = {name: name for name in ("replace", "strict", "ignore", "backslashreplace", "surrogateescape")}
# What transformers' constructor takes beside our own arguments, with the values that change nothing here.
_NEUTRAL = {
    "add_bos_token": (False, None),
    "add_eos_token": (True, None),
    "additional_special_tokens": ((), [], None),
    "extra_special_tokens": ((), [], {}, None),
    "use_fast": (True, False, None),
    "clean_up_tokenization_spaces": (False, True, None),
}


class BlenderbotTokenizer(BaseTokenizer):
    """Byte-level BPE as GPT-2's, with a space before the first word and `</s>` after the text.

    Every text ends with one `</s>`, whichever files the vocabulary came from; transformers 5 appends none when it
    starts from `vocab.json` and `merges.txt`. `<mask>` is plain text unless the vocabulary holds it: its published id,
    8008, lies outside the models' embedding.

    Args:
        vocab: token -> id, or the path of a `vocab.json`.
        merges: pairs in order of rank, as `"a b"` or `("a", "b")`, or the path of a `merges.txt`.
        errors: what decoding does with bytes that are no UTF-8: `replace`, `strict`, `ignore`, ...
        bos_token, eos_token, unk_token, pad_token: first token of a reply, last token of every text, what stands for
            an unknown token, and what fills rows.
        sep_token, cls_token, mask_token: kept for compatibility.
        add_prefix_space: whether a space is put before a text that has none; the models are trained with it.
        delimiter: what stood between turns in training, any text; `Conversation` joins turns by its ids. Two spaces for
            the models up to 3B, a newline for the 9.4B model. Texts are read the same whatever it is.
        model_max_length: the most ids the model takes; None for no limit.
        padding_side: `right` or `left`.
        truncation_side: `right` drops the newest ids of a long text, `left` the oldest.
        **others: transformers' further arguments, accepted at values that change nothing.

    Raises:
        TypeError: an argument is not supported.
        ValueError: vocabulary and merges do not fit together; the message names the file and the rule.

    Example:
        >>> from tokenizers.pre_tokenizers import ByteLevel
        >>> tokens = ["<pad>", "<s>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "Ġh", "Ġhi"]
        >>> small = BlenderbotTokenizer({token: i for i, token in enumerate(tokens)}, ["Ġ h", "Ġh i"])
        >>> small("hi")["input_ids"], small.decode([261])
        ([261, 2], ' hi')

    References:
        transformers 5.23, `models/blenderbot/tokenization_blenderbot.py`; for the delimiter, which is not of
        transformers, ParlAI, `parlai/core/torch_agent.py`.
    """

    errors: str
    add_prefix_space: bool
    delimiter: str
    _ends_with_eos = True
    _saved_settings = (*BaseTokenizer._saved_settings, "add_prefix_space", "errors", "delimiter")
    _merges: tuple[Merge, ...]
    _bytes: tuple[bytes, ...]
    _with_specials: Tokenizer
    _plain: Tokenizer

    def __init__(
        self,
        vocab: Mapping[str, int] | PathLike,
        merges: Iterable[str | Merge] | PathLike,
        *,
        errors: str = "replace",
        bos_token: Any = "<s>",
        eos_token: Any = "</s>",
        sep_token: Any = "</s>",
        cls_token: Any = "<s>",
        unk_token: Any = "<unk>",
        pad_token: Any = "<pad>",
        mask_token: Any = "<mask>",
        add_prefix_space: bool | str = True,
        delimiter: str = DELIMITER,
        model_max_length: float | None = None,
        padding_side: str = "right",
        truncation_side: str = "right",
        **others: object,
    ) -> None:
        arguments.refuse_unknown("BlenderbotTokenizer", others, _NEUTRAL)
        given = (bos_token, eos_token, unk_token, sep_token, pad_token, cls_token, mask_token)
        named = zip(SPECIALS, given, strict=True)
        table, source = load_vocab(vocab)
        if table.keys() >= SMALL_TOKENS:
            raise ValueError(f"{source} is the vocabulary of the 90M models: use BlenderbotSmallTokenizer")
        super().__init__(
            table,
            {name: arguments.special_token(f"{name}_token", token) for name, token in named},
            source,
            model_max_length=model_max_length,
            padding_side=padding_side,
            truncation_side=truncation_side,
            add_prefix_space=arguments.boolean("add_prefix_space", add_prefix_space),
            errors=arguments.one_of("errors", errors, _ERRORS),
            delimiter=arguments.delimiter(delimiter),
            _merges=load_merges(merges, table),
        )
        vars(self).update(
            _bytes=tuple(map(_spell, self._tokens)),
            _plain=self._pipeline(),
            _with_specials=self._recognising(self._pipeline()),
        )

    def _pipeline(self) -> Tokenizer:
        # Byte symbols outside a small vocabulary become <unk>; without it BPE would drop them in silence.
        pipeline = Tokenizer(BPE(vocab=self._vocab, merges=list(self._merges), unk_token=self.unk_token))
        pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=self.add_prefix_space)
        pipeline.decoder = decoders.ByteLevel()
        return pipeline

    def _recognising(self, pipeline: Tokenizer) -> Tokenizer:
        """`pipeline` with the special tokens recognised in text and `</s>` appended by its own post-processor."""
        pipeline.add_special_tokens(
            [AddedToken(token, lstrip=token == self.mask_token, normalized=False) for token in self.all_special_tokens]
        )
        # Only a saved tokenizer.json uses it: our own calls append </s> after truncation.
        pipeline.post_processor = processors.TemplateProcessing(
            single=f"$A:0 {self.eos_token}:0",
            pair=f"$A:0 {self.eos_token}:0 $B:1 {self.eos_token}:1",
            special_tokens=[(self.eos_token, self.eos_token_id)],
        )
        return pipeline

    def convert_tokens_to_string(self, tokens: Iterable[str]) -> str:
        """The text of a list of tokens, in or out of the vocabulary."""
        return b"".join(map(_spell, tokens)).decode("utf-8", self.errors)

    def _encode_texts(self, texts: Sequence[str], split_special_tokens: bool) -> Rows:
        pipeline = self._plain if split_special_tokens else self._with_specials
        return [row.ids for row in pipeline.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _join(self, ids: Sequence[int]) -> str:
        return b"".join([self._bytes[i] for i in ids]).decode("utf-8", self.errors)

    def _own_files(self) -> dict[str, str]:
        merges = "".join(f"{left} {right}\n" for left, right in self._merges)
        return {
            "merges.txt": f"#version: 0.2\n{merges}",
            "tokenizer.json": self._with_specials.to_str(pretty=True),
        }

    def __repr__(self) -> str:
        unusual = "" if self.delimiter == DELIMITER else f", delimiter={self.delimiter!r}"
        return f"{super().__repr__().removesuffix(')')}{unusual})"


BlenderbotTokenizerFast = BlenderbotTokenizer


def byte_symbols() -> dict[str, int]:
    """GPT-2's printable symbol of each byte: itself where it is printable Latin-1, else the next free from U+0100.

    Returns:
        Symbol -> byte, 256 of them.

    Example:
        >>> byte_symbols()["Ġ"], byte_symbols()["a"]
        (32, 97)
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = byte_symbols()


def _spell(token: str) -> bytes:
    """The bytes of a token; one with other characters than byte symbols stands for its own UTF-8, as in tokenizers."""
    if all(symbol in _BYTES for symbol in token):
        return bytes(_BYTES[symbol] for symbol in token)
    return token.encode()
