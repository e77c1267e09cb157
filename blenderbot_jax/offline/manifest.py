"""What an output folder says of itself: the settings of all its parts, and of each part that it is finished.

`manifest.json` holds the settings; the first process to come writes it, and all others compare theirs with it. A part
`part-00003-of-00010.jsonl` is finished when `part-00003-of-00010.json` stands beside it, its stamp, and fits: the stamp
names the settings and the digest of the part's bytes.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from blenderbot_jax.chatbot import Chatbot
from blenderbot_jax.files import replacing, write_text
from blenderbot_jax.kernels import BlockedInt8Kernel, BlockedKernel
from blenderbot_jax.offline.rows import Corpus, digest_of
from blenderbot_jax.pretrained import Checkpoint
from blenderbot_jax.safety import description

MANIFEST = "manifest.json"
# Of settings that differ, as many are named.
_NAMED = 5


@dataclass(frozen=True)
class Stamp:
    """That a part is finished."""

    settings: str
    """Digest of the settings it was made with."""
    rows: int
    errors: int
    """Rows of it that could not be answered."""
    digest: str
    """Of its bytes."""


def fingerprint(checkpoint: Checkpoint) -> str:
    """What tells a checkpoint from others: a digest of architecture, dtypes, tokenizer and all weights.

    Args:
        checkpoint: as loaded; weights on an accelerator are fetched, an array at a time.

    Raises:
        ValueError: weights that are prepared for decoding, whose form is this machine's own.

    Example:
        >>> print(len(fingerprint(Checkpoint.from_pretrained("demo"))))
        32
    """
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    if any(map(_is_packed, jax.tree.leaves(checkpoint.params, is_leaf=_is_packed))):
        raise ValueError(
            "the bot's weights are prepared for decoding here, and no longer tell which model they are of: give the "
            "bot as it was loaded, or take fingerprint(bot.checkpoint) before it is prepared and pass that too"
        )
    members = getattr(model, "members", (model,))
    described = {
        "models": [{**member.config.to_dict(), "dtype": str(np.dtype(member.dtype))} for member in members],
        "cache": [str(getattr(member, "cache_dtype", None)) for member in members],
        "weights": str(getattr(model, "weights", None)),
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "mode": getattr(tokenizer, "mode", None),
        "delimiter": getattr(tokenizer, "delimiter", None),
        "limit": tokenizer.model_max_length,
    }
    whole = hashlib.blake2b(_canonical(described), digest_size=16)
    for path, leaf in jax.tree.leaves_with_path(checkpoint.params):
        array = np.asarray(leaf)
        whole.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        whole.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return whole.hexdigest()


def settings_of(bot: Chatbot, mark: str, key: jax.Array | None, corpus: Corpus) -> dict[str, Any]:
    """All that rows of an output depend on, as JSON holds it. What only rounds otherwise, as a draft, is not there.

    Args:
        bot: who answers.
        mark: the fingerprint of its checkpoint.
        key: which it draws with.
        corpus: what it answers.
    """
    drawn = None
    if key is not None:
        drawn = {"kind": str(jax.random.key_impl(key)), "data": np.asarray(jax.random.key_data(key)).tolist()}
    settings = {
        "model": mark,
        "decoding": bot.generation_config.to_dict(),
        "filters": [description(one) for one in bot.filters] + [bot.refusal] * bool(bot.filters),
        "presentable": bot.presents,
        "key": drawn,
        "input": {"format": corpus.format, "rows": corpus.rows, "digest": corpus.digest},
        "part_size": corpus.part_size,
    }
    return json.loads(_canonical(settings))


def claim(folder: Path, settings: Mapping[str, Any], about: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Make a folder one of these settings, unless it is one already; any number of processes may at the same time.

    Args:
        folder: made if it is missing.
        settings: as `settings_of` gives them.
        about: what else the manifest tells whoever reads it; it is not compared.
        overwrite: whether a folder of other settings becomes one of these; parts of other numbers are removed then.

    Raises:
        ValueError: the folder is one of other settings, which are named.
    """
    path, text = folder / MANIFEST, json.dumps({"settings": settings, "about": about}, indent=2) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        _create(path, text)
    if overwrite and _found(folder) != settings:
        write_text(path, text)
        _remove_others(folder, count_of(settings))
    check_claim(folder, settings)


