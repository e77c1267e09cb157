"""fit: the same weights in one go or in pieces, and an end whenever it is asked for."""

import os
import signal

import jax
import numpy as np
import pytest

from blenderbot_jax import BlenderbotForConditionalGeneration
from blenderbot_jax.lora import LoraConfig
from blenderbot_jax.training import DivergedError, TrainingFolderError, draw_curves, fit, read_log
from tests.training_batches import TINY, RandomData, batch

pytestmark = pytest.mark.usefixtures("ordinary_promotion")


@pytest.fixture(scope="module")
def model(tiny_config):
    return BlenderbotForConditionalGeneration(tiny_config)


@pytest.fixture(scope="module")
def params(model):
    return model.init_params(jax.random.key(0))


def same(one, other):
    return jax.tree.all(jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), one, other))


class StopAfter:
    """A log that asks for an end, as Ctrl-C or a scheduler would."""

    def __init__(self, step, number):
        self._step, self._number = step, number

    def __call__(self, record):
        if record["step"] == self._step:
            os.kill(os.getpid(), self._number)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_stopped_and_resumed_equals_one_go_bit_for_bit(model, params, tmp_path, number):
    config = TINY.replace(average=0.9)
    whole = fit(model, params, RandomData(), config)
    before = signal.getsignal(number)
    first = fit(model, params, RandomData(), config, folder=tmp_path, logs=[StopAfter(3, number)], log_every=1)
    assert (first.ended, first.step) == ("stopped", 3)
    assert signal.getsignal(number) is before
    second = fit(model, params, RandomData(), config, folder=tmp_path, resume=True, log_every=1)
    assert (second.ended, second.step) == ("all steps", 6)
    assert same(whole.weights, second.weights)
    steps = [record["step"] for record in read_log(tmp_path) if "train/loss" in record]
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.long
def test_the_best_validation_wins_and_patience_ends(model, params, tmp_path):
    valid = [batch(50), batch(51)]
    config = TINY.replace(steps=40, learning_rate=0.03, patience=2)  # so fast that it soon forgets
    trained = fit(model, params, RandomData(), config, valid=valid, folder=tmp_path)
    found = {
        record["step"]: record["valid/perplexity"] for record in read_log(tmp_path) if "valid/perplexity" in record
    }
    best = min(found, key=lambda step: found[step])
    assert trained.ended == "no improvement"
    assert trained.step == best + 4
    np.testing.assert_allclose(trained.best, found[best])
    without_folder = fit(model, params, RandomData(), config, valid=valid)
    assert same(trained.weights, without_folder.weights)
    at_best = fit(model, params, RandomData(), config.replace(steps=best, schedule="constant"))
    assert same(trained.weights, at_best.weights)
    again = fit(model, params, RandomData(), config, valid=valid, folder=tmp_path, resume=True)
    assert (again.ended, again.step) == ("no improvement", trained.step)


@pytest.mark.long
def test_adapters_are_trained_beside_frozen_weights(model, params):
    config = TINY.replace(lora=LoraConfig(rank=2), learning_rate=0.01)
    trained = fit(model, params, RandomData(), config)
    assert all(path.endswith(("q_proj/kernel", "v_proj/kernel")) for path in trained.weights)
    given = batch(0)
    out = model.apply({"params": trained.params}, given["input_ids"], labels=given["labels"])
    before = model.apply({"params": params}, given["input_ids"], labels=given["labels"])
    assert float(out.loss) != float(before.loss)


@pytest.mark.long
def test_a_plateau_halves_the_rate_until_the_end(model, params, tmp_path):
    config = TINY.replace(steps=12, learning_rate=0.03, schedule="plateau", patience=1)
    trained = fit(model, params, RandomData(), config, valid=[batch(50)], folder=tmp_path, log_every=1)
    rates = [record["train/learning_rate"] for record in read_log(tmp_path) if "train/loss" in record]
    assert trained.ended == "all steps"
    assert rates[0] == pytest.approx(0.03)
    assert rates[-1] <= 0.015


def test_a_folder_is_never_mixed_up(model, params, tmp_path):
    fit(model, params, RandomData(), TINY.replace(steps=1), folder=tmp_path)
    with pytest.raises(TrainingFolderError, match="holds a training already"):
        fit(model, params, RandomData(), TINY, folder=tmp_path)
    with pytest.raises(TrainingFolderError, match="its config differs"):
        fit(model, params, RandomData(), TINY, folder=tmp_path, resume=True)
    with pytest.raises(TrainingFolderError, match="only a training with a folder"):
        fit(model, params, RandomData(), TINY, resume=True)


def test_no_data_and_no_numbers_are_refused(model, params):
    class Empty(RandomData):
        def __len__(self):
            return 0

    with pytest.raises(ValueError, match="nothing to train on"):
        fit(model, params, Empty(), TINY)
    with pytest.raises(DivergedError, match="lower the learning rate"):
        fit(model, params, RandomData(), TINY.replace(optimizer="sgd", learning_rate=1e30, clip_norm=None), log_every=1)


def test_a_line_that_was_cut_off_is_left_out_of_the_log(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n{"step": 2, "tra')
    assert read_log(tmp_path) == [{"step": 1, "train/loss": 2.0}]


@pytest.mark.long
def test_curves_are_drawn(model, params, tmp_path):
    pytest.importorskip("matplotlib", reason="curves need matplotlib")
    fit(model, params, RandomData(), TINY, valid=[batch(50)], folder=tmp_path, log_every=1)
    draw_curves(read_log(tmp_path), tmp_path / "curves.svg")
    assert "<svg" in (tmp_path / "curves.svg").read_text()
