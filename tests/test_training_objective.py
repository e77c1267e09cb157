"""The objective: sums of losses, against the rules written out in plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blenderbot_jax import BlenderbotForConditionalGeneration
from blenderbot_jax.training.objective import summed
from tests.training_batches import TINY, batch


@pytest.fixture(scope="module")
def model(tiny_config):
    return BlenderbotForConditionalGeneration(tiny_config)


@pytest.fixture(scope="module")
def params(model):
    return jax.tree.map(lambda leaf: 4 * leaf, model.init_params(jax.random.key(0)))


def log_probs(model, params, given):
    out = model.apply({"params": params}, given["input_ids"], given["attention_mask"], labels=given["labels"])
    return np.asarray(jax.nn.log_softmax(out.logits), np.float64), float(out.loss)


def test_the_loss_is_that_of_the_forward_pass(model, params):
    given = batch(0)
    sums = summed(model, params, given, TINY)
    assert float(sums.tokens) == (given["labels"] != -100).sum()
    _, loss = log_probs(model, params, given)
    np.testing.assert_allclose(sums.loss / sums.tokens, loss, rtol=1e-5)
    np.testing.assert_array_equal(sums.objective, sums.loss)


def test_smoothing_spreads_its_share_over_the_vocabulary(model, params):
    given, share = batch(1), 0.2
    found, _ = log_probs(model, params, given)
    wanted = 0.0
    for b, t in np.argwhere(given["labels"] != -100):
        even = -found[b, t].mean()
        wanted += (1 - share) * -found[b, t, given["labels"][b, t]] + share * even
    sums = summed(model, params, given, TINY.replace(label_smoothing=share))
    np.testing.assert_allclose(sums.objective, wanted, rtol=1e-5)
    assert float(sums.loss) != float(sums.objective)


def test_unlikelihood_counts_each_earlier_word_once_and_never_the_label(model, params):
    given, weight = batch(2), 0.5
    given["labels"] = np.array(
        [[7, 8, 7, 9, 8, 2], [5, 5, 5, 2, -100, -100], [6, 2, -100, -100, -100, -100], [3, -100, 4, 3, 3, 2]], np.int32
    )
    found, _ = log_probs(model, params, given)
    wanted = 0.0
    for row, labels in enumerate(given["labels"]):
        for t, label in enumerate(labels):
            if label == -100:
                continue
            wanted += -found[row, t, label]
            for candidate in {c for c in labels[:t].tolist() if c not in (-100, label)}:
                wanted += weight * -np.log(1 - np.exp(found[row, t, candidate]))
    sums = summed(model, params, given, TINY.replace(unlikelihood=weight))
    np.testing.assert_allclose(sums.objective, wanted, rtol=1e-4)


@pytest.mark.long
def test_a_batch_without_labels_has_finite_gradients(model, params):
    given = {**batch(3), "labels": np.full((4, 6), -100, np.int32)}
    config = TINY.replace(label_smoothing=0.1, unlikelihood=1.0)
    value, gradients = jax.value_and_grad(lambda params: summed(model, params, given, config).objective)(params)
    assert float(value) == 0
    assert all(bool(jnp.all(leaf == 0)) for leaf in jax.tree.leaves(gradients))