def check_claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse to go on in a folder that is not, or no longer, one of these settings.

    Raises:
        ValueError: naming those that differ.
    """
    found = read_settings(folder)
    if found == settings:
        return
    differing = list(_differences(found, settings))
    more = f", and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
    raise ValueError(
        f"{folder} holds replies made with other settings: {'; '.join(differing[:_NAMED])}{more}. Take another folder, "
        "or overwrite this one"
    )


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of a folder.

    Raises:
        FileNotFoundError: it has no manifest.
        ValueError: its manifest is none.
    """
    settings = _found(folder)
    if settings is not None:
        return settings
    if not (folder / MANIFEST).exists():
        raise FileNotFoundError(f"{folder} has no {MANIFEST}: nothing was generated into it")
    raise ValueError(
        f"{folder / MANIFEST} is not one that was written here: take another folder, or overwrite this one"
    )


def count_of(settings: Mapping[str, Any]) -> int:
    """How many parts a folder of these settings has."""
    return -(-settings["input"]["rows"] // settings["part_size"])


def part_path(folder: Path, number: int, count: int) -> Path:
    """Where a part's rows stand; its stamp has the same name, ending in .json."""
    return folder / f"part-{number:05}-of-{count:05}.jsonl"


def write_part(path: Path, data: bytes, stamp: Stamp) -> None:
    """Write a part, then its stamp: each is there whole or not at all, and without a stamp a part does not count."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    write_text(path.with_suffix(".json"), json.dumps(asdict(stamp)) + "\n")


def stamp_of(path: Path, settings: Mapping[str, Any]) -> Stamp | None:
    """The stamp of a part that is finished, with these settings and with the bytes that stand there; None of others."""
    try:
        stamp = Stamp(**json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
        fits = stamp.settings == digest_of(_canonical(settings)) and stamp.digest == digest_of(path.read_bytes())
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return stamp if fits else None


def stamp_for(data: bytes, settings: Mapping[str, Any], rows: int, errors: int) -> Stamp:
    """The stamp that finishes a part."""
    return Stamp(digest_of(_canonical(settings)), rows, errors, digest_of(data))


def _is_packed(leaf: Any) -> bool:
    return isinstance(leaf, BlockedKernel | BlockedInt8Kernel)


def _found(folder: Path) -> dict[str, Any] | None:
    """The settings in a folder's manifest; None if it has none that can be read."""
    try:
        settings = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["settings"]
        count_of(settings)
    except (FileNotFoundError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None
    return settings


def _create(path: Path, text: str) -> None:
    """Write a file if there is none: of processes that do so at the same time, the first one's stays."""
    own = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    write_text(own, text)
    try:
        os.link(own, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links: of two that collide here, one finds out before its first part
        if not path.exists():
            own.replace(path)
    finally:
        own.unlink(missing_ok=True)


def _remove_others(folder: Path, count: int) -> None:
    """Remove the parts of a division into another number, which no process of these settings writes."""
    for path in folder.glob("part-?????*-of-?????*.json*"):
        if path.stem.rpartition("-of-")[2] != f"{count:05}":
            with suppress(FileNotFoundError):
                path.unlink()


def _differences(found: Any, wanted: Any, name: str = "") -> Iterator[str]:
    """What differs between two trees of settings, by the path of names that leads to it."""
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        for key in {**found, **wanted}:
            yield from _differences(found.get(key), wanted.get(key), f"{name}.{key}" if name else key)
    elif found != wanted:
        yield f"{name} is {json.dumps(found)} there and {json.dumps(wanted)} here"


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
