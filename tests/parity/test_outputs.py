"""Every input and every output of the forward pass as in transformers: masks, embeddings, attentions, hidden states.

Values are compared where a mask keeps a place: what stands at a padded one nobody reads, and it differs between
transformers' own attention implementations.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity is measured against PyTorch")
pytest.importorskip("transformers", reason="parity is measured against transformers")
from transformers.modeling_outputs import BaseModelOutput

from blenderbot_jax.checkpoint.names import flatten, target_of, unflatten
from blenderbot_jax.model import BlenderbotForConditionalGeneration, BlenderbotModel
from blenderbot_jax.outputs import EncoderOutput
from tests.parity.reference import TOLERANCE, as_torch, largest_difference, pair, reference_model, right_padded

ALL = ("output_attentions", "output_hidden_states")
SOURCE, TARGET = [9, 4, 7], [6, 2, 5]


@partial(jax.jit, static_argnums=(0, 3))
def run(model: Any, params: Any, inputs: dict[str, Any], flags: tuple[str, ...] = ALL) -> Any:
    """A forward pass on keyword inputs, compiled once per shape and set of flags."""
    return model.apply({"params": params}, **inputs, **dict.fromkeys(flags, True))


def expected(reference: Any, inputs: Mapping[str, Any], flags: tuple[str, ...] = ALL, **tensors: Any) -> Any:
    """transformers' forward pass; `tensors` are passed as they are."""
    with torch.no_grad():
        return reference(**as_torch(**inputs), **tensors, **dict.fromkeys(flags, True), use_cache=False)


def params_of(module: Any, *, tied: bool) -> dict[str, Any]:
    """Our parameters with the values of any transformers model; untied tables keep their own."""
    flat = {}
    for name, tensor in module.state_dict().items():
        target = target_of(name, tied=tied)
        assert target is not None, f"no row of the table of names knows {name}"
        values = jnp.asarray((tensor.T if target.transposed else tensor).numpy().copy())
        assert target.path not in flat or (flat[target.path] == values).all(), f"{name} is not the tensor it is tied to"
        flat[target.path] = values
    return unflatten(flat)


def differences(ours: Any, theirs: Any, source_mask: np.ndarray, target_mask: np.ndarray) -> dict[str, float]:
    """The largest difference of each field of ours, its kept places alone; a field only one side has is infinite."""
    found = {}
    for name, value in vars(ours).items():
        mask = source_mask if name.startswith("encoder") else target_mask
        expected_value = getattr(theirs, name)
        if isinstance(expected_value, tuple) and not expected_value:  # theirs of a cross-attention that was left out
            expected_value = None
        if value is None or expected_value is None:
            found[name] = 0.0 if value is expected_value else float("inf")
        elif name == "loss":
            found[name] = largest_difference(value, expected_value)
        elif not isinstance(value, tuple):
            found[name] = largest_difference(value, expected_value, mask)
        else:
            # Attentions [B, N, T, S] have a row for each place, behind the heads.
            rows = partial(np.moveaxis, source=2, destination=1) if "attentions" in name else np.asarray
            pairs = zip(value, expected_value, strict=True)
            found[name] = max(largest_difference(rows(np.asarray(a)), rows(b.numpy()), mask) for a, b in pairs)
    return found


@pytest.fixture(scope="module", params=["tiny_config", "tiny_small_config"])
def models(request):
    # transformers has not scaled the post-norm decoder's embeddings since 4.53
    return pair(request.getfixturevalue(request.param).replace(scale_decoder_embedding=False))


# Where the code is the same for both architectures, one of them is enough.
post_norm = pytest.mark.parametrize("models", ["tiny_small_config"], indirect=True)


@pytest.fixture(scope="module")
def batch(tiny_config):
    rng = np.random.default_rng(0)
    ids, mask = right_padded(rng, SOURCE, tiny_config.vocab_size)
    replies, reply_mask = right_padded(rng, TARGET, tiny_config.vocab_size)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "decoder_input_ids": replies,
        "decoder_attention_mask": reply_mask,
    }


@pytest.fixture(scope="module")
def everything(models, batch):
    """What our model gives for the batch, all fields."""
    _, model, params = models
    return run(model, params, batch)


