"""Logits, loss and gradients as transformers, and half precision close to float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blenderbot_jax.checkpoint.names import flatten

torch = pytest.importorskip("torch", reason="parity is measured against PyTorch")
pytest.importorskip("transformers", reason="parity is measured against transformers")

from tests.parity.reference import (
    TOLERANCE,
    as_torch,
    forward,
    gradients_from,
    largest_difference,
    pair,
    right_padded,
)


@pytest.fixture(params=["tiny_config", "tiny_small_config"])
def models(request):
    # transformers has not scaled the post-norm decoder's embeddings since 4.53
    return pair(request.getfixturevalue(request.param).replace(scale_decoder_embedding=False))


@pytest.fixture
def batch(tiny_config):
    rng = np.random.default_rng(2)
    ids, mask = right_padded(rng, [11, 4, 24], tiny_config.vocab_size)
    replies, reply_mask = right_padded(rng, [6, 9, 2], tiny_config.vocab_size)
    return {"input_ids": ids, "attention_mask": mask}, replies, reply_mask


def expected(reference, **inputs):
    with torch.no_grad():
        return reference(**as_torch(**inputs))


def test_encoder_outputs_stand_in_for_the_source(models, batch):
    reference, model, params = models
    _, replies, _ = batch
    rng = np.random.default_rng(3)
    encoded = rng.normal(size=(*replies.shape[:1], 5, model.config.d_model)).astype(np.float32)
    inputs = {"attention_mask": (np.arange(5) < np.array([[5], [3], [1]])).astype(int), "decoder_input_ids": replies}
    logits = forward(model, params, {**inputs, "encoder_outputs": encoded}).logits
    with torch.no_grad():
        theirs = reference(**as_torch(**inputs), encoder_outputs=(torch.from_numpy(encoded),))
    assert largest_difference(logits, theirs.logits) < TOLERANCE


def awkward(replies, mask):
    """Labels with a pad that counts, a -100 in the middle and -100 after the end."""
    labels = np.where(mask, replies, -100)
    labels[0, 2] = 0
    labels[1, 3] = -100
    return labels


def test_loss_leaves_out_minus_100_and_counts_pad(models, batch):
    reference, model, params = models
    source, replies, mask = batch
    inputs = {**source, "decoder_input_ids": replies, "labels": awkward(replies, mask)}
    ours, theirs = forward(model, params, inputs), expected(reference, **inputs)
    assert largest_difference(ours.loss, theirs.loss) < TOLERANCE
    assert largest_difference(ours.logits, theirs.logits) < TOLERANCE


def test_labels_alone_give_the_loss_and_all_gradients(models, batch):
    reference, model, params = models
    source, replies, mask = batch
    # A -100 in the middle makes pad a decoder input that others attend to; its row takes no gradient from that.
    inputs = {**source, "labels": awkward(replies, mask)}
    loss, gradients = jax.value_and_grad(lambda params: forward(model, params, inputs).loss)(params)
    expected_loss = reference(**as_torch(**inputs)).loss
    expected_loss.backward()
    assert largest_difference(loss, expected_loss.detach()) < TOLERANCE
    theirs = flatten(gradients_from(reference))
    differences = {path: largest_difference(leaf, theirs[path]) for path, leaf in flatten(gradients).items()}
    assert max(differences.values()) < TOLERANCE, {k: v for k, v in differences.items() if v >= TOLERANCE}
    assert jnp.abs(gradients["model"]["shared"]["embedding"]).max() > 100 * TOLERANCE


@pytest.mark.parametrize(("dtype", "storage"), [(jnp.bfloat16, jnp.float32), (jnp.float16, jnp.float16)])
def test_half_precision_stays_near_float32(models, batch, dtype, storage):
    _, model, params = models
    source, replies, mask = batch
    inputs = {**source, "decoder_input_ids": replies, "labels": awkward(replies, mask)}
    exact = forward(model, params, inputs)
    params = jax.tree.map(lambda leaf: leaf.astype(storage), params)
    half = forward(model.clone(dtype=dtype), params, inputs)
    assert half.encoder_last_hidden_state.dtype == dtype
    assert half.logits.dtype == half.loss.dtype == jnp.float32
    # 17 eps is the most seen, for logits up to 6; a lost layer or a wrong scale is off by hundreds
    assert largest_difference(half.logits, exact.logits) < 64 * float(jnp.finfo(dtype).eps)
    assert largest_difference(half.loss, exact.loss) < 64 * float(jnp.finfo(dtype).eps)


def test_the_encoder_survives_what_overflows_float16(tiny_config):
    _, model, params = pair(tiny_config.replace(encoder_layers=2))
    for layer in params["model"]["encoder"]["layers"].values():
        layer["fc2"]["bias"] = jnp.where(jnp.arange(tiny_config.d_model) % 2 == 0, 6e4, -6e4)
    inputs = {"input_ids": np.array([[5, 6, 2]]), "decoder_input_ids": np.array([[1, 7]])}
    out = forward(model.clone(dtype=jnp.float16), params, inputs)
    assert jnp.abs(out.encoder_hidden_states[1]).max() > 5e4
    assert jnp.isfinite(out.encoder_last_hidden_state).all()
