"""A packed checkpoint is unpacked whole and safely, or refused."""

import gzip
import io
import tarfile

import pytest

from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.hub import CheckpointNotFoundError, locate
from blenderbot_jax.parlai import source
from tests.fuzzing import at_most, damaged, generator
from tests.parlai_files import tiny_config, write_archive, write_checkpoint

SMALL = ("model.opt", "model.dict", "model.dict-vocab.json", "model.dict-merges.txt")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parlai") / "checkpoint"
    write_checkpoint(folder, "prelayernorm")
    return folder


def unpack(archive, tmp_path, *, weights=True):
    folder = tmp_path / "unpacked"
    folder.mkdir(exist_ok=True)
    return source.unpack(archive, folder, weights=weights)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write_members(path, members):
    """An archive of (name, content) pairs, or (TarInfo, content)."""
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def members_of(checkpoint):
    return [(path.name, path.read_bytes()) for path in sorted(checkpoint.iterdir())]


def refusal(archive, tmp_path):
    with pytest.raises(ValueError, match=r"\S") as error:
        unpack(archive, tmp_path)
    assert str(error.value).startswith(str(archive))
    return str(error.value)


@pytest.mark.parametrize("within", ["", "./", "blender_3B/", "a/b/"])
def test_the_files_of_a_checkpoint_are_taken_out(checkpoint, tmp_path, within):
    (tmp_path / "extra").mkdir()
    archive = write_archive(tmp_path / "x.tgz", checkpoint, within)
    model = unpack(archive, tmp_path)
    assert content(model.parent) == content(checkpoint)


def test_other_files_stay_in_the_archive(checkpoint, tmp_path):
    others = [("model.trainstats", b"{}"), ("notes/readme", b"hello"), ("model.dict.opt", b"{}")]
    model = unpack(write_members(tmp_path / "x.tar.gz", members_of(checkpoint) + others), tmp_path)
    assert content(model.parent) == content(checkpoint)


def test_the_weights_stay_in_the_archive_where_nobody_wants_them(checkpoint, tmp_path):
    archive = write_archive(tmp_path / "x.tgz", checkpoint)
    model = unpack(archive, tmp_path, weights=False)
    assert sorted(path.name for path in model.parent.iterdir()) == sorted(SMALL)
    assert BlenderbotConfig.from_pretrained(archive) == tiny_config("prelayernorm")
    assert not (locate(archive, ("*.json",)) / "model").exists()


@pytest.mark.parametrize("name", ["../model", "a/../../model.opt", "/etc/model", "../../elsewhere", "x/.."])
def test_a_name_that_leads_out_of_the_archive_is_refused_wherever_it_stands(checkpoint, tmp_path, name):
    for members in ([(name, b"x"), *members_of(checkpoint)], [*members_of(checkpoint), (name, b"x")]):
        message = refusal(write_members(tmp_path / "x.tgz", members), tmp_path)
        assert f"{name!r} leads out of the archive, which is refused as a whole" in message
        assert sorted(path.name for path in tmp_path.iterdir()) == ["unpacked", "x.tgz"]
        for path in (tmp_path / "unpacked").iterdir():
            path.unlink()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_what_is_no_plain_file_is_refused(checkpoint, tmp_path, kind):
    link = tarfile.TarInfo("model.opt")
    link.type, link.linkname = kind, "/etc/passwd"
    others = [(name, data) for name, data in members_of(checkpoint) if name != "model.opt"]
    message = refusal(write_members(tmp_path / "x.tgz", [*others, (link, b"")]), tmp_path)
    assert "'model.opt' must be a plain file, it is a link or something else" in message


def test_two_checkpoints_in_one_archive_are_refused(checkpoint, tmp_path):
    twice = [*members_of(checkpoint), *((f"other/{name}", data) for name, data in members_of(checkpoint))]
    assert "holds two files named model" in refusal(write_members(tmp_path / "x.tgz", twice), tmp_path)


