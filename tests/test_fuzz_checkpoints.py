"""Damaged weight files of every form are refused, or read as they say: never another error, a hang, or much memory.

Every file is made from a seed, which a failure shows.
"""

import sys

import ml_dtypes
import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from safetensors.numpy import save

from blenderbot_jax.checkpoint.flax_file import read_flax
from blenderbot_jax.checkpoint.tensor_file import read_safetensors
from blenderbot_jax.checkpoint.torch_file import read_torch
from tests.fuzzing import at_most, damaged, generator, refused_or_consistent
from tests.torch_pickles import (
    EMPTY_DICT,
    FALSE,
    ORDERED_DICT,
    PROTO,
    call,
    items,
    state_dict,
    storage,
    tensor,
    write_legacy,
    write_zip,
)

READERS = {"safetensors": read_safetensors, "zip": read_torch, "legacy": read_torch, "flax": read_flax}
SECONDS = 5  # per file; one takes about a millisecond, and the machine may be busy
MORE_MEMORY = 200 * 2**20

ARRAYS = {
    "model.shared.weight": np.arange(12, dtype="f4").reshape(3, 4),
    "model.encoder.layers.0.fc1.weight": np.arange(6, dtype="f2").reshape(2, 3),
    "model.encoder.layers.0.fc1.bias": np.arange(4).astype(ml_dtypes.bfloat16),
    "final_logits_bias": np.zeros((1, 3), "f8"),
    "steps": np.array(7),
}
PROGRAMS = (
    state_dict(a=tensor(), b=tensor(offset=1, shape=(5,), strides=(1,)), c=tensor(strides=(1, 2))),
    PROTO + EMPTY_DICT + items(a=call("torch._utils._rebuild_parameter", tensor(), FALSE, ORDERED_DICT)) + b".",
    state_dict(a=tensor(storage(), 2, (2, 1, 2), (2, 7, 1)), tied=tensor(shape=(0, 3))),
)


def nested(arrays):
    tree = {"final_logits_bias": arrays["final_logits_bias"], "model": {"shared": {"embedding": arrays["steps"]}}}
    tree["model"]["encoder"] = {"layers": {"0": {"fc1": {"kernel": arrays["model.encoder.layers.0.fc1.weight"]}}}}
    return tree


def by_torch(path, zipped):
    """Files that PyTorch itself writes, if it is there."""
    try:
        import torch
    except ImportError:
        return
    whole = torch.arange(24.0).reshape(2, 3, 4)
    module = torch.nn.Sequential(torch.nn.Embedding(3, 2), torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
    saved = ({"whole": whole, "part": whole[1:, ::2], "half": whole.half(), "tied": whole}, module.state_dict())
    for protocol, value in zip((2, 4), saved, strict=True):
        torch.save(value, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
        yield path.read_bytes()


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory):
    """A few undamaged files of each form."""
    path = tmp_path_factory.mktemp("whole") / "weights"
    files = {
        "safetensors": [save(ARRAYS), save({"a": ARRAYS["steps"]}, metadata={"format": "pt"})],
        "flax": [msgpack_serialize(nested(ARRAYS)), msgpack_serialize({"shared": {"embedding": np.zeros((2, 300))}})],
    }
    for form, write in (("zip", write_zip), ("legacy", write_legacy)):
        files[form] = list(by_torch(path, form == "zip"))
        for program in PROGRAMS:
            write(path, program)
            files[form].append(path.read_bytes())
    return files


@pytest.mark.parametrize("form", READERS)
def test_the_undamaged_files_are_read(whole_files, tmp_path, form):
    for content in whole_files[form]:
        (tmp_path / "weights").write_bytes(content)
        assert not refused_or_consistent(READERS[form], tmp_path / "weights")


def peak_memory():
    resource = pytest.importorskip("resource")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def fuzz(form, whole_files, path, count):
    """Damage and read `count` files; how many were refused."""
    before, refused = peak_memory(), 0
    for seed in range(count):
        rng = generator(form, seed)
        content, donor = rng.choice(whole_files[form]), rng.choice(whole_files[form])
        path.write_bytes(damaged(content, donor, rng))
        try:
            with at_most(SECONDS):
                refused += refused_or_consistent(READERS[form], path)
        except Exception as error:
            error.add_note(f"the file is the one of generator({form!r}, {seed})")
            raise
    assert peak_memory() - before < MORE_MEMORY
    return refused


@pytest.mark.parametrize("form", READERS)
def test_damaged_files_are_refused_or_read_as_they_say(whole_files, tmp_path, form):
    refused = fuzz(form, whole_files, tmp_path / "weights", 500)
    # Damage to the numbers themselves cannot be seen; damage to what describes them mostly is.
    assert 100 < refused < 500


@pytest.mark.slow
@pytest.mark.parametrize("form", READERS)
def test_a_hundred_thousand_damaged_files_are_refused_or_read_as_they_say(whole_files, tmp_path, form):
    refused = fuzz(form, whole_files, tmp_path / "weights", 25_000)
    assert 5_000 < refused < 25_000
