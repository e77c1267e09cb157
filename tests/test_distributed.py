"""Meshes of many devices and of several processes, in processes of their own: they find what one device finds."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from blenderbot_jax import processes
from blenderbot_jax.processes import ProcessLostError, initialize, together

ROOT = Path(__file__).parent.parent
CONFIG = {
    "vocab_size": 96,
    "max_position_embeddings": 24,
    "d_model": 24,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 56,
    "scale_embedding": True,
}


@pytest.fixture
def start():
    """Starts processes of `mesh_run`, which end with the test at the latest."""
    started = []

    def start_one(**settings):
        command = [sys.executable, "-m", "tests.mesh_run", json.dumps({"config": CONFIG, **settings})]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}, **pipes))
        return started[-1]

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def start_pair(start):
    """Starts two processes of two devices each."""

    def start_two(**settings):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{free.getsockname()[1]}"
        joint = {"devices": 2, "coordinator": coordinator, "processes": 2, **settings}
        return [start(process=process, **joint) for process in range(2)]

    return start_two


def lines(process, timeout=300):
    """What a process printed, once it has ended well."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err[-3000:]
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]  # gloo prints too


def assert_same(found):
    assert found["loss"] < 1e-5
    assert found["gradients"] < 1e-5
    assert found.get("greedy", 0) == 0
    assert found.get("beams", 0) == 0


@pytest.mark.long
def test_eight_devices_find_what_one_finds(start):
    [found] = lines(start(devices=8, meshes=[(2, 2, 2)]))
    assert_same(found)


@pytest.mark.slow
def test_eight_devices_find_what_one_finds_however_they_are_arranged(start):
    every = lines(start(devices=8, meshes=[(8, 1, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)], quick=False), timeout=900)
    assert len(every) == 4
    for found in every:
        assert_same(found)


@pytest.mark.long
def test_two_processes_find_what_one_finds(start_pair):
    for process in start_pair(meshes=[(2, 1, 2)]):
        [found] = lines(process)
        assert_same(found)


@pytest.mark.slow
def test_two_processes_find_what_one_finds_however_their_devices_are_arranged(start_pair):
    for process in start_pair(meshes=[(4, 1, 1), (2, 2, 1), (1, 1, 4)]):
        for found in lines(process, timeout=900):
            assert_same(found)


# A process that is lost.


@pytest.mark.slow
@pytest.mark.parametrize("victim", [1, 0])
def test_a_process_that_is_killed_ends_the_other_with_a_message(victim, start_pair):
    pair = start_pair(meshes=[(4, 1, 1)], replies=False, forever=True, limits={"heartbeat": 10})
    other = pair[1 - victim]
    while other.stdout.readline() != "step\n":
        assert other.poll() is None
    pair[victim].send_signal(signal.SIGKILL)
    begin = time.monotonic()
    _, err = other.communicate(timeout=90)
    assert time.monotonic() - begin < 60
    assert other.returncode != 0
    assert f"process {1 - victim} of 2 has lost touch with another" in err or "another task died" in err


def test_a_coordinator_that_is_not_there_is_named():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(
        ConnectionError, match=rf"no coordinator answers at {address} after 0 s .* process 0 opens that"
    ):
        initialize(address, processes=2, process=1, timeout=0)


@pytest.mark.slow
def test_processes_that_do_not_come_are_waited_for_no_longer_than_said(start_pair):
    lonely, other = start_pair(meshes=[], limits={"timeout": 5})
    other.kill()
    _, err = lonely.communicate(timeout=60)
    assert lonely.returncode != 0
    assert "did not find each other within 5 s" in err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"coordinator": "node1:1234"},
            "processes and process not given: say all of coordinator, processes and process",
        ),
        ({"processes": 4, "process": 0}, "coordinator not given"),
        ({"coordinator": "node1:1234", "processes": 2, "process": 2}, "the last of processes=2 is 1, not 2"),
        ({"coordinator": "node1", "processes": 2, "process": 0}, "coordinator is \"host:port\".* not 'node1'"),
    ],
)
def test_half_of_what_is_needed_is_refused(monkeypatch, given, message):
    monkeypatch.setattr(processes, "_started", lambda: None)
    with pytest.raises(ValueError, match=message):
        initialize(**given)


def test_one_process_has_nothing_to_join(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("there is nothing to join")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    initialize(processes=1)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "1")
    initialize()


@pytest.mark.parametrize(
    ("environment", "started"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "16"}, None),  # the batch script itself
        ({"SLURM_NTASKS": "16", "SLURM_STEP_NODELIST": "node[1-2]"}, 16),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, 4),
    ],
)
def test_launchers_say_how_many_they_started(monkeypatch, environment, started):
    for name in ("SLURM_NTASKS", "SLURM_STEP_NODELIST", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes._started() == started


def test_errors_of_devices_say_that_a_process_was_lost_where_one_was(monkeypatch):
    broken = jax.errors.JaxRuntimeError(
        "INTERNAL: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:1\nmore"
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match="Gloo"), together():
        raise broken  # one process has no other
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ProcessLostError, match=r"process 0 of 2 has lost touch .* \(INTERNAL: Gloo"), together():
        raise broken
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE"), together():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