def test_every_field_is_that_of_transformers(models, batch, everything):
    reference, *_ = models
    theirs = expected(reference, batch)
    found = differences(everything, theirs, batch["attention_mask"], batch["decoder_attention_mask"])
    assert max(found.values()) < TOLERANCE, found
    assert sum(value is not None for value in vars(everything).values()) == len(found) - 1  # all but the loss


def test_attentions_sum_to_one_and_are_zero_at_what_is_masked(batch, everything):
    masks = {"encoder": batch["attention_mask"], "decoder": batch["decoder_attention_mask"]}
    for name, side in (
        ("encoder_attentions", "encoder"),
        ("decoder_attentions", "decoder"),
        ("cross_attentions", "encoder"),
    ):
        for weights in map(np.asarray, getattr(everything, name)):
            np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
            assert (np.moveaxis(weights, 3, 1)[~masks[side].astype(bool)] == 0).all(), name
    for weights in everything.decoder_attentions:
        assert (np.triu(np.asarray(weights), 1) == 0).all()


@post_norm
def test_the_headless_model_is_that_of_transformers(models, batch):
    reference, model, params = models
    ours = run(BlenderbotModel(model.config), params["model"], batch)
    theirs = expected(reference.model, batch)
    found = differences(ours, theirs, batch["attention_mask"], batch["decoder_attention_mask"])
    assert max(found.values()) < TOLERANCE, found


@post_norm
@pytest.mark.parametrize("flags", [(), ALL[:1], ALL[1:]])
def test_fields_are_none_exactly_where_those_of_transformers_are(models, batch, flags):
    reference, model, params = models
    theirs = expected(reference, batch, flags)
    ours = jax.eval_shape(lambda params: run(model, params, batch, flags), params)
    for name, value in vars(ours).items():
        assert (value is None) == (getattr(theirs, name) is None), name
        shapes = [leaf.shape for leaf in jax.tree.leaves(value)]
        wanted = getattr(theirs, name)
        assert shapes == [
            tuple(leaf.shape) for leaf in (wanted if isinstance(wanted, tuple) else [wanted]) if leaf is not None
        ]


@post_norm
def test_pads_are_tokens_like_others_where_no_mask_is_given(models, batch, everything):
    reference, model, params = models
    ids = {name: batch[name] for name in ("input_ids", "decoder_input_ids")}
    ours, theirs = run(model, params, ids, ()), expected(reference, ids, ())
    assert largest_difference(ours.logits, theirs.logits) < TOLERANCE
    kept = batch["decoder_attention_mask"]
    assert largest_difference(ours.logits, everything.logits, kept) > 100 * TOLERANCE


def test_embeddings_of_ones_own_are_used_as_they_are(models, batch):
    reference, model, params = models
    rng = np.random.default_rng(1)
    D = model.config.d_model
    embeds = {
        "inputs_embeds": rng.normal(size=(*batch["input_ids"].shape, D)).astype(np.float32),
        "decoder_inputs_embeds": rng.normal(size=(*batch["decoder_input_ids"].shape, D)).astype(np.float32),
    }
    labels = np.where(batch["decoder_attention_mask"], batch["decoder_input_ids"], -100)
    masks = {name: batch[name] for name in ("attention_mask", "decoder_attention_mask")} | {"labels": labels}
    ours = run(model, params, {**embeds, **masks})
    theirs = expected(reference, masks, **{name: torch.from_numpy(array) for name, array in embeds.items()})
    found = differences(ours, theirs, batch["attention_mask"], batch["decoder_attention_mask"])
    assert max(found.values()) < TOLERANCE, found
    assert ours.loss is not None


def test_embeddings_of_ids_are_those_the_ids_stand_for(models, batch, everything):
    reference, model, params = models
    inputs = {name: batch[name] for name in ("attention_mask", "decoder_attention_mask")}
    inputs["labels"] = batch["decoder_input_ids"]
    source, target = (
        model.apply({"params": params}, batch[name], method=method)
        for name, method in (("input_ids", "embed_source"), ("decoder_input_ids", "embed_target"))
    )
    out = run(model, params, {**inputs, "inputs_embeds": source, "decoder_inputs_embeds": target})
    assert largest_difference(out.logits, everything.logits) < 1e-5
    # In transformers the embedding module scales in one architecture, and the encoder after it in the other.
    with torch.no_grad():
        theirs = reference.get_input_embeddings()(torch.from_numpy(batch["input_ids"]).long())
    scale = 1 if model.config.normalize_before else model.config.d_model**0.5
    assert largest_difference(source, theirs * scale) < 1e-5


