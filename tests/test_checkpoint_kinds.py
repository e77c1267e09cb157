"""Checkpoints of every kind of model: with and without head, of the decoder alone, with one table or with several."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from safetensors.numpy import load_file, save_file

import blenderbot_jax.model as models
from blenderbot_jax.checkpoint import CheckpointError, load_params, save_pretrained
from blenderbot_jax.checkpoint.names import Target, flatten, target_of, unflatten
from tests.checkpoint_files import (
    SHARED,
    TABLES,
    assert_same,
    expected_leaves,
    leaves_of,
    published_names,
    random_tensors,
    tree_of,
    write,
)

KINDS = ("ForConditionalGeneration", "Model", "ForCausalLM")


@pytest.fixture(params=["tiny_config", "tiny_small_config"])
def family(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def config(request, family):
    return family.replace(tie_word_embeddings=request.param)


def load(folder, config, kind):
    root = "model/" if kind == "Model" else ""
    return flatten(load_params(folder, config, tree_of(config, kind), np.float32, root=root))


def refusal(folder, config, kind="ForConditionalGeneration"):
    with pytest.raises(CheckpointError) as error:
        load(folder, config, kind)
    return str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_these_are_the_trees_of_the_models(config, kind):
    model = getattr(models, f"Blenderbot{kind}")(config)
    theirs = flatten(jax.eval_shape(model.init_params, jax.random.key(0)))
    assert {path: leaf.shape for path, leaf in theirs.items()} == {
        path: leaf.shape for path, leaf in flatten(tree_of(config, kind)).items()
    }


# Names.


def test_an_untied_model_has_a_row_for_each_table():
    assert target_of("model.decoder.embed_tokens.weight", tied=False) == Target(
        "model/decoder/embed_tokens/embedding", transposed=False, alias=False
    )
    assert target_of("lm_head.weight", tied=False) == Target("lm_head/kernel", transposed=True, alias=False)
    assert target_of("lm_head/kernel", tied=False) == Target("lm_head/kernel", transposed=False, alias=False)


def test_a_tied_head_is_the_table_as_it_lies_in_the_file():
    assert target_of("lm_head.weight") == Target("model/shared/embedding", transposed=False, alias=True)
    assert target_of("lm_head/kernel") == Target("model/shared/embedding", transposed=True, alias=True)


@pytest.mark.parametrize(
    "path", ["model/encoder/layers/0/fc1/weight", "model/shared/kernel", "params/model/shared/embedding", "a/b"]
)
def test_other_paths_have_no_row(path):
    assert target_of(path) is None


def test_the_names_are_those_transformers_gives_an_untied_model(family):
    pytest.importorskip("transformers")
    from tests.parity.reference import reference_model

    config = family.replace(tie_word_embeddings=False)
    theirs = {key: tuple(tensor.shape) for key, tensor in reference_model(config).state_dict().items()}
    assert theirs == {key: tensor.shape for key, tensor in random_tensors(config).items()}


# Loading.


@pytest.mark.parametrize("kind", KINDS)
def test_each_model_takes_what_it_needs_of_a_whole_checkpoint(tmp_path, config, kind):
    write(tmp_path, config, random_tensors(config))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = load(tmp_path, config, kind)
    assert_same(tree, flatten(tree_of(config, kind)))


@pytest.mark.parametrize("kind", KINDS)
def test_each_model_takes_what_it_needs_of_a_flax_checkpoint(tmp_path, config, kind):
    leaves = expected_leaves(config, random_tensors(config), np.float32)
    (tmp_path / "flax_model.msgpack").write_bytes(msgpack_serialize(unflatten(leaves)))
    assert_same(load(tmp_path, config, kind), flatten(tree_of(config, kind)))


def test_a_flax_file_of_the_model_without_head_has_no_prefix(tmp_path, config):
    tree = tree_of(config, "Model")
    (tmp_path / "flax_model.msgpack").write_bytes(msgpack_serialize(tree))
    assert_same(load(tmp_path, config, "Model"), flatten(tree))


@pytest.mark.parametrize("equal", [True, False])
def test_a_flax_head_of_a_tied_model_must_equal_the_table(tmp_path, family, equal):
    leaves = expected_leaves(family, random_tensors(family), np.float32)
    head = leaves["model/shared/embedding"].T if equal else -leaves["model/shared/embedding"].T
    (tmp_path / "flax_model.msgpack").write_bytes(msgpack_serialize(unflatten(leaves | {"lm_head/kernel": head})))
    if equal:
        assert_same(load(tmp_path, family, "ForConditionalGeneration"), leaves)
    else:
        assert "lm_head/kernel should be another name of model/shared/embedding" in refusal(tmp_path, family)


@pytest.mark.parametrize("key", [SHARED, *TABLES])
def test_a_tied_decoder_takes_the_table_under_any_of_its_names(tmp_path, family, key):
    tensors = random_tensors(family)
    decoder = {name: tensor for name, tensor in tensors.items() if name.startswith("model.decoder.")}
    save_file(decoder | {key: tensors[SHARED]}, tmp_path / "model.safetensors")
    assert_same(load(tmp_path, family, "ForCausalLM"), flatten(tree_of(family, "ForCausalLM")))


@pytest.mark.parametrize("missing", TABLES[:2])
def test_a_model_that_was_untied_at_the_head_alone_shares_the_table_of_its_sides(tmp_path, family, missing):
    config = family.replace(tie_word_embeddings=False)
    tensors = random_tensors(config)
    write(tmp_path, config, {key: tensor for key, tensor in tensors.items() if key != missing})
    loaded = load(tmp_path, config, "ForConditionalGeneration")
    assert_same(loaded, expected_leaves(config, tensors | {missing: tensors[SHARED]}, np.float32))


@pytest.mark.parametrize("missing", [SHARED, "lm_head.weight"])
def test_an_untied_model_does_not_guess_the_other_tables(tmp_path, family, missing):
    config = family.replace(tie_word_embeddings=False)
    tensors = random_tensors(config)
    write(tmp_path, config, {key: tensor for key, tensor in tensors.items() if key != missing})
    assert f"missing: {missing}" in refusal(tmp_path, config)


def test_what_is_wrong_in_the_part_that_is_read_is_still_named(tmp_path, config):
    tensors = random_tensors(config)
    fc1 = "model.decoder.layers.1.fc1.weight"
    tensors["model.decoder.layers.7.fc1.bias"] = tensors.pop(fc1)
    write(tmp_path, config, tensors)
    message = refusal(tmp_path, config, "ForCausalLM")
    assert f"missing: {fc1}" in message
    assert "unexpected: model.decoder.layers.7.fc1.bias" in message
    assert "model.encoder" not in message


def test_a_decoder_alone_is_no_whole_model(tmp_path, config):
    save_pretrained(tmp_path, config, tree_of(config, "ForCausalLM"))
    assert "model.encoder.layers.0.fc1.weight" in refusal(tmp_path, config)


def test_what_is_missing_of_a_flax_file_is_named_by_its_path(tmp_path, family):
    tree = tree_of(family, "ForConditionalGeneration")
    del tree["model"]["encoder"]["layers"]["0"]["fc1"]["kernel"]
    (tmp_path / "flax_model.msgpack").write_bytes(msgpack_serialize(tree))
    assert "missing: model/encoder/layers/0/fc1/kernel" in refusal(tmp_path, family)


# Saving.


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_loads_again(tmp_path, config, kind):
    tree = jax.tree.map(jnp.asarray, tree_of(config, kind))
    save_pretrained(tmp_path, config, tree)
    assert_same(load(tmp_path, config, kind), flatten(tree))
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["architectures"] == [f"{'Blenderbot' if config.normalize_before else 'BlenderbotSmall'}{kind}"]
    causal = kind == "ForCausalLM"
    assert (saved["is_decoder"], saved["is_encoder_decoder"], saved["dtype"]) == (causal, not causal, "float32")


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_of_the_other_tying_are_not_saved(tmp_path, config, kind):
    other = config.replace(tie_word_embeddings=not config.tie_word_embeddings)
    with pytest.raises(ValueError, match=f"says tie_word_embeddings={other.tie_word_embeddings}"):
        save_pretrained(tmp_path / "new", other, tree_of(config, kind))
    assert not (tmp_path / "new").exists()


def test_parameters_without_any_table_are_not_saved(tmp_path, tiny_config):
    tree = tree_of(tiny_config, "ForCausalLM")
    del tree["model"]["shared"]
    with pytest.raises(ValueError, match="no embedding: model/shared/embedding is missing"):
        save_pretrained(tmp_path / "new", tiny_config, tree)


# To transformers and back.


def in_transformers(folder, config, kind):
    transformers = pytest.importorskip("transformers")
    family = "Blenderbot" if config.normalize_before else "BlenderbotSmall"
    model, report = getattr(transformers, f"{family}{kind}").from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_what_is_saved_and_saves_the_same(tmp_path, config, kind):
    save_pretrained(tmp_path / "ours", config, tree_of(config, kind))
    model = in_transformers(tmp_path / "ours", config, kind)
    model.save_pretrained(tmp_path / "theirs")
    assert_same(*(load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs")))
    assert_same(load(tmp_path / "theirs", config, kind), flatten(tree_of(config, kind)))
    state, leaves = model.state_dict(), leaves_of(config, kind)
    for key, (path, transposed) in published_names(config).items():
        name = key.removeprefix("model.") if kind == "Model" else key
        if path in leaves and name in state:
            leaf = leaves[path].T if transposed else leaves[path]
            np.testing.assert_array_equal(state[name].numpy(), leaf, err_msg=key)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_gives_the_same_numbers_from_what_is_saved(tmp_path, config, kind):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.parity.reference import TOLERANCE, as_torch, largest_difference, right_padded

    # transformers has not scaled the post-norm decoder's embeddings since 4.53
    config = config.replace(scale_decoder_embedding=False)
    tree = jax.tree.map(lambda leaf: jnp.asarray(np.float32(0.3) * leaf), tree_of(config, kind))
    save_pretrained(tmp_path, config, tree)
    model, params = getattr(models, f"Blenderbot{kind}").from_pretrained(tmp_path)
    assert_same(flatten(params), flatten(tree))
    ids, mask = right_padded(np.random.default_rng(1), [9, 5], config.vocab_size)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if kind != "ForCausalLM":
        inputs["decoder_input_ids"] = ids[:, :4]
    with torch.no_grad():
        # Its decoder alone sizes the cache by the number of encoder layers, and fails where there are fewer.
        theirs = in_transformers(tmp_path, config, kind)(**as_torch(**inputs), use_cache=False)
    ours = model.apply({"params": params}, **inputs)
    field = "last_hidden_state" if kind == "Model" else "logits"
    assert float(getattr(theirs, field).std()) > 0.1
    where = mask if kind == "ForCausalLM" else None
    assert largest_difference(getattr(ours, field), getattr(theirs, field), where) < TOLERANCE
