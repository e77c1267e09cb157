"""One update: in parts or at once, in half precision or in full, over adapters or all weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blenderbot_jax import BlenderbotForConditionalGeneration
from blenderbot_jax.lora import LoraConfig, merge
from blenderbot_jax.training import TrainingConfig, compile_step, init_state, train_step
from blenderbot_jax.training.optimizer import decays, learning_rate, make_optimizer
from blenderbot_jax.training.step import assemble, best_weights, halve_rate
from tests.training_batches import TINY, batch

pytestmark = pytest.mark.usefixtures("ordinary_promotion")


@pytest.fixture(scope="module")
def model(tiny_config):
    return BlenderbotForConditionalGeneration(tiny_config.replace(dropout=0.0))


@pytest.fixture(scope="module")
def params(model):
    return model.init_params(jax.random.key(0))


def largest_difference(one, other):
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(abs(a - b).max()), one, other)))


def run(model, params, config, batches=range(3), frozen=None):
    state, step, seen = init_state(params, config), compile_step(model, config), []
    for seed in batches:
        state, metrics = step(state, frozen or {}, batch(seed))
        seen.append(metrics)
    return state, seen


@pytest.mark.long
def test_an_update_is_the_optimiser_over_the_mean_loss(model, params):
    config, given = TINY.replace(optimizer="adamw", weight_decay=0.1, clip_norm=0.5), batch(0)

    def loss(params):
        return model.apply({"params": params}, given["input_ids"], given["attention_mask"], labels=given["labels"]).loss

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    plain = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(3e-3, weight_decay=0.1, mask=decays(params)))
    updates, _ = plain.update(gradients, plain.init(params), params)
    state, metrics = compile_step(model, config)(init_state(params, config), {}, given)
    assert largest_difference(state.trained, optax.apply_updates(params, updates)) < 3e-6
    np.testing.assert_allclose(metrics.loss, value, rtol=1e-5)
    np.testing.assert_allclose(
        metrics.gradient_norm, np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(gradients))), rtol=1e-4
    )
    assert int(state.step) == 1


@pytest.mark.long
@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_equals_unaccumulated(model, params, parts):
    config = TINY.replace(optimizer="sgd", learning_rate=0.1)  # a step of Adam hides the size of a gradient
    whole, _ = run(model, params, config)
    split, _ = run(model, params, config.replace(accumulate=parts))
    assert largest_difference(whole.trained, params) > 1e-3
    assert largest_difference(whole.trained, split.trained) < 1e-6


@pytest.mark.long
def test_rematerialised_layers_give_the_same_gradients(model, params):
    config = TINY.replace(optimizer="sgd", learning_rate=0.1)
    kept, _ = run(model, params, config, range(1))
    again, _ = run(model, params, config.replace(remat=True), range(1))
    assert largest_difference(kept.trained, again.trained) < 1e-7

    def total(params):
        return model.clone(remat=True).apply({"params": params}, *_ids()).logits.sum()

    assert "remat" in str(jax.make_jaxpr(jax.grad(total))(params))


def _ids():
    given = batch(0)
    return given["input_ids"], given["attention_mask"], np.ones((4, 3), np.int32)


@pytest.mark.long
def test_half_precision_computes_and_full_precision_keeps(model, params):
    state, seen = run(model, params, TINY.replace(dtype="bfloat16"))
    full, _ = run(model, params, TINY)
    assert {leaf.dtype for leaf in jax.tree.leaves((state.trained, state.moments)) if leaf.ndim} == {
        jnp.dtype("float32")
    }
    assert 0 < largest_difference(state.trained, full.trained) < 0.05
    assert all(np.isfinite(float(one.loss)) for one in seen)


@pytest.mark.long
def test_dropout_follows_from_seed_and_step_alone(tiny_config, params):
    noisy = BlenderbotForConditionalGeneration(tiny_config.replace(dropout=0.3))
    config = TINY.replace(optimizer="sgd")
    one, again = (run(noisy, params, config)[0] for _ in range(2))
    other, _ = run(noisy, params, config.replace(seed=1))
    assert largest_difference(one.trained, again.trained) == 0
    assert largest_difference(one.trained, other.trained) > 0


@pytest.mark.long
def test_the_running_mean_follows_slowly(model, params):
    state, _ = run(model, params, TINY.replace(average=0.75), range(1))
    wanted = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, params, state.trained)
    assert largest_difference(best_weights(state), wanted) < 1e-7
    assert best_weights(init_state(params, TINY)) is not None


@pytest.mark.long
def test_adapters_alone_are_trained_and_carry_the_change(model, params):
    config = TINY.replace(lora=LoraConfig(rank=2, targets=("q_proj", "fc2")), learning_rate=0.05)
    state, seen = run(model, params, config, [0] * 12, frozen=params)
    assert float(seen[-1].loss) < float(seen[0].loss) - 0.05
    assert set(state.trained) == {path for path in state.trained if path.endswith(("q_proj/kernel", "fc2/kernel"))}
    given = batch(0)
    beside = assemble(state.trained, params, config)
    merged = merge(params, state.trained, config.lora)
    both = [model.apply({"params": tree}, given["input_ids"], labels=given["labels"]).loss for tree in (beside, merged)]
    np.testing.assert_allclose(*both, rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "adamax", "sgd"])
def test_every_optimiser_lowers_the_loss(model, params, optimizer):
    rate = 0.5 if optimizer == "sgd" else 3e-3
    _, seen = run(model, params, TINY.replace(optimizer=optimizer, learning_rate=rate, steps=20), [0] * 20)
    assert float(seen[-1].loss) < float(seen[0].loss) - 0.1


def test_rates_rise_and_fall_as_the_schedule_says():
    linear = learning_rate(TrainingConfig(steps=10, warmup_steps=4, learning_rate=1.0, final_rate=0.5))
    np.testing.assert_allclose([linear(step) for step in (0, 1, 4, 7, 10)], [0, 0.25, 1, 0.75, 0.5], atol=1e-6)
    cosine = learning_rate(TrainingConfig(steps=4, warmup_steps=0, learning_rate=2.0, schedule="cosine"))
    np.testing.assert_allclose([cosine(step) for step in (0, 2, 4)], [2, 1, 0], atol=1e-6)
    flat = learning_rate(TINY)
    np.testing.assert_allclose([flat(0), flat(100)], [3e-3, 3e-3])


@pytest.mark.long
def test_a_plateau_halves_the_rate(model, params):
    config = TINY.replace(optimizer="sgd", clip_norm=None)
    state = init_state(params, config)
    step = jax.jit(train_step, static_argnums=(0, 1))
    full, _ = step(model, config, state, {}, batch(0))
    half, metrics = step(model, config, halve_rate(state), {}, batch(0))
    twice = jax.tree.map(lambda new, old: old + 2 * (new - old), half.trained, params)
    assert largest_difference(twice, full.trained) < 1e-6
    np.testing.assert_allclose(metrics.learning_rate, 1.5e-3)


def test_biases_norms_and_the_logits_bias_do_not_decay(params):
    state = make_optimizer(TINY.replace(optimizer="sgd", weight_decay=1.0, clip_norm=None))
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = state.update(zeros, state.init(params), jax.tree.map(jnp.ones_like, params))
    for path, leaf in jax.tree_util.tree_leaves_with_path(updates):
        name = jax.tree_util.keystr(path)
        assert (float(abs(leaf).max()) > 0) == ("kernel" in name or "embedding" in name), name


def test_presets_are_the_published_ones_and_bad_values_are_refused():
    assert TrainingConfig.preset("3b").learning_rate == 7e-6
    assert TrainingConfig.preset("90m").optimizer == "adamax"
    again = TrainingConfig.from_json(TrainingConfig.preset("400m", lora=LoraConfig(rank=4)).to_json())
    assert again == TrainingConfig.preset("400m", lora=LoraConfig(rank=4))
    with pytest.raises(ValueError, match="presets for 90m"):
        TrainingConfig.preset("2b")
    for changes, said in (
        ({"steps": 0}, "steps is at least 1, not 0"),
        ({"label_smoothing": 1.0}, "label_smoothing is at least 0 and below 1"),
        ({"optimizer": "lion"}, "optimizer is one of adamw"),
        ({"batch_size": 6, "accumulate": 4}, "does not divide"),
        ({"schedule": "plateau", "patience": None}, "say how many"),
    ):
        with pytest.raises(ValueError, match=said):
            TINY.replace(**changes)
