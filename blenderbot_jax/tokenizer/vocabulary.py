"""Vocabulary, merges and settings as checkpoint folders hold them, checked against each other."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from blenderbot_jax.tokenizer import arguments

PathLike = str | os.PathLike[str]
Merge = tuple[str, str]
# What the vocabularies of the two families hold and the other's does not.
BYTE_LEVEL_TOKENS = frozenset(("<pad>", "<s>", "</s>"))
SMALL_TOKENS = frozenset(("__null__", "__start__", "__end__"))
END_OF_WORD = "</w>"


def load_vocab(vocab: Mapping[str, int] | PathLike) -> tuple[dict[str, int], str]:
    """A vocabulary, and the name that messages call it by.

    Args:
        vocab: token -> id, or the path of a `vocab.json`.

    Raises:
        ValueError: a damaged file, or ids that are not 0..V-1, each used once.
    """
    by_path = isinstance(vocab, (str, os.PathLike))
    table, source = (read_json(Path(vocab)), str(vocab)) if by_path else (dict(vocab), "vocab")
    if not table or not all(isinstance(token, str) and type(i) is int for token, i in table.items()):
        raise ValueError(f"{source}: a vocabulary maps each token (a string) to a whole number, and is not empty")
    missing = min(set(range(len(table))) - set(table.values()), default=None)
    if missing is not None:
        raise ValueError(
            f"{source}: the ids of {len(table)} tokens must be 0..{len(table) - 1}, each used once; no token has id "
            f"{missing}. The file may be damaged: fetch it again"
        )
    for token in table:
        arguments.unicode(f"{source}: a token", token)
    return table, source


def load_merges(merges: Iterable[str | Merge] | PathLike, vocab: Mapping[str, int]) -> tuple[Merge, ...]:
    """The merges of a byte-level vocabulary in order of rank, each checked against the vocabulary.

    Args:
        merges: `"a b"` or `("a", "b")` each, or the path of a `merges.txt`.
        vocab: must hold both parts of every merge, and their join.

    Raises:
        ValueError: naming the first merge that does not fit.
    """
    pairs, source = _read_merges(merges)
    for rank, pair in enumerate(pairs):
        # The tokenizers library panics on some of these, with an exception that `except Exception` does not catch.
        if not all(part in vocab for part in (*pair, "".join(pair))):
            raise ValueError(_unfit(source, rank, "two tokens of the vocabulary whose join is one too", " ".join(pair)))
    return pairs


def load_subword_merges(merges: Iterable[str | Merge] | PathLike, vocab: Mapping[str, int]) -> tuple[Merge, ...]:
    """The merges of a subword-nmt vocabulary in order of rank, each checked against those before it.

    Such merges join characters, the last of a word marked `</w>`. The vocabulary writes `ing</w>` as `ing` and `ing` as
    `ing@@`, and lacks some: 1,123 of the 30,000 joins of the published files.

    Args:
        merges: `"a b"` or `("a", "b")` each, or the path of a `merges.txt`.
        vocab: must hold at least a tenth of the joins.

    Raises:
        ValueError: naming the first merge that does not fit, or saying that they are another vocabulary's.
    """
    pairs, source = _read_merges(merges)
    made: set[str] = set()
    for rank, (left, right) in enumerate(pairs):
        # A line lost on the way shows here: what it made is missing later.
        if left.endswith(END_OF_WORD) or not all(_is_made(part, made) for part in (left, right)):
            rule = "two parts that are characters or earlier joins, with </w> at the end of the second at most"
            raise ValueError(_unfit(source, rank, rule, f"{left} {right}"))
        if left + right in made:
            raise ValueError(_unfit(source, rank, "a join that no earlier one makes", f"{left} {right}"))
        made.add(left + right)
    known = sum(join.removesuffix(END_OF_WORD) in vocab or f"{join}@@" in vocab for join in made)
    if known * 10 < len(made) or (made and not any(END_OF_WORD in join for join in made)):
        raise ValueError(
            f"{source}: the merges of a 90M model mark the ends of words with </w>, and the vocabulary holds what they "
            f"make; it holds {known} of {len(made)}. Take vocab.json and merges.txt from one folder"
        )
    return pairs


def _is_made(part: str, made: set[str]) -> bool:
    return len(part.removesuffix(END_OF_WORD)) == 1 or part in made


def _read_merges(merges: Iterable[str | Merge] | PathLike) -> tuple[tuple[Merge, ...], str]:
    """Merges as pairs of non-empty strings, and what messages call them."""
    by_path = isinstance(merges, (str, os.PathLike))
    lines, source = (_merge_lines(Path(merges)), str(merges)) if by_path else (merges, "merges")
    pairs = []
    for rank, line in enumerate(lines):
        pair = line.split(" ") if isinstance(line, str) else line if isinstance(line, Sequence) else ()
        if len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
            raise ValueError(_unfit(source, rank, "two tokens of the vocabulary whose join is one too", line))
        pairs.append((pair[0], pair[1]))
    return tuple(pairs), source


def _unfit(source: str, rank: int, rule: str, found: object) -> str:
    return f"{source}: merge {rank} must be {rule}; got {found!r}. The file may be damaged, or another vocabulary's"


def _merge_lines(path: Path) -> list[str]:
    # Split at "\n" alone: splitlines would also cut at characters that may stand inside tokens.
    lines = [line.removesuffix("\r") for line in _read_text(path).split("\n")]
    return [line for line in lines if line and not line.startswith("#version")]


def special_ids(vocab: Mapping[str, int], specials: Mapping[str, str | None], source: str) -> dict[str, int | None]:
    """The id of each special token; None where there is no such token, or for a mask outside the vocabulary.

    Args:
        vocab: token -> id.
        specials: the token of `bos`, `eos`, `unk`, `sep`, `pad`, `cls` and `mask`, or None.
        source: what messages call the vocabulary.

    Raises:
        ValueError: a token that is not in the vocabulary, or no `eos` or `pad`.
    """
    ids = {name: None if token is None else vocab.get(token) for name, token in specials.items()}
    for name, token in specials.items():
        if ids[name] is None and (name in ("eos", "pad") or (token is not None and name != "mask")):
            raise ValueError(
                f"{name}_token must be a token of the vocabulary; {token!r} is not in {source}. "
                f"Pass {name}_token=... or mend the file"
            )
    return ids


def find_vocabulary(folder: Path, *, whole_too: bool = True) -> dict[str, Any]:
    """The `vocab` and `merges` of a folder, from `vocab.json` and `merges.txt` or else from `tokenizer.json`.

    Args:
        folder: where to look.
        whole_too: whether a `tokenizer.json` will do.

    Raises:
        FileNotFoundError: naming what is missing.
        ValueError: the `tokenizer.json` is of another kind.
    """
    vocab, merges, whole = folder / "vocab.json", folder / "merges.txt", folder / "tokenizer.json"
    missing = [path.name for path in (vocab, merges) if not path.is_file()]
    if not missing:
        return {"vocab": vocab, "merges": merges}
    if not whole_too:
        raise FileNotFoundError(
            f"{str(folder)!r} has no {' and no '.join(missing)}: the tokenizer of a 90M model needs vocab.json and "
            "merges.txt; the tokenizer.json of transformers 4 splits words wrongly and is not read"
        )
    if not whole.is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} has no {' and no '.join(missing)}, nor a tokenizer.json: a tokenizer needs vocab.json "
            "with merges.txt, or tokenizer.json"
        )
    content = read_json(whole)
    model = content.get("model") or {}
    for name, found, right in (
        ("the model's type", model.get("type", "BPE"), "BPE"),
        ("the normalizer", content.get("normalizer"), None),
    ):
        if found != right:
            raise ValueError(f"{whole}: {name} must be {right!r} for a byte-level BlenderBot; got {found!r}")
    if not isinstance(model.get("vocab"), dict) or not isinstance(model.get("merges"), list):
        raise ValueError(f"{whole}: the model must hold a vocabulary (an object) and merges (a list)")
    return {"vocab": model["vocab"], "merges": model["merges"]}


def read_settings(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """What a folder's configuration files say about the named settings; null counts as nothing said."""
    found: dict[str, Any] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            content = read_json(folder / file)
            found |= {name: content[name] for name in names if content.get(name) is not None}
    return found


