"""An ensemble decodes by the mean of its members' distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blenderbot_jax.ensemble import Ensemble
from blenderbot_jax.generation import GenerationConfig, generate
from blenderbot_jax.model import BlenderbotForCausalLM, BlenderbotForConditionalGeneration

IDS = np.array([[5, 6, 7, 2], [8, 9, 2, 0]])
BEAMS = GenerationConfig(num_beams=3, num_return_sequences=2, max_length=10, no_repeat_ngram_size=2)


@pytest.fixture
def members(tiny_config, tiny_small_config):
    """Two models of different architectures and depths over one vocabulary."""
    small = tiny_small_config.replace(vocab_size=tiny_config.vocab_size, max_position_embeddings=20, decoder_layers=1)
    models = tuple(BlenderbotForConditionalGeneration(config) for config in (tiny_config, small))
    # Wide weights, so that the members disagree.
    params = tuple(
        jax.tree.map(lambda leaf: leaf * 6, model.init_params(jax.random.key(seed)))
        for seed, model in enumerate(models)
    )
    return models, params


def test_an_ensemble_of_one_decodes_as_its_member(members):
    (model, _), (params, _) = members
    alone, together = (
        generate(one, tree, IDS, config=BEAMS) for one, tree in ((model, params), (Ensemble((model,)), (params,)))
    )
    np.testing.assert_array_equal(alone.sequences, together.sequences)
    np.testing.assert_allclose(alone.scores, together.scores, atol=1e-5)


@pytest.mark.parametrize("weights", [None, (3.0, 1.0)])
def test_every_token_has_the_mean_probability_of_the_members(members, weights):
    models, params = members
    out = generate(Ensemble(models, weights), params, IDS, config=GenerationConfig(num_beams=3, max_length=10))
    share = np.array(weights or (1.0, 1.0)) / sum(weights or (1.0, 1.0))
    tokens = np.asarray(out.sequences[:, 0])
    mask = (IDS != 0).astype(np.int32)
    each = [
        jax.nn.softmax(model.apply({"params": tree}, IDS, mask, tokens[:, :-1]).logits)
        for model, tree in zip(models, params, strict=True)
    ]
    mean = sum(part * one for part, one in zip(share, map(np.asarray, each), strict=True))
    expected = np.log(np.take_along_axis(mean, tokens[:, 1:, None], axis=-1)[..., 0])
    own = np.arange(1, tokens.shape[1]) < np.asarray(out.lengths)
    np.testing.assert_allclose(np.asarray(out.token_log_probs)[:, 0, 1:][own], expected[own], atol=2e-5)
    # The members really differ, so that a mean of logits or one member alone would not have passed.
    assert np.abs(np.asarray(each[0]) - np.asarray(each[1])).max() > 0.02


def test_step_scores_of_an_ensemble_are_those_its_tokens_were_chosen_by(members):
    models, params = members
    out = generate(Ensemble(models), params, IDS, config=BEAMS.replace(output_scores=True))
    chosen = np.take_along_axis(np.asarray(out.step_scores), np.asarray(out.sequences)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(chosen, out.token_log_probs, atol=2e-5)


def test_what_an_ensemble_cannot_do_is_refused(members):
    models, params = members
    ensemble = Ensemble(models)
    with pytest.raises(ValueError, match="output_attentions"):
        generate(ensemble, params, IDS, config=GenerationConfig(output_attentions=True))
    with pytest.raises(ValueError, match="tuple of 2 trees"):
        generate(ensemble, params[0], IDS, config=BEAMS)
    with pytest.raises(ValueError, match="encode for themselves"):
        generate(ensemble, params, encoder_outputs=jnp.zeros((1, 3, models[0].config.d_model)), config=BEAMS)
    with pytest.raises(ValueError, match=r"vocab_size is \[96, 100\]"):
        Ensemble((models[0], models[0].clone(config=models[0].config.replace(vocab_size=100))))
    with pytest.raises(ValueError, match="one positive number per member"):
        Ensemble(models, (1.0, 0.0))
    with pytest.raises(ValueError, match="BlenderbotForConditionalGeneration"):
        Ensemble((BlenderbotForCausalLM(models[0].config),))
    with pytest.raises(ValueError, match="at least one"):
        Ensemble(())
