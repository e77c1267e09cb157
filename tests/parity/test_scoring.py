"""Scores of replies, their gradients, and what is made of the gradients, as PyTorch finds them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blenderbot_jax.attribution import attribution
from blenderbot_jax.checkpoint.names import flatten
from blenderbot_jax.scoring import token_log_probs

torch = pytest.importorskip("torch", reason="parity is measured against PyTorch")
pytest.importorskip("transformers", reason="parity is measured against transformers")

from tests.parity.reference import TOLERANCE, as_torch, gradients_from, largest_difference, pair, right_padded


@pytest.fixture(params=["tiny_config", "tiny_small_config"])
def models(request):
    config = request.getfixturevalue(request.param)
    # transformers has not scaled the post-norm decoder's embeddings since 4.53. One decoder layer compiles sooner;
    # gradients through several are compared in test_model.py.
    return pair(config.replace(scale_decoder_embedding=False, decoder_layers=1))


@pytest.fixture
def batch(tiny_config):
    rng = np.random.default_rng(5)
    ids, mask = right_padded(rng, [7, 12, 3], tiny_config.vocab_size)
    replies, reply_mask = right_padded(rng, [5, 6, 2], tiny_config.vocab_size)
    labels = np.where(reply_mask, replies, -100)
    labels[1, 2] = -100
    return ids, mask, labels


def their_scores(reference, labels, **inputs):
    """[B, T] from the logits of transformers."""
    labels = torch.from_numpy(labels).long()
    logp = reference(labels=labels, **inputs).logits.log_softmax(-1)
    gathered = logp.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return torch.where(labels == -100, 0.0, gathered)


def their_embeds(reference, ids):
    """What their encoder reads, [B, S, D]; that of BlenderbotSmall scales outside of its table."""
    encoder = reference.model.encoder
    return encoder.embed_tokens(torch.from_numpy(ids).long()) * getattr(encoder, "embed_scale", 1.0)


def test_scores_and_their_gradients_to_parameters_and_embeddings(models, batch):
    reference, model, params = models
    ids, mask, labels = batch
    # Tokens of unequal weight, so that a score in the wrong place shows in the gradients.
    weights = np.random.default_rng(6).uniform(0.1, 1.0, labels.shape).astype(np.float32)

    def total(params, change):
        embeds = model.apply({"params": params}, ids, method="embed_source") + change
        scores = token_log_probs(model, params, None, mask, labels, inputs_embeds=embeds)
        return (scores * weights).sum(), scores

    nothing = jnp.zeros((*ids.shape, model.config.d_model))
    (gradients, to_embeds), ours = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(params, nothing)
    embeds = their_embeds(reference, ids)
    embeds.retain_grad()
    theirs = their_scores(reference, labels, **as_torch(attention_mask=mask), inputs_embeds=embeds)
    (theirs * torch.from_numpy(weights)).sum().backward()
    assert largest_difference(ours, theirs.detach()) < TOLERANCE
    assert largest_difference(to_embeds, embeds.grad) < TOLERANCE
    wanted = flatten(gradients_from(reference))
    differences = {path: largest_difference(leaf, wanted[path]) for path, leaf in flatten(gradients).items()}
    assert max(differences.values()) < TOLERANCE, {k: v for k, v in differences.items() if v >= TOLERANCE}
    assert jnp.abs(gradients["model"]["shared"]["embedding"]).max() > 100 * TOLERANCE


def test_gradient_x_input_is_what_autograd_gives(tiny_small_config, batch):
    # The other architecture is held to finite differences in tests/test_attribution.py.
    reference, model, params = pair(tiny_small_config.replace(scale_decoder_embedding=False, decoder_layers=1))
    ids, mask, labels = batch
    embeds = their_embeds(reference, ids)
    scores = their_scores(reference, labels, **as_torch(attention_mask=mask), inputs_embeds=embeds)
    # The gradient of each place's score alone; the rows of a batch do not touch.
    each = [torch.autograd.grad(column.sum(), embeds, retain_graph=True)[0] for column in scores.T]
    wanted = torch.stack([(gradient * embeds).sum(-1) for gradient in each], dim=1).detach()
    found = attribution(model, params, ids, mask, labels)
    assert largest_difference(found, wanted) < TOLERANCE
    assert jnp.abs(found).max() > 100 * TOLERANCE


def test_cross_attention_is_the_mean_of_transformers(tiny_config, batch):
    reference, model, params = pair(tiny_config)
    ids, mask, labels = batch
    with torch.no_grad():
        inputs = as_torch(input_ids=ids, attention_mask=mask, labels=labels)
        layers = torch.stack(reference(**inputs, output_attentions=True).cross_attentions)
    wanted = layers.mean(dim=(0, 2)) * torch.from_numpy(labels != -100)[:, :, None]
    found = attribution(model, params, ids, mask, labels, method="cross_attention")
    assert largest_difference(found, wanted) < TOLERANCE
