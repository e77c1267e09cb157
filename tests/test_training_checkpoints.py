"""Training checkpoints survive what happens to files and to processes."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from blenderbot_jax.training import TrainingCheckpoints, TrainingFolderError
from blenderbot_jax.training.checkpoints import read_settings, write_settings

LIKE = {"weights": jnp.zeros((8, 4)), "count": jnp.zeros((), jnp.int32)}


def state(value):
    return {"weights": jnp.full((8, 4), float(value)), "count": jnp.int32(value)}


def saved(folder, losses, **settings):
    """Checkpoints of steps 1, 2, ... with these losses, and the warnings that came."""
    warnings = []
    checkpoints = TrainingCheckpoints(folder, on_warning=warnings.append, **settings)
    for step, loss in enumerate(losses, start=1):
        checkpoints.save(step, state(step), {"best": loss}, metrics={"loss": loss})
    checkpoints.wait()
    return checkpoints, warnings


def test_the_latest_and_the_best_are_kept(tmp_path):
    checkpoints, _ = saved(tmp_path, [3.0, 1.0, 2.0, 4.0, 5.0], keep=2)
    assert checkpoints.steps == (2, 4, 5)
    assert checkpoints.best == 2
    found, record = checkpoints.restore(LIKE)
    assert (int(found["count"]), record) == (5, {"best": 5.0})
    best, _ = checkpoints.restore(LIKE, checkpoints.best)
    np.testing.assert_array_equal(best["weights"], np.full((8, 4), 2.0))
    checkpoints.close()


def test_a_metric_that_should_grow_is_best_at_its_highest(tmp_path):
    checkpoints, _ = saved(tmp_path, [0.1, 0.5, 0.3], keep=1, higher_is_better=True)
    assert (checkpoints.best, checkpoints.steps) == (2, (2, 3))


def test_another_process_reads_what_one_has_written(tmp_path):
    saved(tmp_path, [2.0, 1.0])[0].close()
    again = TrainingCheckpoints(tmp_path)
    assert (again.steps, again.best) == ((1, 2), 2)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(tmp_path, damage):
    saved(tmp_path, [2.0, 1.0])[0].close()
    folder = tmp_path / "checkpoints" / "2" / "state"
    if damage == "gone":
        shutil.rmtree(folder)
    else:
        for path in folder.rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[:10])
    warnings = []
    again = TrainingCheckpoints(tmp_path, on_warning=warnings.append)
    found, record = again.restore(LIKE)
    assert (int(found["count"]), record) == (1, {"best": 2.0})
    assert len(warnings) == 1
    assert "step 2 cannot be read" in warnings[0]
    again.forget_after(1)
    again.save(2, state(20), {"best": 0.5}, metrics={"loss": 0.5})
    again.wait()
    assert int(again.restore(LIKE)[0]["count"]) == 20


def test_a_writer_that_was_killed_loses_what_it_was_writing_alone(tmp_path):
    saved(tmp_path, [2.0])[0].close()
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "1", folder / "2.orbax-checkpoint-tmp")  # what a kill leaves behind
    again = TrainingCheckpoints(tmp_path)
    assert again.steps == (1,)
    assert int(again.restore(LIKE)[0]["count"]) == 1
    assert not (folder / "2.orbax-checkpoint-tmp").exists()


def test_a_full_disk_is_told_and_stops_nothing(tmp_path, monkeypatch):
    checkpoints, warnings = saved(tmp_path, [2.0])

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, "save", full)
        checkpoints.save(2, state(2), {"best": 1.0}, metrics={"loss": 1.0})
    assert len(warnings) == 1
    assert "step 2 could not be written" in warnings[0]
    assert "No space left" in warnings[0]
    checkpoints.save(3, state(3), {"best": 1.0}, metrics={"loss": 1.0})
    checkpoints.wait()
    assert checkpoints.steps == (1, 3)


def test_it_is_restored_on_another_number_of_devices(tmp_path):
    saved(tmp_path, [1.0])[0].close()
    mesh = jax.make_mesh((4,), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    like = {"weights": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=split), "count": LIKE["count"]}
    found, _ = TrainingCheckpoints(tmp_path).restore(like)
    assert found["weights"].sharding == split
    np.testing.assert_array_equal(found["weights"], np.full((8, 4), 1.0))


def test_what_is_not_there_is_said(tmp_path):
    checkpoints = TrainingCheckpoints(tmp_path)
    assert (checkpoints.steps, checkpoints.best) == ((), None)
    with pytest.raises(TrainingFolderError, match="holds no checkpoint"):
        checkpoints.restore(LIKE)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        TrainingCheckpoints(tmp_path, keep=0)


def test_a_folder_remembers_what_it_is_for(tmp_path):
    assert read_settings(tmp_path) is None
    write_settings(tmp_path, {"data": "abc"})
    assert read_settings(tmp_path) == {"data": "abc"}
    (tmp_path / "training.json").write_text(json.dumps({"kind": "else"}))
    with pytest.raises(TrainingFolderError, match="no record of a training"):
        read_settings(tmp_path)
