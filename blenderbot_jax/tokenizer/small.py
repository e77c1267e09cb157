"""The tokenizer of the 90M model: lower-cased words cut by subword-nmt's byte-pair encoding."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from blenderbot_jax.tokenizer import arguments
from blenderbot_jax.tokenizer.base import SPECIALS, BaseTokenizer
from blenderbot_jax.tokenizer.batch import Rows
from blenderbot_jax.tokenizer.bpe import SubwordBPE, marked
from blenderbot_jax.tokenizer.vocabulary import (
    BYTE_LEVEL_TOKENS,
    SMALL_TOKENS,
    Merge,
    PathLike,
    load_subword_merges,
    load_vocab,
)

NEWLINE = "__newln__"
_MODES = {"hf": "hf", "parlai": "parlai"}
# What transformers' constructor takes beside our own arguments, with the values that change nothing here.
_NEUTRAL = {
    "add_bos_token": (False, None),
    "add_eos_token": (False, None),
    "additional_special_tokens": ((), [], None),
    "extra_special_tokens": ((), [], {}, None),
    "use_fast": (True, False, None),
}
# White space as the `regex` package knows it, which transformers uses: unlike `re`, without U+001C to U+001F.
_SPACES = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_CHUNK = re.compile(rf"[^{_SPACES}]+\n?")
_STOP = re.compile(r"([.,!?()])")
_GAP = re.compile(rf"[{_SPACES}]{{2,}}")
_PARLAI_WORD = re.compile(r"\w+|[^\w\s]")
# transformers' clean-up of decoded text, in its order.
_CLOSED_UP = {
    **{f" {mark}": mark for mark in ".?!,"},
    " ' ": "'",
    **{f" {ending}": ending for ending in ("n't", "'m", "'s", "'ve", "'re")},
}


class BlenderbotSmallTokenizer(BaseTokenizer):
    """Lower-cased words, cut into pieces that `@@` joins; `__unk__` stands for a piece outside the vocabulary.

    Nothing is put before or after a text. There are two ways to find the words:

    * `hf`, as transformers: words stand between white space, and of the punctuation only `. , ! ? ( ) '` is set apart.
      A newline counts only where it ends a word, and is `__newln__`. The special tokens are recognised in text.
      Decoding leaves `__newln__` as it is.
    * `parlai`, as ParlAI, which trained the model: every punctuation mark is a word, every newline is `__newln__`, and
      decoding gives newlines back. `(yes)` is `( yes )` here and `__unk__ yes )` there.

    The merges make special tokens of words that end in one, `__END__` among them, in both modes. With
    `split_special_tokens=True` these are spelt out in characters; transformers gives their ids all the same.

    Args:
        vocab: token -> id, or the path of a `vocab.json`.
        merges: pairs in order of rank, as `"a b"` or `("a", "b")`, or the path of a `merges.txt`.
        mode: `hf` or `parlai`.
        bos_token, eos_token, unk_token, pad_token: first and last token of a reply, what stands for an unknown piece,
            and what fills rows.
        sep_token, cls_token, mask_token: kept for compatibility.
        clean_up_tokenization_spaces: whether decoding closes up the spaces before punctuation unless told otherwise.
        model_max_length: the most ids the model takes; None for no limit.
        padding_side: `right` or `left`.
        truncation_side: `right` drops the newest ids of a long text, `left` the oldest.
        **others: transformers' further arguments, accepted at values that change nothing.

    Raises:
        TypeError: an argument is not supported.
        ValueError: vocabulary and merges do not fit together; the message names the file and the rule.

    Example:
        >>> tokens = ["__null__", "__start__", "__end__", "__unk__", "(", "yes", ")", "s@@", "o"]
        >>> vocab = {token: i for i, token in enumerate(tokens)}
        >>> as_trained = BlenderbotSmallTokenizer(vocab, ["y e", "ye s</w>"], mode="parlai")
        >>> as_trained.encode("(Yes) so"), as_trained.decode([4, 5, 6, 7, 8])
        ([4, 5, 6, 7, 8], '( yes ) so')

    References:
        transformers 5.23, `models/blenderbot_small/tokenization_blenderbot_small.py`; ParlAI, `parlai/utils/bpe.py`
        and `parlai/core/dict.py`.
    """

    mode: Literal["hf", "parlai"]
    clean_up_tokenization_spaces: bool
    _ends_with_eos = False
    _reads_tokenizer_json = False
    _saved_settings = (*BaseTokenizer._saved_settings, "mode", "clean_up_tokenization_spaces")
    _merges: tuple[Merge, ...]
    _bpe: SubwordBPE
    _typed: re.Pattern[str]
    _unknown: int

    def __init__(
        self,
        vocab: Mapping[str, int] | PathLike,
        merges: Iterable[str | Merge] | PathLike,
        *,
        mode: str = "hf",
        bos_token: Any = "__start__",
        eos_token: Any = "__end__",
        sep_token: Any = None,
        cls_token: Any = None,
        unk_token: Any = "__unk__",
        pad_token: Any = "__null__",
        mask_token: Any = None,
        clean_up_tokenization_spaces: bool | str = False,
        model_max_length: float | None = None,
        padding_side: str = "right",
        truncation_side: str = "right",
        **others: object,
    ) -> None:
        arguments.refuse_unknown("BlenderbotSmallTokenizer", others, _NEUTRAL)
        given = (bos_token, eos_token, unk_token, sep_token, pad_token, cls_token, mask_token)
        named = zip(SPECIALS, given, strict=True)
        specials = {name: arguments.special_token(f"{name}_token", token) for name, token in named}
        table, source = load_vocab(vocab)
        if table.keys() >= BYTE_LEVEL_TOKENS and not table.keys() & SMALL_TOKENS:
            raise ValueError(f"{source} is the vocabulary of the byte-level models (400M up): use BlenderbotTokenizer")
        unknown = specials["unk"]
        if unknown is None:
            raise ValueError("unk_token must be a token of the vocabulary, for pieces outside it are read as that one")
        super().__init__(
            table,
            specials,
            source,
            model_max_length=model_max_length,
            padding_side=padding_side,
            truncation_side=truncation_side,
            mode=arguments.one_of("mode", mode, _MODES),
            clean_up_tokenization_spaces=arguments.boolean(
                "clean_up_tokenization_spaces", clean_up_tokenization_spaces
            ),
            _merges=load_subword_merges(merges, table),
        )
        # The longest first, in case one begins another.
        typed = sorted(self._special, key=len, reverse=True)
        vars(self).update(
            _bpe=SubwordBPE(self._merges),
            _typed=re.compile(f"({'|'.join(map(re.escape, typed))})"),
            _unknown=self._special[unknown],
        )

    def tokenize(self, text: str, *, add_special_tokens: bool = False, split_special_tokens: bool = False) -> list[str]:
        """The pieces of one text, as transformers gives them: an unknown one stands as it is, not as `__unk__`."""
        del add_special_tokens  # there are none to add
        [text] = arguments.texts([text])
        return [*self._pieces(text, split_special_tokens)]

    def convert_tokens_to_string(self, tokens: Iterable[str]) -> str:
        """The text of a list of tokens, in or out of the vocabulary."""
        text = " ".join(tokens).replace("@@ ", "")
        if self.mode == "hf":
            return text.strip()
        # A reply cut short may end within a word.
        return text.removesuffix("@@").replace(NEWLINE, "\n")

    def _pieces(self, text: str, plain: bool) -> Iterator[str]:
        """The pieces of a text; `plain` spells special tokens out."""
        if self.mode == "parlai":
            yield from self._cut(_parlai_words(text), plain)
        elif plain:
            yield from self._cut(_hf_words(text), plain)
        else:
            # Splitting with a group gives text and special token in turn.
            for place, part in enumerate(self._typed.split(text)):
                yield from (part,) if place % 2 else self._cut(_hf_words(part), plain)

    def _cut(self, words: Iterable[str], plain: bool) -> Iterator[str]:
        for word in words:
            for piece in self._bpe(word):
                # The published merges make special tokens of words that end so.
                yield from marked(piece) if plain and piece in self._special else (piece,)

    def _encode_texts(self, texts: Sequence[str], split_special_tokens: bool) -> Rows:
        find, unknown = self._vocab.get, self._unknown
        return [[find(piece, unknown) for piece in self._pieces(text, split_special_tokens)] for text in texts]

    def _join(self, ids: Sequence[int]) -> str:
        return self.convert_tokens_to_string(self._tokens[i] for i in ids)

    def _token_id(self, token: str) -> int:
        return self._vocab.get(token if token in self._special else token.lower(), self._unknown)

    def _tidy(self, text: str, wanted: bool | None) -> str:
        if not (self.clean_up_tokenization_spaces if wanted is None else wanted):
            return text
        for spaced, closed in _CLOSED_UP.items():
            text = text.replace(spaced, closed)
        return text.replace(" \n", "\n").replace("\n ", "\n") if self.mode == "parlai" else text

    def _own_files(self) -> dict[str, str]:
        merges = "".join(f"{left} {right}\n" for left, right in self._merges)
        return {"merges.txt": f"#version: 0.2\n{merges}"}

    def __repr__(self) -> str:
        return f"{super().__repr__().removesuffix(')')}, mode={self.mode!r})"


BlenderbotSmallTokenizerFast = BlenderbotSmallTokenizer


def _hf_words(text: str) -> Iterator[str]:
    for chunk in _CHUNK.findall(text):
        if chunk.isalnum():
            yield chunk.lower()
            continue
        # After an apostrophe a newline is part of a gap, and lost.
        spaced = _GAP.sub(" ", _STOP.sub(r" \1", chunk).replace("'", " ' ")).replace("\n", f" {NEWLINE}")
        # Each word by itself: a capital sigma is lower-cased by its place in the word.
        yield from (word.lower() for word in spaced.split(" ") if word)


def _parlai_words(text: str) -> list[str]:
    return _PARLAI_WORD.findall(text.lower().replace("\n", f" {NEWLINE} "))
