"""PyTorch's zip checkpoints (`torch.save` since version 1.6), read without PyTorch and without running their pickle.

Such a file is an uncompressed zip archive: `<prefix>/data.pkl` pickles the state dict, and `<prefix>/data/<key>` holds
the bytes of one storage.

The archive's checksums are not compared: that would read every weight twice, and PyTorch need not write true ones
(`torch.serialization.set_crc32_options`).

Sources: torch/serialization.py (`_save`); APPNOTE.TXT 4.3.7 for the zip format.
"""

import os
import struct
import zipfile
from pathlib import Path
from re import fullmatch

from blenderbot_jax.checkpoint.pickle_data import interpret
from blenderbot_jax.checkpoint.tensor_file import CheckpointError, TensorEntry, is_count, quote
from blenderbot_jax.checkpoint.torch_state import (
    DAMAGED,
    MAX_PICKLE_BYTES,
    OTHER_FILE,
    RESAVE,
    StateDict,
    Storage,
    entries_of,
)

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature ... length of the name, length of the extra field
_ENCRYPTED = 0x1


def read_torch_zip(path: str | os.PathLike[str], part: str | None = None) -> dict[str, TensorEntry]:
    """Read and check the table of contents of a PyTorch zip checkpoint that holds a plain state dict.

    Args:
        path: the file, usually `pytorch_model.bin`.
        part: as in `read_torch`.

    Returns:
        The entries by name, in the order of the state dict. Tied tensors have equal entries.

    Raises:
        CheckpointError: the file is damaged, hostile, or holds more than tensors by name; the message names the file,
            the tensor or symbol, and the rule.
        OSError: the file cannot be opened.
    """
    archive = _Archive(Path(path))
    state = StateDict(archive.path, part)

    def storage(reference: object) -> Storage:
        key, dtype, count, _ = state.storage(reference, 5)
        _, size = archive.locate(f"data/{key}")
        if not is_count(count) or count * dtype.itemsize != size:
            wanted = f"{quote(count)} elements of {dtype.itemsize} bytes"
            raise state.refusal(f"storage {key!r} must hold {wanted}, its record has {size} bytes", DAMAGED)
        return Storage(key, dtype, count)

    value = interpret(archive.pickle(), f"{path}: data.pkl", state.symbols, storage, state.unread)
    return entries_of(archive.path, state.views(value), lambda key: archive.locate(f"data/{key}")[0])


class _Archive:
    """The zip archive: where each of its records lies, every record uncompressed and within the file."""

    def __init__(self, path: Path):
        self.path = path
        self._file_size = path.stat().st_size
        self._records = self._read_directory()
        prefixes = [name.removesuffix("/data.pkl") for name in self._records if fullmatch(r"[^/]+/data\.pkl", name)]
        if len(prefixes) != 1:
            raise self.refusal(f"must hold one <name>/data.pkl, holds {len(prefixes)}", OTHER_FILE)
        self._prefix = prefixes[0]
        if f"{self._prefix}/byteorder" in self._records and self._read("byteorder", 16) != b"little":
            raise self.refusal("was written on a big-endian machine, only little-endian files are read", RESAVE)

    def pickle(self) -> bytes:
        """The pickled state dict."""
        return self._read("data.pkl", MAX_PICKLE_BYTES)

    def locate(self, name: str) -> tuple[int, int]:
        """The position and the size in bytes of a record's content in the file.

        The directory at the end of an archive only points to the header before each record, whose own length is part of
        where the content begins.
        """
        record = self._records.get(f"{self._prefix}/{name}")
        if record is None:
            raise self.refusal(f"record {quote(name)} is missing", DAMAGED)
        if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
            raise self.refusal(f"record {quote(name)} is compressed, PyTorch never writes one", RESAVE)
        # A damaged directory can point anywhere, before the beginning too.
        inside = 0 <= record.header_offset <= self._file_size
        header = self._bytes(record.header_offset, _LOCAL_HEADER.size) if inside else b""
        if len(header) != _LOCAL_HEADER.size or not header.startswith(b"PK\3\4") or record.flag_bits & _ENCRYPTED:
            raise self.refusal(f"record {quote(name)} has no plain zip header before it", DAMAGED)
        _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        begin = record.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        if begin + record.file_size > self._file_size:
            rule = f"record {quote(name)} must end within the file's {self._file_size} bytes"
            raise self.refusal(f"{rule}, ends at {begin + record.file_size}", DAMAGED)
        return begin, record.file_size

    def refusal(self, rule: str, way_out: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {rule}; {way_out}")

    def _read(self, name: str, limit: int) -> bytes:
        begin, size = self.locate(name)
        if size > limit:
            raise self.refusal(f"record {quote(name)} may take {limit} bytes, has {size}", DAMAGED)
        return self._bytes(begin, size)

    def _bytes(self, begin: int, size: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(begin)
            return file.read(size)

    def _read_directory(self) -> dict[str, zipfile.ZipInfo]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                records = archive.infolist()
        # zipfile lets errors of the modules it decodes with escape on damaged directories.
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OSError) as error:
            raise self.refusal(f"is a zip archive that is cut off or damaged ({error})", DAMAGED) from None
        by_name = {record.filename: record for record in records}
        if len(by_name) != len(records):
            raise self.refusal("holds two records of one name", DAMAGED)
        return by_name
