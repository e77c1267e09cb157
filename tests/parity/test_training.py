"""Learning as PyTorch learns: gradients of all parameters, and the losses of 50 steps of SGD and of AdamW."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity needs torch")
pytest.importorskip("transformers", reason="parity needs transformers")

from blenderbot_jax.checkpoint.names import flatten
from blenderbot_jax.training import compile_step, init_state
from blenderbot_jax.training.objective import summed
from tests.parity.reference import TOLERANCE, gradients_from, pair
from tests.training_batches import TINY, batch

STEPS = 50


@pytest.fixture(scope="module", params=["pre-norm", "post-norm"])
def config(request, tiny_config, tiny_small_config):
    post = tiny_small_config.replace(scale_decoder_embedding=False)
    return (tiny_config if request.param == "pre-norm" else post).replace(dropout=0.0)


def loss_of(reference, given):
    return reference(**{name: torch.from_numpy(value).long() for name, value in given.items()}).loss


def test_gradients_of_all_parameters_are_those_of_pytorch(config):
    reference, model, params = pair(config)
    given = batch(0)
    loss_of(reference, given).backward()

    def mean(params):
        sums = summed(model, params, given, TINY)
        return sums.objective / sums.tokens

    ours, theirs = flatten(jax.grad(mean)(params)), flatten(gradients_from(reference))
    assert ours.keys() == theirs.keys()
    for path, wanted in theirs.items():
        np.testing.assert_allclose(ours[path], wanted, atol=TOLERANCE, err_msg=path)
        assert path == "final_logits_bias" or float(abs(wanted).max()) > 0 or path.endswith("k_proj/bias")


def sgd(reference):
    return torch.optim.SGD(reference.parameters(), lr=0.05)


def adamw(reference):
    matrices = [one for one in reference.parameters() if one.ndim > 1]
    others = [one for one in reference.parameters() if one.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        pytest.param(sgd, {"optimizer": "sgd", "learning_rate": 0.05}, marks=pytest.mark.slow),
        (adamw, {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1, "accumulate": 2}),
    ],
)
def test_the_losses_of_fifty_steps_follow_those_of_pytorch(config, theirs, ours):
    reference, model, params = pair(config, scale=0.1)
    optimizer, wanted = theirs(reference), []
    for seed in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(reference, batch(seed % 5))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        optimizer.step()
        wanted.append(loss.item())
    training = TINY.replace(**ours)
    with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic is not strict
        step, state, found = compile_step(model, training), init_state(params, training), []
        for seed in range(STEPS):
            state, metrics = step(state, {}, batch(seed % 5))
            found.append(float(metrics.loss))
    assert wanted[-1] < wanted[0] - 0.3
    np.testing.assert_allclose(found, wanted, atol=1e-3)
