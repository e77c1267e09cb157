"""A ParlAI checkpoint as a published folder: the small files told anew, the weights where they are."""

import atexit
import json
import os
import shutil
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from blenderbot_jax.files import write_text
from blenderbot_jax.parlai.dictionary import read_vocabulary
from blenderbot_jax.parlai.options import SUBWORDS, Options, architecture, decoding, option, read_options
from blenderbot_jax.parlai.source import MODEL, SUFFIXES, beside, is_archive, unpack

# What stands between turns of the 90M model in `Conversation`: `__newln__`, the id of a newline.
_NEWLINE = "\n"


def published(model: Path, *, weights: bool = True) -> Path:
    """A temporary folder that holds a ParlAI checkpoint in the published layout, until the process ends.

    The weights are a link to where they are; those of an archive are unpacked into the folder. The same checkpoint
    gives the same folder for as long as its files stay as they are.

    Args:
        model: what `find` has found.
        weights: whether the weights are wanted; without them, those of an archive are left in it.

    Raises:
        FileNotFoundError: a file of the checkpoint is missing.
        ValueError: a file is damaged, the files contradict each other, or the options describe an architecture that is
            not supported.
    """
    packed = is_archive(model)
    if weights and not packed and not model.is_file():
        raise FileNotFoundError(f"{model} is missing: {beside(model, '.opt').name} is there, the weights are not")
    files = (model,) if packed else (model, *(beside(model, suffix) for suffix in SUFFIXES))
    stamp = tuple((path.name, *_stamp(path)) for path in files)
    return _made(model.absolute(), weights or not packed, stamp)


def _stamp(path: Path) -> tuple[int, int]:
    """What tells one state of a file from another."""
    if not path.is_file():
        return (0, 0)
    found = path.stat()
    return (found.st_size, found.st_mtime_ns)


@cache
def _made(model: Path, weights: bool, stamp: tuple[Any, ...]) -> Path:
    del stamp  # part of the key alone
    temporary = Path(tempfile.mkdtemp(prefix="blenderbot_jax-"))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    # Messages show the folder's path, so it ends as the user's own does.
    folder = temporary / (model.name if is_archive(model) else model.parent.name or MODEL)
    folder.mkdir()
    try:
        if is_archive(model):
            _tell(unpack(model, folder, weights=weights), folder)
        else:
            for suffix in ("", *SUFFIXES):
                if beside(model, suffix).is_file():
                    os.symlink(beside(model, suffix), folder / f"{MODEL}{suffix}")
            _tell(model, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def _tell(model: Path, folder: Path) -> None:
    """Write the small files of a published folder."""
    path = beside(model, ".opt")
    options = read_options(path)
    architecture(options, 1, str(path))  # the dictionary of an unsupported model need not be read
    vocabulary = read_vocabulary(model, options)
    _warn(options, path)
    contents = {
        "config.json": json.dumps(architecture(options, len(vocabulary.tokens), str(path)), indent=2, sort_keys=True),
        "generation_config.json": json.dumps(decoding(options), indent=2, sort_keys=True),
        **vocabulary.files(),
    }
    for name, content in contents.items():
        write_text(folder / name, content)


def _warn(options: Options, path: Path) -> None:
    """Say where `Conversation` would join turns in another way than the model was trained with.

    A byte-level tokenizer has a delimiter of its own, which the options have set.
    """
    found = option(options, "delimiter")
    if option(options, "dict_tokenizer") == SUBWORDS and found != _NEWLINE:
        warnings.warn(
            f"{path}: turns were joined by {found!r} in training; Conversation joins them by {_NEWLINE!r}",
            stacklevel=2,
        )