def refuse_added(folder: Path, special: Mapping[str, int]) -> None:
    """Refuse tokens that a folder adds to its vocabulary, all but the mask, which no published model has a row for.

    Args:
        folder: where `added_tokens.json`, `tokenizer_config.json` and `tokenizer.json` may list them.
        special: the special tokens of the vocabulary, which these files repeat, with their ids.

    Raises:
        ValueError: naming file and token.
    """
    for path, token, number in _added(folder):
        if token != "<mask>" and special.get(token) != number:
            raise ValueError(
                f"{path}: the added token {token!r} with id {number} must be one of the special tokens "
                f"({', '.join(special)}): others are not supported. Take it out of the file"
            )


def _added(folder: Path) -> Iterator[tuple[Path, str, int]]:
    plain, config, whole = (folder / name for name in ("added_tokens.json", "tokenizer_config.json", "tokenizer.json"))
    if plain.is_file():
        yield from ((plain, token, number) for token, number in read_json(plain).items())
    if config.is_file():
        listed = read_json(config).get("added_tokens_decoder") or {}
        yield from ((config, token["content"], int(number)) for number, token in listed.items())
    if whole.is_file():
        yield from ((whole, token["content"], token["id"]) for token in read_json(whole).get("added_tokens") or ())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; another content is a ValueError that names the file."""
    try:
        content = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: the file must be JSON; {error}. It may be cut short: fetch it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: the file must hold a JSON object; got {type(content).__name__}")
    return content


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: the file must be UTF-8 text; byte {error.start} is not. Fetch it again") from None