def test_files_from_several_folders_are_refused(checkpoint, tmp_path):
    spread = [(f"{name[-1]}/{name}", data) for name, data in members_of(checkpoint)]
    assert "must stand in one folder, they stand in several" in refusal(
        write_members(tmp_path / "x.tgz", spread), tmp_path
    )


@pytest.mark.parametrize("name", ["model", "model.opt", "model.dict"])
def test_what_is_missing_is_named(checkpoint, tmp_path, name):
    archive = write_archive(tmp_path / "x.tgz", checkpoint, leave_out=[name])
    assert f"holds no {name}: it is no checkpoint of ParlAI" in refusal(archive, tmp_path)


def test_a_small_file_that_is_large_is_refused_before_it_is_written(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(source, "MAX_TEXT_BYTES", 1000)
    message = refusal(write_archive(tmp_path / "x.tgz", checkpoint), tmp_path)
    assert "may have 1000 bytes, it has" in message


def test_more_than_the_disk_holds_is_refused(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(source.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10})())
    assert "has room for 10: set TMPDIR" in refusal(write_archive(tmp_path / "x.tgz", checkpoint), tmp_path)


def test_a_header_that_claims_much_memory_is_refused(tmp_path):
    # tarfile reads an extended header whole; this one would be 2 GiB of zeros, packed into 2 MB.
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 2**31
    with gzip.open(tmp_path / "x.tgz", "wb", compresslevel=1) as file:
        file.write(header.tobuf())
        file.write(bytes(2**22))
    assert "a header may have 1048576 bytes" in refusal(tmp_path / "x.tgz", tmp_path)


def test_an_archive_of_very_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "_MAX_MEMBERS", 5)
    many = write_members(tmp_path / "x.tgz", [(str(i), b"") for i in range(7)])
    assert "holds more than 5 files" in refusal(many, tmp_path)


def test_a_truncated_archive_is_refused(checkpoint, tmp_path):
    whole = write_archive(tmp_path / "whole.tgz", checkpoint).read_bytes()
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        (tmp_path / "x.tgz").write_bytes(whole[:length])
        for path in (tmp_path / "unpacked").iterdir() if (tmp_path / "unpacked").exists() else ():
            path.unlink()
        assert "must be a whole tar file packed by gzip" in refusal(tmp_path / "x.tgz", tmp_path)


def test_another_kind_of_file_is_refused(tmp_path):
    for data in (b"PK\3\4" + bytes(600), b"hello", gzip.compress(b"no tar at all" * 100)):
        (tmp_path / "x.tgz").write_bytes(data)
        assert "cut off, damaged or of another kind" in refusal(tmp_path / "x.tgz", tmp_path)


def test_a_file_that_is_neither_archive_nor_weights_is_refused_as_before(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(
        CheckpointNotFoundError, match=r"is a file: give the folder .* with its \.opt beside it, or a \.tgz"
    ):
        locate(tmp_path / "model.bin", ())


def test_damaged_archives_are_refused_or_give_what_was_packed(checkpoint, tmp_path):
    """The checksum of gzip shows any damage to the content."""
    small = tmp_path / "small"
    small.mkdir()
    for name, data in members_of(checkpoint):
        (small / name).write_bytes(data[:3000])
    whole = write_archive(tmp_path / "whole.tgz", small).read_bytes()
    refused = 0
    for seed in range(120):
        rng = generator("tgz", seed)
        (tmp_path / "x.tgz").write_bytes(damaged(whole, whole, rng))
        out = tmp_path / f"out-{seed}"
        out.mkdir()
        message = None
        try:
            with at_most(5):
                source.unpack(tmp_path / "x.tgz", out, weights=True)
        except ValueError as error:
            message = str(error)
        if message is None:
            assert content(out) == content(small), seed
        else:
            assert message.startswith(str(tmp_path / "x.tgz")), seed
            refused += 1
    assert refused > 80
