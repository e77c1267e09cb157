"""Products of training: all four of a product and its gradients, as plain arrays have them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from blenderbot_jax import BlenderbotConfig, BlenderbotForConditionalGeneration, native
from blenderbot_jax.dense import DenseKernel, densely, product
from blenderbot_jax.training import TrainingConfig, init_state, train_step
from tests.natively import needs_native

REFUSED = (ValueError, jax.errors.JaxRuntimeError)
BOTH = [False, True]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def laid(matrix, transposed):
    return jnp.asarray(np.ascontiguousarray(matrix.T) if transposed else matrix)


@needs_native
@settings(max_examples=60, deadline=None)
@example(m=150, k=900, n=700, turned=(False, True), seed=0)  # several parts of the inner size, for two threads
@example(m=700, k=130, n=420, turned=(True, False), seed=0)
@example(m=1, k=1, n=1, turned=(True, True), seed=0)
@given(
    m=st.integers(1, 60),
    k=st.integers(1, 60),
    n=st.integers(1, 100),
    turned=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 9),
)
def test_products_of_any_shape_are_the_plain_ones_either_side_transposed_or_not(m, k, n, turned, seed):
    a, b = normal(m, k, seed=seed), normal(k, n, seed=seed + 10) / np.float32(np.sqrt(k))
    found = native.dense_product(laid(a, turned[0]), laid(b, turned[1]), *turned)
    np.testing.assert_allclose(found, a.astype(np.float64) @ b, atol=3e-5)


@needs_native
@pytest.mark.parametrize("transposed_a", BOTH)
@pytest.mark.parametrize("transposed_b", BOTH)
def test_gradients_of_any_order_are_those_of_plain_products(transposed_a, transposed_b):
    a, b = laid(normal(5, 7), transposed_a), laid(normal(7, 40, seed=1), transposed_b)

    def plain(a, b):
        return (a.T if transposed_a else a) @ (b.T if transposed_b else b)

    def loss(multiply, a, b):
        return jnp.sin(multiply(a, b)).sum()

    def steepness(multiply, a, b):
        return sum(jnp.square(part).sum() for part in jax.grad(loss, (1, 2))(multiply, a, b))

    def ours(a, b):
        return product(a, b, transposed_a, transposed_b)

    for measure, tolerance in ((loss, 2e-5), (steepness, 1e-3)):
        found, wanted = (jax.grad(measure, (1, 2))(multiply, a, b) for multiply in (ours, plain))
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, atol=tolerance, rtol=1e-4)


@needs_native
def test_kernels_give_back_the_dtype_of_the_rows():
    x, kernel = (jnp.asarray(normal(*shape), jnp.bfloat16) for shape in ((2, 3, 40), (40, 50)))
    wanted = jnp.matmul(x, kernel, preferred_element_type=jnp.float32)
    for made in (DenseKernel(kernel), DenseKernel(kernel.T, transposed=True)):
        found = x @ made
        assert (found.shape, found.dtype) == ((2, 3, 50), jnp.bfloat16)
        np.testing.assert_allclose(found.astype(jnp.float32), wanted, rtol=1e-2, atol=1e-2)


@needs_native
def test_kernels_are_mapped_jitted_and_lowered_for_other_platforms():
    x, kernel = jnp.asarray(normal(3, 4, 40)), DenseKernel(jnp.asarray(normal(40, 50, seed=1)))
    wanted = x @ kernel.values
    np.testing.assert_allclose(jax.vmap(lambda row: row @ kernel)(x), wanted, atol=2e-5)
    np.testing.assert_allclose(jax.jit(lambda x, k: x @ k)(x, kernel), wanted, atol=2e-5)
    exported = jax.export.export(jax.jit(lambda x, k: x @ k), platforms=["tpu", "cuda"])(x, kernel)
    assert exported.out_avals[0].shape == (3, 4, 50)


@needs_native
def test_matrices_that_do_not_fit_are_refused():
    with pytest.raises(REFUSED, match="does not fit the rows or the result"):
        jax.block_until_ready(native.dense_product(jnp.ones((3, 7)), jnp.ones((8, 4))))


def model_of(**changes):
    sizes = {"vocab_size": 50, "d_model": 24, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 40}
    heads = {"decoder_ffn_dim": 40, "encoder_attention_heads": 3, "decoder_attention_heads": 3, "dropout": 0.0}
    return BlenderbotForConditionalGeneration(BlenderbotConfig(**sizes | heads | changes))


@needs_native
def test_products_of_nothing_are_zero_or_empty():
    for m, k, n in ((0, 3, 4), (3, 0, 4), (3, 4, 0)):
        found = native.dense_product(jnp.ones((m, k)), jnp.ones((k, n)))
        assert found.shape == (m, n)
        assert not found.any()


@pytest.mark.long
@needs_native
@pytest.mark.parametrize("tied", BOTH)
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-3)])
def test_kernels_and_a_tied_head_become_dense_and_logits_stay(tied, dtype, tolerance):
    model = model_of(tie_word_embeddings=tied).clone(dtype=dtype)
    params = model.init_params(jax.random.key(0))
    dense = densely(params, dtype)
    layer = dense["model"]["decoder"]["layers"]["0"]
    assert isinstance(layer["fc1"]["kernel"], DenseKernel)
    assert isinstance(dense["lm_head"]["kernel"], DenseKernel)
    assert isinstance(layer["fc1"]["bias"], jax.Array)
    ids = jnp.array([[5, 6, 7], [8, 9, 2]])
    found, wanted = (model.apply({"params": tree}, ids, None, ids).logits for tree in (dense, params))
    np.testing.assert_allclose(found, wanted, atol=tolerance)


@pytest.mark.long
@needs_native
@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({"tie_word_embeddings": False}, {}),
        pytest.param({"normalize_before": False}, {"remat": True}, marks=pytest.mark.slow),
        ({}, {"accumulate": 2}),
    ],
)
def test_a_step_of_training_is_the_one_without_native_products(monkeypatch, changes, settings):
    model = model_of(**changes)
    config = TrainingConfig(steps=5, batch_size=2, optimizer="sgd", learning_rate=1.0, warmup_steps=0, **settings)
    params = model.init_params(jax.random.key(0))
    ids = jnp.array([[5, 6, 7], [8, 9, 2]])
    batch = {"input_ids": ids, "attention_mask": jnp.ones_like(ids), "labels": ids}

    def stepped():
        return jax.jit(lambda state: train_step(model, config, state, {}, batch))(init_state(params, config))

    text = (
        jax.jit(lambda state: train_step(model, config, state, {}, batch)).lower(init_state(params, config)).as_text()
    )
    assert "dense_product" in text
    found, found_metrics = stepped()
    monkeypatch.setattr(native, "available", lambda: False)
    wanted, wanted_metrics = stepped()
    assert float(found_metrics.loss) == pytest.approx(float(wanted_metrics.loss), abs=1e-5)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_without_native_kernels_parameters_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    params = model_of().init_params(jax.random.key(0))
    assert jax.tree.structure(densely(params, jnp.float32)) == jax.tree.structure(params)
    assert product(jnp.ones((2, 3)), jnp.ones((3, 4)), False, False).shape == (2, 4)
