"""The models as pure functions: randomness on request, first values, refusals, transformations, parameters."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blenderbot_jax.checkpoint.names import flatten
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.layers import Linear
from blenderbot_jax.model import (
    BlenderbotForConditionalGeneration,
    BlenderbotModel,
    cross_entropy,
    resize_token_embeddings,
    shift_tokens_right,
)
from tests.golden.fill import golden_params

IDS = np.array([[5, 6, 7, 2], [8, 9, 2, 0]])
MASK = (IDS != 0).astype(np.int32)
REPLIES = np.array([[1, 17, 4], [1, 30, 31]])


@pytest.fixture(scope="module")
def model(tiny_config):
    return BlenderbotForConditionalGeneration(tiny_config.replace(dropout=0.0))


@pytest.fixture(scope="module")
def params(model):
    return {**golden_params(model), "final_logits_bias": jnp.zeros((1, 96))}


@partial(jax.jit, static_argnums=0)
def logits_of(model, params, key=None):
    rngs = None if key is None else {"dropout": key}
    return model.apply({"params": params}, IDS, MASK, REPLIES, rngs=rngs).logits


def same(a, b):
    return bool(jnp.allclose(a, b, atol=1e-5))


@pytest.mark.parametrize("rate", ["dropout", "attention_dropout", "activation_dropout"])
def test_dropout_is_on_exactly_when_a_key_is_given(model, params, rate):
    dropping = model.clone(config=model.config.replace(**{rate: 0.5}))
    exact, first = logits_of(model, params), logits_of(dropping, params, jax.random.key(1))
    assert same(logits_of(dropping, params), exact)
    assert same(logits_of(dropping, params, jax.random.key(1)), first)
    assert not same(first, exact)
    assert not same(logits_of(dropping, params, jax.random.key(2)), first)
    assert same(logits_of(model, params, jax.random.key(1)), exact)


def test_layerdrop_of_one_skips_every_layer(model, params):
    skipping = model.clone(config=model.config.replace(encoder_layerdrop=1.0, decoder_layerdrop=1.0))
    shallow = model.clone(config=model.config.replace(encoder_layers=0, decoder_layers=0))
    assert same(logits_of(skipping, params, jax.random.key(1)), logits_of(shallow, params))
    assert same(logits_of(skipping, params), logits_of(model, params))
    assert not same(logits_of(skipping, params), logits_of(shallow, params))


def test_initial_values(tiny_config):
    config = tiny_config.replace(d_model=64, decoder_layers=1, pad_token_id=3)
    flat = flatten(BlenderbotForConditionalGeneration(config).init_params(jax.random.key(0)))
    for path, leaf in flat.items():
        if path.endswith("bias"):
            assert not leaf.any(), path
        elif path.endswith("scale"):
            assert (leaf == 1).all(), path
        else:
            # the key is fixed, so this is one draw for ever; six standard errors of a sample of at least 1536
            assert abs(float(leaf.std()) / config.init_std - 1) < 6 / (2 * leaf.size) ** 0.5 + 0.01, path
    table = flat["model/shared/embedding"]
    assert not table[3].any()
    assert table[0].any()
    assert len({float(leaf.ravel()[0]) for path, leaf in flat.items() if path.endswith("kernel")}) == sum(
        path.endswith("kernel") for path in flat
    )


def test_init_params_stores_the_dtype_asked_for(model):
    params = jax.eval_shape(partial(model.init_params, dtype=jnp.bfloat16), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}


def tree_of(config: BlenderbotConfig) -> dict[str, tuple[int, ...]]:
    """The parameter tree as the checkpoints lay it down."""
    D, V, P = config.d_model, config.vocab_size, config.max_position_embeddings
    tree = {"final_logits_bias": (1, V), "model/shared/embedding": (V, D)}
    outer = "layer_norm" if config.normalize_before else "layernorm_embedding"

    def linear(path, fan_in, fan_out):
        tree.update({f"{path}/kernel": (fan_in, fan_out), f"{path}/bias": (fan_out,)})

    def norm(path):
        tree.update({f"{path}/scale": (D,), f"{path}/bias": (D,)})

    for side, attentions in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "encoder_attn"])):
        tree[f"model/{side}/embed_positions/embedding"] = (P, D)
        norm(f"model/{side}/{outer}")
        F = getattr(config, f"{side}_ffn_dim")
        for i in range(getattr(config, f"{side}_layers")):
            layer = f"model/{side}/layers/{i}"
            for name in attentions:
                norm(f"{layer}/{name}_layer_norm")
                for projection in "q_proj", "k_proj", "v_proj", "out_proj":
                    linear(f"{layer}/{name}/{projection}", D, D)
            linear(f"{layer}/fc1", D, F)
            linear(f"{layer}/fc2", F, D)
            norm(f"{layer}/final_layer_norm")
    return tree


@pytest.mark.parametrize("name", ["tiny_config", "tiny_small_config"])
def test_the_parameter_tree_is_the_documented_one(request, name):
    config = request.getfixturevalue(name)
    key = jax.random.key(0)
    tree = jax.eval_shape(BlenderbotForConditionalGeneration(config).init_params, key)
    assert {path: leaf.shape for path, leaf in flatten(tree).items()} == tree_of(config)
    headless = jax.eval_shape(BlenderbotModel(config).init_params, key)
    assert jax.tree.structure(headless) == jax.tree.structure(tree["model"])


@pytest.mark.parametrize("vocab_size", [99, 50])
def test_resizing_keeps_the_old_tokens(model, params, vocab_size):
    params = {**params, "final_logits_bias": jnp.ones((1, 96))}
    resized, new = resize_token_embeddings(model, params, vocab_size, jax.random.key(3))
    kept = min(vocab_size, 96)
    old_table, table = params["model"]["shared"]["embedding"], new["model"]["shared"]["embedding"]
    assert resized.config.vocab_size == vocab_size
    assert table.shape == (vocab_size, 24)
    assert (table[:kept] == old_table[:kept]).all()
    # 1e-9 of a variance below 0.1 is at most a deviation of 1e-5, and the key is fixed
    assert (jnp.abs(table[kept:] - old_table.mean(axis=0)[None]) < 1e-4).all()
    assert new["final_logits_bias"].tolist() == [[1.0] * kept + [0.0] * (vocab_size - kept)]
    before, after = logits_of(model, params), logits_of(resized, new)
    assert after.shape[-1] == vocab_size
    assert same(after[..., :kept], before[..., :kept])
    assert model.config.vocab_size == params["model"]["shared"]["embedding"].shape[0] == 96


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"input_ids": [[5, 96]]}, ValueError, r"input_ids\[0, 1\] is 96.*0 to 95"),
        ({"input_ids": [[5, 6], [-1, 7]]}, ValueError, r"input_ids\[1, 0\] is -1.*0 to 95"),
        ({"decoder_input_ids": [[1, 500]]}, ValueError, r"decoder_input_ids\[0, 1\] is 500.*0 to 95"),
        ({"labels": [[5, -99]]}, ValueError, r"labels\[0, 1\] is -99"),
        ({"input_ids": [5, 6]}, ValueError, r"input_ids must have shape \[batch, length\].*\[2\]"),
        ({"input_ids": [[]]}, ValueError, r"input_ids.*\[1, 0\]"),
        ({"input_ids": [[5.0]]}, TypeError, "input_ids must be integers.*float"),
        ({"input_ids": [[5] * 25]}, ValueError, "input_ids has 25 tokens.*24.*truncat"),
        ({"decoder_input_ids": [[1] * 25]}, ValueError, "decoder_input_ids has 25 tokens.*24"),
        ({"attention_mask": [[1, 1, 1]]}, ValueError, r"attention_mask.*\[1, 2\], not \[1, 3\]"),
        ({"decoder_attention_mask": [[1]]}, ValueError, r"decoder_attention_mask.*\[1, 2\], not \[1, 1\]"),
        ({"labels": [[5]]}, ValueError, r"labels.*\[1, 2\], not \[1, 1\]"),
        ({"decoder_input_ids": None}, ValueError, "decoder_input_ids is required.*decoder_start_token_id=1"),
        ({"input_ids": None}, ValueError, "input_ids is required"),
    ],
)
def test_bad_inputs_are_refused_with_value_and_limit(model, params, changes, error, words):
    inputs = {"input_ids": [[5, 6]], "decoder_input_ids": [[1, 7]]} | changes
    inputs = {name: None if value is None else np.array(value) for name, value in inputs.items()}
    if changes == {"input_ids": [[]]}:
        inputs["input_ids"] = np.zeros((1, 0), int)
    with pytest.raises(error, match=words):
        model.apply({"params": params}, **inputs)


def test_lengths_are_refused_inside_jit_too(model, params):
    with pytest.raises(ValueError, match=r"input_ids has 25 tokens.*24"):
        jax.jit(lambda ids: model.apply({"params": params}, ids, None, REPLIES).logits)(jnp.ones((2, 25), int))


def test_no_mask_means_all_ones(model, params):
    plain = model.apply({"params": params}, IDS, None, REPLIES).logits
    assert same(plain, model.apply({"params": params}, IDS, np.ones_like(IDS), REPLIES).logits)
    assert not same(plain, logits_of(model, params))


def test_padding_on_either_side_changes_nothing(model, params):
    alone = model.apply({"params": params}, IDS[1:, :3], None, REPLIES[1:]).logits
    left = np.array([[0, 8, 9, 2]])
    assert same(logits_of(model, params)[1:], alone)
    assert same(model.apply({"params": params}, left, left != 0, REPLIES[1:]).logits, alone)


def test_encoder_outputs_save_the_encoder(model, params):
    encoded = model.apply({"params": params}, IDS, MASK, method="encode")
    out = model.apply({"params": params}, None, MASK, REPLIES, encoder_outputs=encoded)
    assert same(out.logits, logits_of(model, params))
    assert same(out.encoder_last_hidden_state, encoded)


def test_the_headless_model_gives_the_states_behind_the_logits(model, params):
    out = BlenderbotModel(model.config).apply({"params": params["model"]}, IDS, MASK, REPLIES)
    logits = jnp.matmul(out.last_hidden_state, params["model"]["shared"]["embedding"].T)
    assert same(logits, logits_of(model, params))


def test_vmap_over_parameters_equals_a_loop(model, params):
    several = [params, jax.tree.map(lambda leaf: 1.1 * leaf, params)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
    together = jax.vmap(lambda params: logits_of(model, params))(stacked)
    assert same(together, jnp.stack([logits_of(model, params) for params in several]))


def test_the_final_logits_bias_is_added_and_takes_no_gradient(model, params):
    biased = {**params, "final_logits_bias": jnp.arange(96.0)[None]}
    assert same(logits_of(model, biased) - logits_of(model, params), jnp.broadcast_to(jnp.arange(96.0), (2, 3, 96)))
    loss = lambda params: model.apply({"params": params}, IDS, MASK, labels=REPLIES).loss  # noqa: E731
    gradients = jax.jit(jax.grad(loss))(params)
    assert not gradients["final_logits_bias"].any()
    assert all(
        leaf.any()
        for path, leaf in flatten(gradients).items()
        if not path.endswith(("final_logits_bias", "k_proj/bias"))
    )


def test_equal_models_are_one_static_argument(model):
    again = BlenderbotForConditionalGeneration(model.config)
    assert again == model
    assert hash(again) == hash(model)
    assert model.clone(dtype=jnp.bfloat16) != model


def test_outputs_are_pytrees(model, params):
    out = model.apply({"params": params}, IDS, MASK, REPLIES, output_hidden_states=True)
    # logits, the encoder's last state, and 1 + 1 and 2 + 1 hidden states
    assert len(jax.tree.leaves(out)) == 2 + 2 + 3
    assert out.loss is None
    assert dataclasses.replace(out, loss=jnp.float32(1)).loss == 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class LowRank:
    """A kernel that is no array."""

    left: jax.Array
    right: jax.Array

    def __rmatmul__(self, x):
        return (x @ self.left) @ self.right


def test_linear_accepts_a_kernel_with_its_own_product():
    left, right = jnp.arange(6.0).reshape(3, 2), jnp.arange(8.0).reshape(2, 4)
    x, bias = jnp.ones((5, 3)), jnp.arange(4.0)
    out = jax.jit(Linear(4, 0.02, jnp.float32).apply)({"params": {"kernel": LowRank(left, right), "bias": bias}}, x)
    assert same(out, x @ left @ right + bias)


def test_shifting_labels_starts_with_the_start_token_and_fills_with_pad(tiny_config):
    config = tiny_config.replace(decoder_start_token_id=2, pad_token_id=1)
    labels = np.array([[71, 82, 18, 33, 2, 1, 1], [68, 34, 26, -100, -100, 82, 2]])
    assert shift_tokens_right(labels, config).tolist() == [[2, 71, 82, 18, 33, 2, 1], [2, 68, 34, 26, 1, 1, 82]]


def test_cross_entropy_of_known_probabilities():
    logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]]))
    assert same(cross_entropy(logits, np.array([[1, 2]])), -(np.log(0.25) + np.log(0.8)) / 2)
    assert same(cross_entropy(logits, np.array([[-100, 2]])), -np.log(0.8))
    assert cross_entropy(logits, np.array([[-100, -100]])) == 0


def test_a_whole_models_result_or_a_tuple_hands_the_encoders_work_on(model, params):
    ids, reply = np.array([[5, 6, 2]]), np.array([[1, 7]])
    flags = {"output_hidden_states": True, "output_attentions": True}
    whole = model.apply({"params": params}, ids, None, reply, **flags)
    parts = whole.encoder_last_hidden_state, whole.encoder_hidden_states, whole.encoder_attentions
    for given in (whole, parts):
        again = model.apply({"params": params}, None, None, reply, encoder_outputs=given, **flags)
        np.testing.assert_array_equal(again.logits, whole.logits)
        assert jax.tree.structure(again) == jax.tree.structure(whole)
