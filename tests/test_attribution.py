"""attribution: measured against finite differences, on a model made by hand, and in what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blenderbot_jax.attribution import METHODS, attribution
from blenderbot_jax.model import BlenderbotForCausalLM, BlenderbotForConditionalGeneration, shift_tokens_right
from blenderbot_jax.scoring import token_log_probs
from tests.golden.fill import golden_params

IDS = np.array([[5, 6, 7, 2], [8, 9, 2, 0]])
MASK = (IDS != 0).astype(np.int32)
LABELS = np.array([[17, 4, 2], [30, 2, -100]])
LEFT_OUT = (LABELS == -100)[:, :, None] | (MASK == 0)[:, None, :]


@pytest.fixture(scope="module")
def model(tiny_config):
    return BlenderbotForConditionalGeneration(tiny_config)


@pytest.fixture(scope="module")
def params(model):
    return golden_params(model)


def weigh(model, params, method, labels=LABELS, **options):
    options["decoder_input_ids"] = shift_tokens_right(jnp.asarray(LABELS), model.config)
    return np.asarray(attribution(model, params, IDS, MASK, labels, method=method, **options))


def test_gradient_x_input_is_the_slope_as_one_embedding_is_scaled(model, params):
    embeds = model.apply({"params": params}, IDS, method="embed_source")
    step = 1e-2

    def scores(change):
        scaled = embeds * (1 + change)[None, :, None]
        return token_log_probs(model, params, None, MASK, LABELS, inputs_embeds=scaled)

    either_way = jax.jit(jax.vmap(scores))(jnp.concatenate([step * jnp.eye(4), -step * jnp.eye(4)]))
    slopes = jnp.moveaxis((either_way[:4] - either_way[4:]) / (2 * step), 0, -1)
    found = weigh(model, params, "gradient_x_input")
    # Rounding leaves 1e-6 / step, the third derivative step ** 2.
    np.testing.assert_allclose(found, slopes, atol=1e-3)
    assert np.abs(found).max() > 0.05
    assert (found > 0).any()
    assert (found < 0).any()


@pytest.mark.parametrize("method", METHODS)
def test_padding_and_labels_left_out_weigh_nothing(model, params, method):
    found = weigh(model, params, method)
    assert found.shape == (2, 3, 4)
    assert not found[LEFT_OUT].any()
    assert (found[~LEFT_OUT] != 0).all()


def test_attention_to_the_prompt_sums_to_one(model, params):
    both = weigh(model, params, "cross_attention")
    np.testing.assert_allclose(both.sum(-1), LABELS != -100, atol=1e-5)
    first, last = (weigh(model, params, "cross_attention", layer=layer) for layer in (0, -1))
    assert np.abs(first - last).max() > 0.01
    np.testing.assert_allclose((first + last) / 2, both, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_reads_one_token_is_seen_to(tiny_config, method):
    config = tiny_config.replace(encoder_layers=0, decoder_layers=1, decoder_attention_heads=1)
    model = BlenderbotForConditionalGeneration(config)
    params = golden_params(model)
    # Every query asks for a large first coordinate, and token 7 has one: no other token is ever read.
    params["model"]["shared"]["embedding"] = params["model"]["shared"]["embedding"].at[7, 0].set(5.0)
    attention = params["model"]["decoder"]["layers"]["0"]["encoder_attn"]
    first = jnp.arange(24) == 0
    attention["q_proj"] = {"kernel": jnp.zeros((24, 24)), "bias": jnp.where(first, 50.0, 0.0)}
    attention["k_proj"] = {"kernel": jnp.where(first[:, None] & first, 50.0, 0.0), "bias": jnp.zeros(24)}
    found = np.abs(weigh(model, params, method))[0]
    assert found[:, IDS[0] != 7].max() < 1e-6
    assert found[:, IDS[0] == 7].min() > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_one_token_of_a_reply_can_be_explained(model, params, method):
    second = np.where(np.arange(3) == 1, LABELS, -100)
    found = weigh(model, params, method, second)
    wanted = weigh(model, params, method) * (second != -100)[:, :, None]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_mask_and_decoder_ids_are_made_where_they_are_missing(model, params):
    ids, labels = IDS[:1].tolist(), LABELS[:1].tolist()
    found = attribution(model, params, ids, None, labels, method="cross_attention")
    np.testing.assert_allclose(found, weigh(model, params, "cross_attention")[:1], atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_gives_float32(model, params, method):
    half = model.clone(dtype=jnp.bfloat16)
    # Under strict promotion, tracing alone would fail where two dtypes meet.
    weights = jax.eval_shape(lambda params: attribution(half, params, IDS, MASK, LABELS, method=method), params)
    assert (weights.shape, weights.dtype) == ((2, 3, 4), jnp.float32)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"method": "gradient"}, ValueError, "method is one of gradient_x_input, cross_attention, not 'gradient'"),
        ({"layer": 0}, ValueError, "layer=0 picks a layer's attention.*leave it out"),
        ({"method": "cross_attention", "layer": 2}, ValueError, "layer=2, but this decoder has 2 layers, 0 to 1"),
        ({"method": "cross_attention", "layer": -3}, ValueError, "layer=-3"),
        ({"input_ids": None}, ValueError, "input_ids must have shape"),
        ({"input_ids": [[96]]}, ValueError, r"input_ids\[0, 0\] is 96"),
        ({"labels": [[96], [2]]}, ValueError, r"labels\[0, 0\] is 96"),
        ({"attention_mask": MASK[:, 1:]}, ValueError, "attention_mask must have the shape of input_ids"),
        ({"model": BlenderbotForCausalLM}, TypeError, "BlenderbotForCausalLM lacks encoder or head"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused(model, params, changes, error, says):
    given = {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS} | changes
    kind = given.pop("model", type(model))
    with pytest.raises(error, match=says):
        attribution(kind(model.config), params, **given)
