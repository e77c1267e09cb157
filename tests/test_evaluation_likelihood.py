"""Likelihood over batches: what is counted, that nothing else is, and where it runs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from blenderbot_jax.ensemble import Ensemble
from blenderbot_jax.evaluation.likelihood import Likelihood, likelihood
from blenderbot_jax.model import BlenderbotForConditionalGeneration
from blenderbot_jax.scoring import token_log_probs
from tests.compiling import compiled_programs
from tests.golden.fill import golden_params

IDS = np.array([[5, 6, 7, 2], [8, 9, 2, 0], [4, 2, 0, 0]], np.int32)
LABELS = np.array([[17, 4, 2], [30, 2, -100], [2, -100, -100]], np.int32)


@pytest.fixture(scope="module")
def model(tiny_config):
    return BlenderbotForConditionalGeneration(tiny_config.replace(decoder_layers=1))


@pytest.fixture(scope="module")
def params(model):
    return golden_params(model)


def batch(rows, ids=IDS, labels=LABELS):
    return {"input_ids": ids[rows], "attention_mask": (ids[rows] != 0).astype(np.int32), "labels": labels[rows]}


@pytest.fixture(scope="module")
def found(model, params):
    return likelihood(model, params, [batch([0, 1, 2])])


def test_it_counts_what_token_log_probs_says(model, params, found):
    whole = batch([0, 1, 2])
    log_probs = token_log_probs(model, params, whole["input_ids"], whole["attention_mask"], LABELS)
    assert found.nats == pytest.approx(-float(log_probs.sum()), rel=1e-6)
    assert (found.tokens, found.examples) == (6, 3)
    assert found.loss == pytest.approx(-float(log_probs.sum()) / 6, rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(found.loss))


def test_accuracy_counts_tokens_that_are_likeliest(model, params):
    logits = jax.jit(lambda read: model.apply({"params": params}, IDS[:1], None, read).logits)
    read = np.full((1, 5), model.config.decoder_start_token_id)
    for place in range(4):
        # What stands behind a place does not reach it.
        read[0, place + 1] = logits(read)[0, place].argmax()
    likeliest = read[0, 1:].tolist()
    right = batch([0], labels=np.array([likeliest]))
    assert likelihood(model, params, [right]).token_accuracy == 1
    # What follows depends on the token that is changed, so the wrong one comes last.
    wrong = batch([0], labels=np.array([[*likeliest[:3], (likeliest[3] + 1) % 96]]))
    found = likelihood(model, params, [wrong])
    assert (found.correct, found.tokens, found.token_accuracy) == (3, 4, 0.75)


def test_it_does_not_depend_on_how_examples_are_batched(model, params, found):
    apart = likelihood(model, params, (batch([row]) for row in range(3)))
    assert (apart.correct, apart.tokens, apart.examples) == (found.correct, found.tokens, found.examples)
    assert apart.nats == pytest.approx(found.nats, rel=1e-6)


def test_padding_and_rows_that_fill_a_batch_never_count(model, params, found):
    ids = np.pad(IDS, ((0, 2), (0, 3)))
    labels = np.pad(LABELS, ((0, 2), (0, 4)), constant_values=-100)
    padded = batch([0, 1, 2, 3, 4], ids, labels)
    padded["attention_mask"][3:, 0] = 1
    wide = likelihood(model, params, [padded])
    assert (wide.correct, wide.tokens, wide.examples) == (found.correct, found.tokens, found.examples)
    assert wide.nats == pytest.approx(found.nats, rel=1e-6)


def test_parts_add_up_to_the_whole(model, params, found):
    parts = sum((likelihood(model, params, [batch([row])]) for row in range(3)), Likelihood())
    assert (parts.correct, parts.tokens, parts.examples) == (found.correct, found.tokens, found.examples)
    assert parts.loss == pytest.approx(found.loss, rel=1e-6)


def test_a_shape_is_compiled_once(model, params):
    other = model.clone(config=model.config.replace(dropout=0.3))  # a model that nothing was compiled for
    with compiled_programs("_sums") as compiled:
        for _ in range(2):
            likelihood(other, params, [batch([0, 1]), batch([1, 2]), batch([2])])
    assert len(compiled) == 2


def test_shards_are_measured_where_they_lie(model, params, found):
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def place(leaf):
        split = PartitionSpec(*[None] * (leaf.ndim - 1), "model") if leaf.shape[-1] % 2 == 0 else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, split))

    rows = batch([0, 1, 2, 2])
    rows["labels"][3] = -100
    sharded = {name: jax.device_put(array, NamedSharding(mesh, PartitionSpec("data"))) for name, array in rows.items()}
    for given in (sharded, rows):
        there = likelihood(model, jax.tree.map(place, params), [given])
        assert (there.correct, there.tokens, there.examples) == (found.correct, found.tokens, found.examples)
        assert there.nats == pytest.approx(found.nats, rel=1e-5)


def test_half_precision_is_close(model, params, found):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    there = likelihood(model.clone(dtype=jnp.bfloat16), half, [batch([0, 1, 2])])
    assert there.tokens == found.tokens
    assert there.loss == pytest.approx(found.loss, rel=0.03)


def test_an_ensemble_of_the_same_is_the_same(model, params, found):
    pair = likelihood(Ensemble((model, model)), (params, params), [batch([0, 1, 2])])
    assert pair.nats == pytest.approx(found.nats, rel=1e-5)


def test_figures_of_extreme_counts():
    assert Likelihood(nats=8000.0, tokens=10).perplexity == math.inf
    assert math.isnan(Likelihood().loss)
    assert math.isnan(Likelihood().token_accuracy)
    assert math.isnan(Likelihood(math.nan, 0, 1, 1).perplexity)


@pytest.mark.parametrize(
    ("batches", "says"),
    [
        ([], "no token to measure"),
        ([batch([0], labels=np.full((1, 3), -100))], "no token to measure"),
        ([{"input_ids": IDS, "labels": LABELS}], "this one lacks attention_mask"),
        ([batch([0], labels=np.array([[96]]))], r"labels\[0, 0\] is 96"),
        ([batch([0], ids=np.array([[97, 2]]))], r"input_ids\[0, 0\] is 97"),
    ],
)
def test_what_cannot_be_measured_is_refused(model, params, batches, says):
    with pytest.raises(ValueError, match=says):
        likelihood(model, params, batches)
