"""token_log_probs: what it counts, where it is refused, and the transformations it goes through."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from blenderbot_jax.model import (
    BlenderbotForCausalLM,
    BlenderbotForConditionalGeneration,
    BlenderbotModel,
    shift_tokens_right,
)
from blenderbot_jax.scoring import token_log_probs
from tests.golden.fill import golden_params

IDS = np.array([[5, 6, 7, 2], [8, 9, 2, 0]])
MASK = (IDS != 0).astype(np.int32)
LABELS = np.array([[17, 4, 2], [30, 2, -100]])


@pytest.fixture(scope="module")
def model(tiny_config):
    return BlenderbotForConditionalGeneration(tiny_config.replace(decoder_layers=1))


@pytest.fixture(scope="module")
def params(model):
    return golden_params(model)


@pytest.fixture(scope="module")
def scores(model, params):
    return token_log_probs(model, params, IDS, MASK, LABELS)


def same(a, b):
    return bool(jnp.allclose(a, b, atol=1e-5))


def test_scores_are_the_log_softmax_at_the_labels(model, params, scores):
    out = jax.jit(lambda params: model.apply({"params": params}, IDS, MASK, labels=LABELS))(params)
    logits = np.asarray(out.logits, np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = np.take_along_axis(logp, np.maximum(LABELS, 0)[..., None], -1)[..., 0] * (LABELS != -100)
    assert scores.dtype == jnp.float32
    assert scores[1, 2] == 0
    assert same(scores, wanted)
    assert same(-scores.sum() / 5, out.loss)


def test_labels_left_out_are_still_read_where_the_decoder_is_given_them(model, params, scores):
    read = shift_tokens_right(jnp.asarray(LABELS), model.config)
    last = np.where(np.arange(3) == 2, LABELS, -100)
    found = token_log_probs(model, params, IDS, MASK, last, decoder_input_ids=read)
    assert same(found, np.where(last == -100, 0, scores))
    assert not same(token_log_probs(model, params, IDS, MASK, last), found)


def test_embeddings_and_encoder_outputs_stand_in_for_ids(model, params, scores):
    apply = partial(model.apply, {"params": params})
    source = apply(IDS, method="embed_source")
    target = apply(shift_tokens_right(jnp.asarray(LABELS), model.config), method="embed_target")
    encoded = jax.jit(partial(apply, method="encode"))(IDS, MASK)
    assert same(token_log_probs(model, params, None, MASK, LABELS, inputs_embeds=source), scores)
    assert same(token_log_probs(model, params, None, MASK, LABELS, encoder_outputs=(encoded,)), scores)
    assert same(token_log_probs(model, params, IDS, MASK, LABELS, decoder_inputs_embeds=target), scores)


def test_a_causal_model_takes_labels_as_they_stand(model, params, scores):
    read = shift_tokens_right(jnp.asarray(LABELS), model.config)
    states = jax.jit(partial(model.apply, {"params": params}, method="encode"))(IDS, MASK)
    lm = BlenderbotForCausalLM(model.config)
    # The model with an encoder adds a bias to its logits, which the causal one does not have.
    unbiased = {**params, "final_logits_bias": jnp.zeros((1, 96))}
    given = {"encoder_outputs": states, "encoder_attention_mask": MASK}
    found = token_log_probs(lm, unbiased, read, None, LABELS, **given)
    assert same(found, token_log_probs(model, unbiased, IDS, MASK, LABELS))
    assert not same(found, scores)


def test_scores_are_the_same_under_jit_vmap_and_shard_map(model, params, scores):
    score = partial(token_log_probs, model)
    by_row = jax.jit(jax.vmap(score, in_axes=(None, 0, 0, 0)))(params, IDS[:, None], MASK[:, None], LABELS[:, None])
    assert same(by_row[:, 0], scores)
    rows, whole = PartitionSpec("rows"), PartitionSpec()
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.shard_map(score, mesh=mesh, in_specs=(whole, rows, rows, rows), out_specs=rows)
    assert same(sharded(params, IDS, MASK, LABELS), scores)


def test_lists_of_ids_will_do(model, params, scores):
    assert same(token_log_probs(model, params, IDS.tolist(), MASK.tolist(), LABELS.tolist()), scores)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"labels": [[17, 96]]}, ValueError, r"labels\[0, 1\] is 96, but ids go from 0 to 95"),
        ({"labels": [[17, -1]]}, ValueError, r"labels\[0, 1\] is -1"),
        ({"labels": [17, 2]}, ValueError, r"labels must have shape \[batch, length\]"),
        ({"labels": [[17.0]]}, TypeError, "labels must be integers"),
        ({"labels": [[3] * 25]}, ValueError, "25 tokens.*24"),
        ({"labels": [[3]]}, ValueError, "batch of 2.*one of 1"),
        ({"input_ids": [[96]]}, ValueError, r"input_ids\[0, 0\] is 96"),
        ({"input_ids": None}, ValueError, "input_ids is required"),
        ({"attention_mask": MASK * 2}, ValueError, "holds 1 where a token is kept.*it holds 2"),
        ({"attention_mask": MASK[:, 1:]}, ValueError, "attention_mask must have the shape of the source"),
        ({"decoder_input_ids": [[1], [1]]}, ValueError, "labels must have the shape of the decoder's input"),
        ({"decoder_input_ids": [[1, 96, 2]] * 2}, ValueError, r"decoder_input_ids\[0, 1\] is 96"),
        ({"encoder_attention_mask": MASK}, TypeError, "the mask over encoder_outputs is attention_mask"),
        ({"inputs_embeds": np.zeros((2, 4, 24), np.float32)}, ValueError, "leave one out"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused(model, params, changes, error, says):
    given = {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS} | changes
    with pytest.raises(error, match=says):
        token_log_probs(model, params, **given)


def test_models_that_cannot_score_say_so(model, params):
    with pytest.raises(TypeError, match="BlenderbotModel has none: load a"):
        token_log_probs(BlenderbotModel(model.config), params["model"], IDS, MASK, LABELS)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="put them there"):
        token_log_probs(BlenderbotForCausalLM(model.config), params, IDS, None, IDS, decoder_input_ids=IDS)
