"""`blenderbot-jax finetune` as a user runs it, stopped in every way, and what it leaves behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from blenderbot_jax import Chatbot, Checkpoint
from blenderbot_jax.cli import main
from blenderbot_jax.lora import attach, load_lora
from blenderbot_jax.training import read_log
from blenderbot_jax.training.checkpoints import write_settings

TALK = [
    ("What is the capital of the sea?", "It is called Brinetown."),
    ("Who lives in the lighthouse?", "An old captain lives there."),
    ("Do fish sleep at night?", "They nap whenever they like."),
    ("How deep is the harbour?", "Deep enough for seven whales."),
] * 4
pytestmark = pytest.mark.usefixtures("ordinary_promotion")
QUICK = ("--steps", "6", "--batch-size", "8", "--validate-every", "2", "--max-source", "32", "--max-target", "16")


@pytest.fixture
def talk(tmp_path):
    path = tmp_path / "talk.jsonl"
    turns = [[{"speaker": "A", "text": said}, {"speaker": "B", "text": reply}] for said, reply in TALK]
    path.write_text("".join(json.dumps({"turns": pair}) + "\n" for pair in turns))
    return path


def run(*arguments):
    return CliRunner().invoke(main, ["finetune", *map(str, arguments)])


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.long
def test_it_writes_a_folder_that_chats_and_says_what_it_did(talk, tmp_path):
    out = tmp_path / "bot"
    result = run(talk, "--valid", talk, "--output", out, *QUICK)
    assert result.exit_code == 0, result.output
    assert "16 examples in 2 batches of 8, 16 to validate on; 6 steps of adamw" in result.output
    assert "6 steps (all steps), best perplexity" in result.output
    losses = [record["train/loss"] for record in read_log(out / "training") if "train/loss" in record]
    found = [record["valid/perplexity"] for record in read_log(out / "training") if "valid/perplexity" in record]
    assert len(found) == 3
    assert found[-1] < found[0]
    assert losses
    assert (out / "training" / "curves.svg").stat().st_size > 1000
    assert Chatbot.from_pretrained(out).configured(max_length=12).reply("Do fish sleep at night?")


@pytest.mark.long
def test_adapters_are_saved_apart_and_merged(talk, tmp_path):
    out = tmp_path / "bot"
    result = run(talk, "--output", out, *QUICK, "--lora-rank", "2", "--lora-target", "fc1", "--learning-rate", "0.01")
    assert result.exit_code == 0, result.output
    adapters, config = load_lora(out / "adapter")
    assert (config.rank, config.targets) == (2, ("fc1",))
    before, after = Checkpoint.from_pretrained("demo"), Checkpoint.from_pretrained(out)
    ids = np.array([[300, 301, 2]], np.int32)
    beside = before.model.apply({"params": attach(before.params, adapters, config)}, ids, labels=ids).logits
    np.testing.assert_allclose(after.model.apply({"params": after.params}, ids, labels=ids).logits, beside, atol=1e-3)


def test_settings_that_make_no_sense_are_refused_in_a_line(talk, tmp_path):
    out = tmp_path / "bot"
    for arguments, said in (
        (("--resume",), "holds no training to resume"),
        (("--steps", "3", "--epochs", "2"), "say --steps or --epochs"),
        (("--accumulate", "3", "--batch-size", "8"), "does not divide"),
        (("--lora-rank", "2", "--lora-target", "qproj"), "no kernel is called 'qproj'"),
        (("--fsdp", "3"), "device"),
    ):
        result = run(talk, "--output", out, *arguments)
        assert result.exit_code != 0
        assert said in result.output, result.output
    assert not (out / "config.json").exists()
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"turns": [\n')
    result = run(bad, "--output", tmp_path / "other")
    assert result.exit_code != 0
    assert "bad.jsonl" in result.output


def test_a_folder_with_a_model_or_a_training_is_not_overwritten(talk, tmp_path):
    model, training = tmp_path / "model", tmp_path / "training"
    model.mkdir()
    (model / "config.json").write_text("{}")
    write_settings(training / "training", {"data": "another"})
    for out, said in ((model, "holds a model already"), (training, "holds a training already")):
        result = run(talk, "--output", out, *QUICK)
        assert result.exit_code == 2
        assert said in result.output
    assert (model / "config.json").read_text() == "{}"


def start(talk, out, *more):
    """The command in a process of its own, with steps slow enough to interrupt."""
    command = [sys.executable, "-m", "blenderbot_jax", "finetune", str(talk), "--output", str(out), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ))


def wait_for_step(out, step):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        there = [int(path.name) for path in (out / "training" / "checkpoints").glob("*") if path.name.isdigit()]
        if there and max(there) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"no checkpoint of step {step} came")


@pytest.mark.slow
def test_killed_and_resumed_equals_one_go_bit_for_bit(talk, tmp_path):
    options = (
        "--steps",
        "20",
        "--batch-size",
        "8",
        "--validate-every",
        "5",
        "--max-source",
        "32",
        "--max-target",
        "16",
    )
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    process = start(talk, whole, *options)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    process = start(talk, pieces, *options)
    wait_for_step(pieces, 10)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    process = start(talk, pieces, *options, "--resume")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    one, other = weights(whole), weights(pieces)
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)


@pytest.mark.slow
def test_sigterm_saves_and_says_how_to_go_on(talk, tmp_path):
    out = tmp_path / "bot"
    options = ("--steps", "5000", "--batch-size", "8", "--validate-every", "5", "--max-source", "32")
    process = start(talk, out, *options)
    wait_for_step(out, 5)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "go on with the same command and --resume" in output
    stopped = int(re.search(r"Stopped after ([\d,]+) steps", output)[1].replace(",", ""))
    assert (out / "training" / "checkpoints" / str(stopped)).is_dir()