@post_norm
def test_what_the_encoder_gave_may_be_handed_on_in_any_form(models, batch, everything):
    reference, model, params = models
    whole = EncoderOutput(
        everything.encoder_last_hidden_state, everything.encoder_hidden_states, everything.encoder_attentions
    )
    forms = {"array": whole.last_hidden_state, "tuple": (whole.last_hidden_state,), "record": whole}
    inputs = {name: array for name, array in batch.items() if name != "input_ids"}
    # One program for all: what they have in common is compiled once.
    outs = jax.jit(
        lambda params, forms: {
            form: run(model, params, {**inputs, "encoder_outputs": given}) for form, given in forms.items()
        }
    )(params, forms)
    states, layers, weights = (
        jax.tree.map(lambda leaf: torch.from_numpy(np.array(leaf)), part) for part in vars(whole).values()
    )
    for form, out in outs.items():
        handed_on = BaseModelOutput(states, layers, weights) if form == "record" else (states,)
        theirs = expected(reference, inputs, encoder_outputs=handed_on)
        found = differences(out, theirs, batch["attention_mask"], batch["decoder_attention_mask"])
        assert max(found.values()) < TOLERANCE, (form, found)
        assert largest_difference(out.logits, everything.logits) < 1e-5


@post_norm
def test_logits_to_keep_are_the_last_ones(models, batch, everything):
    _, model, params = models

    @jax.jit
    def last(params):
        return [model.apply({"params": params}, **batch, logits_to_keep=kept).logits for kept in (1, 4)]

    one, four = last(params)
    assert one.shape[:2] == (3, 1)
    assert four.shape[:2] == (3, 4)
    assert largest_difference(one, everything.logits[:, -1:]) < 1e-5
    assert largest_difference(four, everything.logits[:, -4:]) < 1e-5


def test_padding_on_the_left_on_the_right_or_nowhere_gives_the_same_states(models, batch, everything):
    _, model, params = models

    def moved(name: str, mask: str) -> np.ndarray:
        """Each row's kept places at its end."""
        array = batch[name]
        return np.stack(
            [np.roll(row, -int(kept.sum()) % len(row)) for row, kept in zip(array, batch[mask], strict=True)]
        )

    masks = {"input_ids": "attention_mask", "decoder_input_ids": "decoder_attention_mask"}
    left = {name: moved(name, masks.get(name, name)) for name in batch}
    assert (left["attention_mask"][:, -1] == 1).all()
    assert not np.array_equal(left["decoder_input_ids"], batch["decoder_input_ids"])
    out = run(model, params, left)
    for name in ("encoder_hidden_states", "decoder_hidden_states"):
        here, there = (
            m["attention_mask" if name.startswith("encoder") else "decoder_attention_mask"] == 1 for m in (left, batch)
        )
        for a, b in zip(getattr(out, name), getattr(everything, name), strict=True):
            assert largest_difference(np.asarray(a)[here], np.asarray(b)[there]) < 1e-5, name
    S, T = SOURCE[1], TARGET[1]
    alone = run(
        model,
        params,
        {"input_ids": batch["input_ids"][1:2, :S], "decoder_input_ids": batch["decoder_input_ids"][1:2, :T]},
        (),
    )
    assert largest_difference(out.logits[1, -T:], alone.logits[0]) < 1e-5
    assert largest_difference(everything.logits[1, :T], alone.logits[0]) < 1e-5


def test_four_tables_of_their_own_are_used_each_in_its_place(models, batch):
    config = models[1].config.replace(tie_word_embeddings=False)
    reference = reference_model(config, seed=2)
    model, params = BlenderbotForConditionalGeneration(config), params_of(reference, tied=False)
    shapes = {path: leaf.shape for path, leaf in flatten(params).items()}
    wanted = jax.eval_shape(model.init_params, jax.random.key(0))
    assert shapes == {path: leaf.shape for path, leaf in flatten(wanted).items()}
    tables = [path for path, shape in shapes.items() if sorted(shape) == [config.d_model, config.vocab_size]]
    assert len(tables) == 4
    found = differences(
        run(model, params, batch),
        expected(reference, batch),
        batch["attention_mask"],
        batch["decoder_attention_mask"],
    )
    assert max(found.values()) < TOLERANCE, found
