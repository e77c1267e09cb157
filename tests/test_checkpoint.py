"""Checkpoints: the table of names, every kind of weights file in, refusals, and folders transformers loads out."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from safetensors.numpy import load_file, save_file

from blenderbot_jax import GenerationConfig
from blenderbot_jax.checkpoint import save as saving
from blenderbot_jax.checkpoint import save_pretrained
from blenderbot_jax.checkpoint.names import _COMPILED, Target, flatten, source_name, target_of, unflatten
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.model import BlenderbotForConditionalGeneration, BlenderbotModel
from tests.checkpoint_files import (
    SHARED,
    assert_same,
    content,
    expected_leaves,
    expected_shapes,
    load,
    published_names,
    random_params,
    random_tensors,
    refusal,
    write,
    write_index,
)
from tests.checkpoint_files import TABLES as ALIASES

FC1, LAST_NORM = "model.encoder.layers.0.fc1.weight", "model.decoder.layer_norm.bias"
DTYPES = [np.dtype("float32"), np.dtype("float16"), np.dtype(jnp.bfloat16)]


@pytest.fixture(params=["tiny_config", "tiny_small_config"])
def config(request):
    return request.getfixturevalue(request.param)


# The table of names.


def test_every_leaf_has_one_key_and_every_key_one_row(config):
    names = published_names(config)
    assert sorted(path for path, _ in names.values()) == sorted(expected_shapes(config))
    for key, (path, transposed) in names.items():
        assert sum(bool(pattern.fullmatch(key)) for pattern, _ in _COMPILED) == 1, key
        assert target_of(key) == Target(path, transposed, alias=False)
        assert source_name(path) == key


def test_the_written_out_names_are_those_of_transformers(config):
    pytest.importorskip("transformers")
    from tests.parity.reference import reference_model

    theirs = {key: tuple(tensor.shape) for key, tensor in reference_model(config).state_dict().items()}
    ours = {key: tensor.shape for key, tensor in random_tensors(config).items()}
    assert ours == {key: shape for key, shape in theirs.items() if not target_of(key).alias}
    assert {target_of(key).path for key in theirs.keys() - ours.keys()} == {"model/shared/embedding"}


@pytest.mark.parametrize(
    "key", ["lm_head.bias", "model.encoder.layers.x.fc1.bias", "a.model.shared.weight", "model.encoder.fc1.bias", ""]
)
def test_other_keys_have_no_row(key):
    assert target_of(key) is None


# Kinds of file.


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin", "legacy", "flax_model.msgpack"])
def test_every_kind_of_file_loads(tmp_path, config, kind, sharded):
    tensors = random_tensors(config)
    save = save_file
    if kind in ("pytorch_model.bin", "legacy"):
        torch = pytest.importorskip("torch")
        zipped = kind != "legacy"
        kind = "pytorch_model.bin"

        def save(part, path):
            part = {key: torch.from_numpy(array) for key, array in part.items()}
            torch.save(part, path, _use_new_zipfile_serialization=zipped)

    elif kind == "flax_model.msgpack":
        tensors = expected_leaves(config, tensors, np.float16)

        def save(part, path):
            path.write_bytes(msgpack_serialize(unflatten(part)))

    config.save_json(tmp_path / "config.json")
    if sharded:
        keys = list(tensors)
        parts = {f"part-{i}-of-3": {key: tensors[key] for key in keys[i::3]} for i in range(3)}
        for name, part in parts.items():
            save(part, tmp_path / name)
        write_index(tmp_path, {key: name for name, part in parts.items() for key in part}, kind)
    else:
        save(tensors, tmp_path / kind)
    model, params = BlenderbotForConditionalGeneration.from_pretrained(tmp_path)
    assert model.config == config
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    assert_same(flatten(params), expected_leaves(config, random_tensors(config), np.float32))


@pytest.mark.parametrize("wanted", DTYPES, ids=str)
@pytest.mark.parametrize("stored", DTYPES, ids=str)
def test_every_dtype_is_converted_to_the_one_asked_for(tmp_path, tiny_config, stored, wanted):
    tensors = random_tensors(tiny_config, stored)
    model, params = BlenderbotForConditionalGeneration.from_pretrained(
        write(tmp_path, tiny_config, tensors), dtype=wanted
    )
    assert model.dtype == wanted
    assert_same(flatten(params), expected_leaves(tiny_config, tensors, wanted))


def test_safetensors_is_read_where_both_are_there(tmp_path, tiny_config):
    tensors = random_tensors(tiny_config)
    write(tmp_path, tiny_config, tensors)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
    assert_same(load(tmp_path), expected_leaves(tiny_config, tensors, np.float32))


def test_parameters_can_be_donated(tmp_path, tiny_config):
    # On a CPU the arrays lie in memory that numpy allocated.
    tensors = random_tensors(tiny_config)
    params = load(write(tmp_path, tiny_config, tensors))
    doubled = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + leaf, tree), donate_argnums=0)(params)
    assert_same(doubled, {path: 2 * leaf for path, leaf in expected_leaves(tiny_config, tensors, np.float32).items()})


# Files that differ from what transformers writes today.


def test_a_file_of_the_model_without_head_has_no_prefix(tmp_path, config):
    tensors = random_tensors(config)
    del tensors["final_logits_bias"]
    write(tmp_path, config, {key.removeprefix("model."): tensor for key, tensor in tensors.items()})
    tensors["final_logits_bias"] = np.zeros((1, config.vocab_size), np.float16)
    assert_same(load(tmp_path), expected_leaves(config, tensors, np.float32))


def test_the_model_without_head_reads_a_file_with_head(tmp_path, config):
    tensors = random_tensors(config)
    tensors["lm_head.weight"] = tensors[SHARED].copy()
    model, params = BlenderbotModel.from_pretrained(write(tmp_path, config, tensors))
    assert isinstance(model, BlenderbotModel)
    whole = expected_leaves(config, tensors, np.float32)
    del whole["final_logits_bias"]
    assert_same({f"model/{path}": leaf for path, leaf in flatten(params).items()}, whole)


def test_a_missing_final_logits_bias_is_zero(tmp_path, tiny_config):
    tensors = random_tensors(tiny_config)
    del tensors["final_logits_bias"]
    bias = load(write(tmp_path, tiny_config, tensors), jnp.bfloat16)["final_logits_bias"]
    assert (bias.shape, bias.dtype) == ((1, tiny_config.vocab_size), jnp.bfloat16)
    assert not np.asarray(bias).any()


def test_equal_aliases_are_accepted(tmp_path, tiny_config):
    tensors = random_tensors(tiny_config)
    write(tmp_path, tiny_config, tensors | {key: tensors[SHARED].copy() for key in ALIASES})
    assert_same(load(tmp_path), expected_leaves(tiny_config, tensors, np.float32))


@pytest.mark.parametrize("key", ALIASES)
def test_an_unequal_alias_is_refused_by_name(tmp_path, tiny_config, key):
    tensors = random_tensors(tiny_config)
    other = tensors[SHARED].copy()
    other[-1, -1] += 1
    assert f"{key} should be another name of" in refusal(write(tmp_path, tiny_config, tensors | {key: other}))


@pytest.mark.parametrize("key", ALIASES)
def test_an_alias_alone_is_used(tmp_path, tiny_config, key):
    tensors = random_tensors(tiny_config)
    write(tmp_path, tiny_config, {key if name == SHARED else name: tensor for name, tensor in tensors.items()})
    assert_same(load(tmp_path), expected_leaves(tiny_config, tensors, np.float32))


def test_aliases_alone_must_agree(tmp_path, tiny_config):
    tensors = random_tensors(tiny_config)
    shared = tensors.pop(SHARED)
    assert "values differ" in refusal(write(tmp_path, tiny_config, tensors | {ALIASES[0]: shared, ALIASES[1]: -shared}))


def test_layernorm_embedding_is_left_over_in_a_pre_norm_file_only(tmp_path, tiny_config, tiny_small_config):
    width = np.ones(tiny_config.d_model, np.float16)
    sides = ("encoder", "decoder")
    leftover = {f"model.{side}.layernorm_embedding.{x}": width for side in sides for x in ("weight", "bias")}
    tensors = random_tensors(tiny_config)
    write(tmp_path, tiny_config, tensors | leftover)
    assert_same(load(tmp_path), expected_leaves(tiny_config, tensors, np.float32))
    tensors = random_tensors(tiny_small_config)
    assert "unexpected: model.encoder.layer_norm.weight" in refusal(
        write(tmp_path, tiny_small_config, tensors | {"model.encoder.layer_norm.weight": width})
    )


# Refusals.


def test_everything_wrong_is_named_at_once_before_anything_is_placed(tmp_path, tiny_config, monkeypatch):
    class PlacedError(Exception):
        pass

    def device_put(*_, **__):
        raise PlacedError

    tensors = random_tensors(tiny_config)
    write(tmp_path, tiny_config, tensors)
    monkeypatch.setattr(jax, "device_put", device_put)
    with pytest.raises(PlacedError):
        load(tmp_path)
    missing = [key for key in tensors if ".self_attn." in key]
    bad = {key: tensor for key, tensor in tensors.items() if key not in missing}
    bad |= {FC1: tensors[FC1].T.copy(), LAST_NORM: tensors[LAST_NORM][:-1].copy()}
    bad |= {"model.encoder.layers.9.fc1.weight": tensors[FC1], "optimizer.step": np.ones(1, np.float32)}
    message = refusal(write(tmp_path, tiny_config, bad))
    named = [*missing, FC1, LAST_NORM, "model.encoder.layers.9.fc1.weight", "optimizer.step", str(tmp_path)]
    assert [name for name in named if name not in message] == []
    assert f"{FC1} has shape [24, 40], the configuration asks for [40, 24]" in message


def test_weights_of_another_size_are_refused(tmp_path, tiny_config):
    write(tmp_path, tiny_config, random_tensors(tiny_config))
    tiny_config.replace(decoder_layers=4, vocab_size=97).save_json(tmp_path / "config.json")
    message = refusal(tmp_path)
    assert "model.decoder.layers.3.encoder_attn.out_proj.bias" in message
    assert f"{SHARED} has shape [96, 24], the configuration asks for [97, 24]" in message


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "bool"])
def test_integers_are_no_weights(tmp_path, tiny_config, dtype):
    tensors = random_tensors(tiny_config)
    tensors[FC1] = np.ones(tensors[FC1].shape, dtype)
    assert f"{FC1} holds {dtype}, weights are floating point" in refusal(write(tmp_path, tiny_config, tensors))


@pytest.mark.parametrize("elsewhere", ["../outside.safetensors", "{absolute}", "sub/outside.safetensors", "..", ""])
def test_an_index_may_not_point_elsewhere(tmp_path, tiny_config, elsewhere):
    tensors = random_tensors(tiny_config)
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path, folder / "sub"):
        save_file(tensors, place / "outside.safetensors")
    tiny_config.save_json(folder / "config.json")
    name = elsewhere.format(absolute=tmp_path / "outside.safetensors")
    write_index(folder, dict.fromkeys(tensors, name))
    assert f"{name!r} is a path elsewhere" in refusal(folder)


def test_a_missing_shard_is_named(tmp_path, tiny_config):
    tensors = random_tensors(tiny_config)
    write(tmp_path, tiny_config, tensors)
    (tmp_path / "model.safetensors").rename(tmp_path / "one")
    write_index(tmp_path, dict.fromkeys(tensors, "one") | {FC1: "two"})
    assert "the shard two is not there" in refusal(tmp_path)


def test_a_promise_the_shard_does_not_keep_is_named(tmp_path, tiny_config):
    tensors = random_tensors(tiny_config)
    del tensors[FC1]
    save_file(tensors, tmp_path / "one")
    tiny_config.save_json(tmp_path / "config.json")
    write_index(tmp_path, dict.fromkeys([*tensors, FC1], "one"))
    assert f"do not hold: {FC1}" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[" * 100_000])
def test_an_index_that_is_none_is_refused(tmp_path, tiny_config, text):
    tiny_config.save_json(tmp_path / "config.json")
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json" in refusal(tmp_path)


def test_a_folder_without_weights_lists_what_is_there(tmp_path, tiny_config):
    tiny_config.save_json(tmp_path / "config.json")
    (tmp_path / "tf_model.h5").touch()
    message = refusal(tmp_path)
    assert "The folder holds config.json, tf_model.h5" in message
    assert "model.safetensors or pytorch_model.bin or flax_model.msgpack" in message


def test_a_folder_without_config_is_refused(tmp_path):
    assert "no config.json" in refusal(tmp_path)


# Saving.


class Unwritable:
    """A tokenizer or generation config that fails after its first bytes."""

    def save_pretrained(self, folder):
        self.save_json(Path(folder) / "vocab.json")

    def save_json(self, path):
        Path(path).write_text("half")
        raise OSError("disk full")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_saved_loads_bit_for_bit(tmp_path, config, dtype):
    params = random_params(config, dtype)
    save_pretrained(tmp_path / "new" / "model", config, params)
    assert sorted(content(tmp_path / "new" / "model")) == ["config.json", "model.safetensors"]
    assert_same(load(tmp_path / "new" / "model", dtype), flatten(params))
    assert BlenderbotConfig.from_json(tmp_path / "new" / "model" / "config.json") == config


def test_saving_over_a_folder_replaces_its_files_and_leaves_others(tmp_path, tiny_config):
    params = random_params(tiny_config)
    write(tmp_path, tiny_config, random_tensors(tiny_config) | {"stray": np.ones(1, np.float32)})
    (tmp_path / "README.md").write_text("mine")
    save_pretrained(str(tmp_path), tiny_config, params, GenerationConfig.recipe(num_beams=3))
    assert sorted(content(tmp_path)) == ["README.md", "config.json", "generation_config.json", "model.safetensors"]
    assert_same(load(tmp_path), flatten(params))
    assert GenerationConfig.from_pretrained(tmp_path) == GenerationConfig.recipe(num_beams=3)
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize("failing", ["weights", "generation_config", "tokenizer"])
def test_a_failure_half_way_changes_nothing(tmp_path, tiny_config, monkeypatch, failing):
    folder = write(tmp_path / "model", tiny_config, random_tensors(tiny_config))
    (folder / "vocab.json").write_text("{}")
    before = content(folder)
    if failing == "weights":
        monkeypatch.setattr(saving, "write_safetensors", lambda path, *_: Unwritable().save_json(path))
    broken = {} if failing == "weights" else {failing: Unwritable()}
    other = tiny_config.replace(dropout=0.5)
    for target in (folder, tmp_path / "new"):
        with pytest.raises(OSError, match="disk full"):
            save_pretrained(target, other, random_params(other), **broken)
    assert content(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("left_out", [("final_logits_bias",), ("model",), ("final_logits_bias", "model")])
def test_what_are_no_parameters_of_a_model_is_not_saved(tmp_path, tiny_config, left_out):
    params = {key: tree for key, tree in random_params(tiny_config).items() if key not in left_out}
    with pytest.raises(ValueError, match=r"BlenderbotForCausalLM .*; these hold"):
        save_pretrained(tmp_path / "model", tiny_config, params)
    assert not list(tmp_path.iterdir())


def test_other_keys_of_the_configuration_survive(tmp_path, tiny_config):
    folder = write(tmp_path / "old", tiny_config, random_tensors(tiny_config))
    legacy = {"add_final_layer_norm": True, "layernorm_variant": "prelayernorm", "extra_pos_embeddings": 0}
    unknown = {"task_specific_params": {"a": [1, None]}, "id2label": {"0": "x"}, "num_hidden_layers": 1, "unk": "é"}
    stored = json.loads((folder / "config.json").read_text()) | legacy | unknown
    (folder / "config.json").write_text(json.dumps(stored))
    model, params = BlenderbotForConditionalGeneration.from_pretrained(folder)
    save_pretrained(tmp_path / "new", model.config, params)
    saved = json.loads((tmp_path / "new" / "config.json").read_text(encoding="utf-8"))
    assert saved == stored | {"architectures": ["BlenderbotForConditionalGeneration"], "dtype": "float32"}


# To transformers and back.


def in_transformers(folder, config, **settings):
    transformers = pytest.importorskip("transformers")
    family = "Blenderbot" if config.normalize_before else "BlenderbotSmall"
    model_class = getattr(transformers, f"{family}ForConditionalGeneration")
    model, report = model_class.from_pretrained(folder, output_loading_info=True, **settings)
    assert not any(report.values()), report
    return model.eval()


def test_transformers_gives_the_same_logits_from_what_is_saved(tmp_path, config):
    torch = pytest.importorskip("torch")
    # transformers has not scaled the post-norm decoder's embeddings since 4.53
    config = config.replace(scale_decoder_embedding=False)
    params = jax.tree.map(lambda leaf: 0.3 * leaf, random_params(config))
    save_pretrained(tmp_path, config, params)
    reference = in_transformers(tmp_path, config)

    from tests.parity.reference import TOLERANCE, as_torch, forward, largest_difference, right_padded

    ids, mask = right_padded(np.random.default_rng(1), [9, 5], config.vocab_size)
    inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :4]}
    with torch.no_grad():
        theirs = reference(**as_torch(**inputs)).logits
    ours = forward(BlenderbotForConditionalGeneration(config), params, inputs).logits
    assert float(theirs.std()) > 0.1
    assert largest_difference(ours, theirs) < TOLERANCE


def test_float16_goes_from_transformers_to_us_and_back_bit_for_bit(tmp_path, config):
    torch = pytest.importorskip("torch")
    from tests.parity.reference import reference_model

    reference = reference_model(config).half()
    reference.save_pretrained(tmp_path / "theirs")
    model, params = BlenderbotForConditionalGeneration.from_pretrained(tmp_path / "theirs", dtype=jnp.float16)
    save_pretrained(tmp_path / "ours", model.config, params)
    back = in_transformers(tmp_path / "ours", config, dtype="auto").state_dict()
    assert back.keys() == reference.state_dict().keys()
    for key, tensor in reference.state_dict().items():
        assert back[key].dtype == torch.float16
        assert torch.equal(back[key], tensor), key
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert_same(ours, theirs)


@pytest.mark.slow
def test_loading_takes_little_more_memory_than_the_weights():
    command = [sys.executable, "-m", "benchmarks.load_memory", "--size", "90m"]
    run = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_parameters_of_another_configuration_are_not_saved(tmp_path, tiny_config):
    params = BlenderbotForConditionalGeneration(tiny_config).init_params(jax.random.key(0))
    with pytest.raises(ValueError, match=r"embedding is \[96, 24\], the configuration says \[99, 24\]"):
        save_pretrained(tmp_path / "new", tiny_config.replace(vocab_size=99), params)
    assert not (tmp_path / "new").exists()
