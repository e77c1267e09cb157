"""Layer by layer as transformers: every hidden state of both architectures, and single sublayers."""

import jax.numpy as jnp
import numpy as np
import pytest

from blenderbot_jax.layers import ACTIVATION_FUNCTIONS, Attention, DecoderLayer

torch = pytest.importorskip("torch", reason="parity is measured against PyTorch")
pytest.importorskip("transformers", reason="parity is measured against transformers")

from tests.parity.reference import TOLERANCE, as_torch, forward, largest_difference, pair, right_padded

# Changes to the tiny configurations, source lengths, target lengths.
SHAPES = {
    "uneven": ({}, [24, 7, 1], [5, 2, 4]),
    "deep encoder": ({"encoder_layers": 3, "decoder_layers": 1}, [6, 9], [24, 24]),
    "many heads to one": ({"encoder_attention_heads": 12, "decoder_attention_heads": 1}, [3, 5], [1, 1]),
    "not scaled": ({"d_model": 16, "encoder_ffn_dim": 72, "decoder_ffn_dim": 4, "scale_embedding": False}, [8], [6]),
}


@pytest.fixture(params=["tiny_config", "tiny_small_config"])
def config(request):
    # transformers has not scaled the post-norm decoder's embeddings since 4.53
    return request.getfixturevalue(request.param).replace(scale_decoder_embedding=False)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_hidden_state_and_the_logits_equal_those_of_transformers(config, shape):
    changes, source, target = SHAPES[shape]
    reference, model, params = pair(config.replace(**changes))
    rng = np.random.default_rng(0)
    ids, mask = right_padded(rng, source, config.vocab_size)
    replies, reply_mask = right_padded(rng, target, config.vocab_size)
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "decoder_input_ids": replies,
        "decoder_attention_mask": reply_mask,
    }
    ours = forward(model, params, inputs)
    with torch.no_grad():
        theirs = reference(**as_torch(**inputs), output_hidden_states=True)
    for side, where in (("encoder", mask), ("decoder", reply_mask)):
        states, expected = getattr(ours, f"{side}_hidden_states"), getattr(theirs, f"{side}_hidden_states")
        assert len(states) == len(expected) == getattr(model.config, f"{side}_layers") + 1
        differences = [largest_difference(a, b, where) for a, b in zip(states, expected, strict=True)]
        assert max(differences) < TOLERANCE, f"{side}: {differences}"
    assert largest_difference(ours.logits, theirs.logits, reply_mask) < TOLERANCE


@pytest.mark.parametrize(("side", "name"), [("encoder", "self_attn"), ("decoder", "encoder_attn")])
def test_one_attention_equals_that_of_transformers(tiny_config, side, name):
    reference, _, params = pair(tiny_config)
    rng = np.random.default_rng(1)
    x, y = (rng.normal(size=(2, length, tiny_config.d_model)).astype(np.float32) for length in (3, 5))
    if name == "self_attn":
        x = y
    mask = np.arange(5) < np.array([5, 2])[:, None, None, None]
    heads = getattr(tiny_config, f"{side}_attention_heads")
    weights = params["model"][side]["layers"]["0"][name]
    ours, _ = Attention(tiny_config, heads, jnp.float32).apply({"params": weights}, x, y, mask)
    module = getattr(getattr(reference.model, side).layers[0], name)
    source = {} if name == "self_attn" else {"key_value_states": torch.from_numpy(y)}
    additive = torch.from_numpy(np.where(mask, 0, np.finfo(np.float32).min).astype(np.float32))
    with torch.no_grad():
        theirs = module(torch.from_numpy(x), attention_mask=additive, **source)[0]
    assert largest_difference(ours, theirs) < TOLERANCE


@pytest.mark.parametrize("activation", sorted(ACTIVATION_FUNCTIONS))
def test_feed_forward_equals_that_of_transformers(tiny_config, activation):
    reference, model, params = pair(tiny_config.replace(activation_function=activation))
    x = np.linspace(-3, 3, 2 * tiny_config.d_model, dtype=np.float32).reshape(1, 2, -1)
    ours = DecoderLayer(model.config, jnp.float32).apply(
        {"params": params["model"]["decoder"]["layers"]["1"]}, x, method="feed_forward"
    )
    layer = reference.model.decoder.layers[1]
    with torch.no_grad():
        theirs = layer.fc2(layer.activation_fn(layer.fc1(torch.from_numpy(x))))
    assert largest_difference(ours, theirs) < TOLERANCE
