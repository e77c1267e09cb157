"""Logs of a training: what TensorBoard reads from the event files."""

import builtins
import struct
import time

import pytest

from blenderbot_jax.training.logs import jsonl_log, read_log, tensorboard_log


def events(path):
    """The scalars in an event file: records of a length, its checksum, an Event message and its checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    data, found, at = path.read_bytes(), [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        at += length + 16
    return found


def test_tensorboard_gets_every_number_at_its_step(tmp_path):
    pytest.importorskip("tensorboardX")
    log = tensorboard_log(tmp_path)
    log({"step": 1, "train/loss": 2.5, "note": "a text is no curve"})
    log({"step": 20, "train/loss": 2.25, "valid/perplexity": 12})
    [path] = tmp_path.iterdir()
    wanted = [(1, "train/loss", 2.5), (20, "train/loss", 2.25), (20, "valid/perplexity", 12.0)]
    end = time.monotonic() + 60  # a thread of tensorboardX writes
    while events(path) != wanted and time.monotonic() < end:
        time.sleep(0.1)
    assert events(path) == wanted


def test_without_tensorboard_the_extra_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **options):
        if name.startswith("tensorboardX"):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'blenderbot-jax\[train\]'"):
        tensorboard_log(tmp_path)


def test_a_log_goes_on_from_the_step_that_training_goes_on_from(tmp_path):
    for step in (1, 2, 3):
        jsonl_log(tmp_path, from_step=step - 1)({"step": step, "train/loss": float(step)})
    jsonl_log(tmp_path, from_step=1)({"step": 2, "train/loss": 9.0})
    assert [record["train/loss"] for record in read_log(tmp_path)] == [1.0, 9.0]
