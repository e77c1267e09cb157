"""ParlAI's dictionary as a published vocabulary with its merges, and back.

`model.dict` lists the tokens in the order of their ids, each with a count. A byte-level dictionary is the vocabulary of
Hugging Face's byte-level BPE with four tokens put before it, so that every id is four more; published folders rename
those four, and the tokens of that vocabulary that then have a name twice. The dictionary of the 90M model is published
as it is. A model trained in half precision has tokens that nothing uses, to make their number a multiple of 8.

Sources: ParlAI, `parlai/core/dict.py`, `parlai/utils/bpe.py`, `parlai/core/torch_agent.py` (`__FP16_PAD_0__`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blenderbot_jax.parlai.options import BYTE_LEVEL, SUBWORDS, Options, longest_text, option
from blenderbot_jax.parlai.source import beside, read_text

_SPECIALS = ("__null__", "__start__", "__end__", "__unk__")
_PUBLISHED_SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")
_SHIFT = len(_SPECIALS)
# What ParlAI writes as their counts, so that they stay in front when a dictionary is sorted.
_FIRST_COUNT = 1_000_000_003
_PAD_MULTIPLE = 8
_VERSION = "#version: 0.2"
_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


@dataclass(frozen=True)
class Vocabulary:
    """A published vocabulary: tokens in the order of their ids, and merges in the order of their rank."""

    tokens: tuple[str, ...]
    merges: tuple[str, ...]
    """Each `a b`."""
    settings: tuple[tuple[str, Any], ...] = ()
    """The content of tokenizer_config.json."""

    def files(self) -> dict[str, str]:
        """The files of a published folder, by name."""
        return {
            "vocab.json": json.dumps({token: i for i, token in enumerate(self.tokens)}, ensure_ascii=False),
            "merges.txt": _lines(_VERSION, *self.merges),
            "tokenizer_config.json": json.dumps(dict(self.settings), indent=2),
        }


def read_vocabulary(model: Path, options: Options) -> Vocabulary:
    """Read the dictionary of a checkpoint and the files of its tokenizer.

    Args:
        model: the file of the weights, which need not be there; the others are found beside it.
        options: of its `model.opt`, which `architecture` has accepted.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or the files contradict each other; the message names file and rule.
    """
    path = beside(model, ".dict")
    tokens = _padded(_read_tokens(path), options)
    limit = {"model_max_length": longest_text(options)}
    if option(options, "dict_tokenizer") == SUBWORDS:
        settings = {"tokenizer_class": "BlenderbotSmallTokenizer", "mode": "parlai", **limit}
        return Vocabulary(tuple(tokens), _read_merges(beside(model, ".dict.codecs")), tuple(settings.items()))
    raw = _read_raw(beside(model, ".dict-vocab.json"))
    for place, token in enumerate(raw, start=_SHIFT):
        found = tokens[place] if place < len(tokens) else "nothing"
        if found != token:
            raise ValueError(
                f"{path} and {path.name}-vocab.json contradict each other: id {place} is {found!r} in the one and "
                f"{token!r}, {place - _SHIFT} + {_SHIFT}, in the other. Take all files from one checkpoint"
            )
    prefix = options.get("bpe_add_prefix_space")
    settings = {
        "tokenizer_class": "BlenderbotTokenizer",
        "add_prefix_space": prefix is not False,
        "delimiter": option(options, "delimiter"),
        **limit,
    }
    merges = _read_merges(beside(model, ".dict-merges.txt"))
    return Vocabulary(tuple(_published_names(path, tokens)), merges, tuple(settings.items()))


def dictionary_files(vocab: Mapping[str, int], merges: Sequence[str], tokenizer: str) -> dict[str, str]:
    """The files of a dictionary, by what their names have behind that of the weights: `read_vocabulary` undone.

    Counts that nobody knows fall from id to id in a dictionary that ParlAI may sort, and are 1 in one that it does not.

    Args:
        vocab: token -> id, as published.
        merges: `a b` each.
        tokenizer: "bytelevelbpe" or "bpe".

    Raises:
        ValueError: a token that the format cannot hold, or special tokens that are not the published ones.

    Example:
        >>> vocab = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "!": 4}
        >>> dictionary_files(vocab, (), "bytelevelbpe")[".dict-vocab.json"]
        '{"!":0}'
    """
    tokens = sorted(vocab, key=vocab.__getitem__)
    byte_level = tokenizer == BYTE_LEVEL
    expected = _PUBLISHED_SPECIALS if byte_level else _SPECIALS
    if tuple(tokens[:_SHIFT]) != expected:
        found = ", ".join(map(repr, tokens[:_SHIFT]))
        raise ValueError(f"a vocabulary must begin with {', '.join(expected)} to become ParlAI's, begins with {found}")
    if byte_level:
        again = {_again(name): name for name in _PUBLISHED_SPECIALS}
        tokens = [*_SPECIALS, *(again.get(token, token) for token in tokens[_SHIFT:])]
    counts = [1 if byte_level else len(tokens) - i for i in range(len(tokens))]
    counts[:_SHIFT] = range(_FIRST_COUNT, _FIRST_COUNT - _SHIFT, -1)
    lines = (f"{_escaped(token)}\t{count}" for token, count in zip(tokens, counts, strict=True))
    written = {".dict": _lines(*lines)}
    if not byte_level:
        return written | {".dict.codecs": _lines(_VERSION, *merges)}
    raw = {token: i for i, token in enumerate(_without_pads(tokens)[_SHIFT:])}
    vocabulary = json.dumps(raw, ensure_ascii=False, separators=(",", ":"))
    return written | {".dict-vocab.json": vocabulary, ".dict-merges.txt": _lines(_VERSION, *merges)}


def _read_tokens(path: Path) -> list[str]:
    """The tokens of a dictionary by id: the four special ones first, whatever the file says of them."""
    tokens: dict[str, None] = dict.fromkeys(_SPECIALS)
    for number, line in enumerate(read_text(path).removesuffix("\n").split("\n"), start=1):
        text, *count = line.removesuffix("\r").split("\t")
        token = _unescaped(text)
        if not token or text != text.strip() or len(count) > 1 or not all(part.strip().isdecimal() for part in count):
            raise ValueError(f"{path}, line {number}: must be a token, a tab and its count; got {line[:80]!r}")
        # The oldest dictionaries have these four in capitals.
        token = token.lower() if token.lower() in _SPECIALS else token
        if token in tokens and token not in _SPECIALS:
            raise ValueError(f"{path}, line {number}: the token {token!r} is there twice. Fetch the file again")
        tokens[token] = None
    return list(tokens)


def _padded(tokens: list[str], options: Options) -> list[str]:
    """The dictionary as a model in half precision has it: ParlAI adds what is missing when it loads one."""
    if not (options.get("fp16") or options.get("force_fp16_tokens")):
        return tokens
    names = (_pad(i, lower=option(options, "dict_lower")) for i in range(-len(tokens) % _PAD_MULTIPLE))
    return [*tokens, *names]


def _without_pads(tokens: list[str]) -> list[str]:
    """The tokens up to the last one that is more than padding."""
    pads = {_pad(i, lower=lower) for i in range(_PAD_MULTIPLE) for lower in (True, False)}
    end = len(tokens)
    while end and tokens[end - 1] in pads:
        end -= 1
    return tokens[:end]


def _pad(number: int, *, lower: bool) -> str:
    name = f"__FP16_PAD_{number}__"
    return name.lower() if lower else name


def _published_names(path: Path, tokens: list[str]) -> list[str]:
    again = {name: _again(name) for name in _PUBLISHED_SPECIALS}
    names = [*_PUBLISHED_SPECIALS, *(again.get(token, token) for token in tokens[_SHIFT:])]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path}: the token {twice!r} would be there twice under its published name")
    return names


def _again(name: str) -> str:
    return f"{name.removesuffix('>')}_AGAIN>"


def _read_raw(path: Path) -> list[str]:
    """The vocabulary of the tokenizer itself, without the four tokens before it, in the order of its ids."""
    try:
        vocab = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: the file must be JSON; {error}. Fetch it again") from None
    plain = isinstance(vocab, dict) and all(type(i) is int for i in vocab.values())
    if not plain or set(vocab.values()) != set(range(len(vocab))):
        raise ValueError(f"{path}: must map each token to its id, from 0 on, each used once. Fetch it again")
    return sorted(vocab, key=vocab.__getitem__)


def _read_merges(path: Path) -> tuple[str, ...]:
    first, *lines = read_text(path).removesuffix("\n").split("\n")
    # In version 0.1 of the format the end of a word is a symbol of its own, and other merges follow.
    if not first.startswith(_VERSION):
        raise ValueError(
            f"{path}: must begin with {_VERSION!r}, begins with {first[:40]!r}: other formats are not read"
        )
    for number, line in enumerate(lines, start=2):
        if len(line.split(" ")) != 2 or not all(line.split(" ")):
            raise ValueError(f"{path}, line {number}: must be two parts and a space between them; got {line[:80]!r}")
    return tuple(lines)


def _escaped(token: str) -> str:
    text = token
    for character, written in _ESCAPES.items():
        text = text.replace(character, written)
    if _unescaped(text) != token or text != text.strip() or not text:
        raise ValueError(f"ParlAI's dictionary cannot hold the token {token!r}: it would be read as another one")
    return text


def _unescaped(text: str) -> str:
    for character, written in _ESCAPES.items():
        text = text.replace(written, character)
    return text


def _lines(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)
