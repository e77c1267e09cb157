"""Where the files of a ParlAI checkpoint are: in a folder, beside a model file, or in a `.tgz` that is unpacked.

ParlAI names everything after the file of the weights: `model`, `model.opt`, `model.dict`, and for the tokenizer
`model.dict.codecs`, or `model.dict-vocab.json` and `model.dict-merges.txt`.
"""

import gzip
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

MODEL = "model"
# Of the files beside the weights.
SUFFIXES = (".opt", ".dict", ".dict.codecs", ".dict-vocab.json", ".dict-merges.txt")
ARCHIVES = (".tgz", ".tar.gz")
MAX_TEXT_BYTES = 64 * 2**20  # the largest published, the dictionary of the 90M model, has 1 MB
_MAX_MEMBERS = 10_000
_MAX_HEADER_BYTES = 2**20
_CHUNK = 2**20


def find(path: Path) -> Path | None:
    """The weights file of the ParlAI checkpoint that a path means, or the archive that holds one; None if neither.

    Args:
        path: a folder with `model` and `model.opt`, and without a `config.json`; the file of the weights itself, with
            its `.opt` beside it; or a `.tgz` or `.tar.gz`.
    """
    if path.is_dir():
        model = path / MODEL
        named = beside(model, ".opt").is_file() or (model.is_file() and beside(model, ".dict").is_file())
        return model if named and not (path / "config.json").is_file() else None
    if is_archive(path):
        return path
    return path if path.is_file() and beside(path, ".opt").is_file() else None


def is_archive(path: Path) -> bool:
    """Whether a path is a packed checkpoint, by its name."""
    return path.is_file() and path.name.endswith(ARCHIVES)


def beside(model: Path, suffix: str) -> Path:
    """The file of a checkpoint with one of `SUFFIXES`.

    Example:
        >>> beside(Path("zoo/model"), ".dict").name
        'model.dict'
    """
    return model.with_name(model.name + suffix)


def read_text(path: Path) -> str:
    """The content of a small text file.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is no UTF-8, or far larger than any such file.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: a ParlAI checkpoint is model, model.opt, model.dict, and model.dict.codecs or "
            "model.dict-vocab.json with model.dict-merges.txt. Copy it from where the others came from"
        )
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, more than the {MAX_TEXT_BYTES} that it may have")
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: the file must be UTF-8 text; byte {error.start} is not. Fetch it again") from None


def unpack(archive: Path, folder: Path, *, weights: bool) -> Path:
    """Take the files of a checkpoint out of an archive, and nothing else of it.

    No name in the archive decides where anything is written. The archive is read once, to its end, so that its checksum
    is compared.

    Args:
        archive: a tar file packed by gzip; its files may stand in one folder.
        folder: an empty folder.
        weights: whether `model` itself is wanted.

    Returns:
        Where the weights are, or would be.

    Raises:
        ValueError: the archive is damaged, is no archive, holds names that lead out of it, links in place of files, or
            two checkpoints, or is too large for the disk.
    """
    places: dict[str, str] = {}
    try:
        with gzip.open(archive) as packed:
            bounded: Any = _Bounded(packed, archive)  # as much of a file as tarfile asks for
            with tarfile.open(fileobj=bounded, mode="r:") as tar:
                for member in _members(archive, tar):
                    _take(archive, tar, member, folder, places, weights=weights)
            while packed.read(_CHUNK):
                pass
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        rule = "must be a whole tar file packed by gzip"
        raise ValueError(f"{archive}: {rule}, this one is cut off, damaged or of another kind ({error})") from None
    if missing := [name for name in (MODEL, f"{MODEL}.opt", f"{MODEL}.dict") if name not in places]:
        raise ValueError(f"{archive} holds no {' and no '.join(missing)}: it is no checkpoint of ParlAI")
    if len(set(places.values())) > 1:
        raise ValueError(f"{archive}: {', '.join(sorted(places))} must stand in one folder, they stand in several")
    return folder / MODEL


def _take(
    archive: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, places: dict[str, str], *, weights: bool
) -> None:
    """Write a member that belongs to a checkpoint, and note in `places` which folder it was in."""
    path = PurePosixPath(member.name)
    if path.name not in (MODEL, *(MODEL + suffix for suffix in SUFFIXES)):
        return
    if path.name in places:
        raise ValueError(f"{archive} holds two files named {path.name}: unpack it, and give one of the folders")
    places[path.name] = str(path.parent)
    if path.name != MODEL or weights:
        _extract(archive, tar, member, folder / path.name)


def _members(archive: Path, tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of an archive, each with a name that stays within it."""
    for count, member in enumerate(tar):
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{archive}: {member.name!r} leads out of the archive, which is refused as a whole")
        if count >= _MAX_MEMBERS:
            raise ValueError(f"{archive} holds more than {_MAX_MEMBERS} files, a checkpoint holds a few")
        yield member


def _extract(archive: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    content = tar.extractfile(member) if member.isreg() and not member.issparse() else None
    if content is None:
        raise ValueError(f"{archive}: {member.name!r} must be a plain file, it is a link or something else")
    if path.name != MODEL and member.size > MAX_TEXT_BYTES:
        raise ValueError(f"{archive}: {member.name!r} may have {MAX_TEXT_BYTES} bytes, it has {member.size}")
    free = shutil.disk_usage(path.parent).free
    if member.size > free:
        raise ValueError(
            f"{archive}: {member.name!r} unpacks to {member.size} bytes, {path.parent} has room for {free}: set TMPDIR "
            "to a larger disk, or unpack the archive yourself and give the folder"
        )
    with open(path, "xb") as file:
        shutil.copyfileobj(content, file, _CHUNK)


class _Bounded:
    """A file that gives no more than a mebibyte at once: tarfile reads a header of whatever length it claims."""

    def __init__(self, file: gzip.GzipFile, archive: Path) -> None:
        self._file = file
        self._archive = archive

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise ValueError(f"{self._archive}: a header may have {_MAX_HEADER_BYTES} bytes, one claims {size}")
        return self._file.read(size)

    def seek(self, position: int) -> int:
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()
