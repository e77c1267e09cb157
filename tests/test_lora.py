"""LoRA: beside a kernel it computes what it does when merged, and rows of a batch may each have their own."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from blenderbot_jax import (
    BlenderbotForConditionalGeneration,
    CheckpointError,
    GenerationConfig,
    generate,
    quantize,
)
from blenderbot_jax.checkpoint.names import flatten
from blenderbot_jax.lora import Adapter, LoraConfig, attach, by_row, init_lora, load_lora, merge, save_lora

IDS = np.array([[5, 6, 7, 2], [9, 8, 2, 0], [11, 3, 40, 2]], np.int32)
REPLIES = np.array([[1, 7, 20], [1, 30, 31], [1, 5, 4]], np.int32)
CONFIG = LoraConfig(rank=3, alpha=6.0, targets=("q_proj", "v_proj", "fc1"))


@pytest.fixture(scope="module")
def model(tiny_config):
    return BlenderbotForConditionalGeneration(tiny_config)


@pytest.fixture(scope="module")
def params(model):
    return model.init_params(jax.random.key(0))


def drawn(params, seed, config=CONFIG):
    """Adapters that change something."""
    key = jax.random.key(seed)
    begun = init_lora(params, config, key)
    return {path: Adapter(one.down, 0.1 * jax.random.normal(key, one.up.shape)) for path, one in begun.items()}


def logits(model, params, rows=slice(None)):
    return model.apply({"params": params}, IDS[rows], (IDS[rows] != 0).astype(np.int32), REPLIES[rows]).logits


@pytest.mark.long
def test_new_adapters_change_nothing(model, params):
    adapters = init_lora(params, CONFIG, jax.random.key(1))
    assert all(float(abs(one.down).max()) > 0 for one in adapters.values())
    np.testing.assert_array_equal(logits(model, attach(params, adapters, CONFIG)), logits(model, params))


def test_targets_choose_kernels_by_name_or_by_pattern(params):
    named = init_lora(params, LoraConfig(targets=("q_proj",)), jax.random.key(0))
    assert len(named) == 5  # one encoder layer, two decoder layers with two attentions each
    cross = init_lora(params, LoraConfig(targets=("decoder/.*/encoder_attn/v_proj",)), jax.random.key(0))
    assert sorted(cross) == [f"model/decoder/layers/{i}/encoder_attn/v_proj/kernel" for i in range(2)]


def test_beside_or_merged_it_is_the_dense_update_that_it_stands_for(model, params):
    adapters = drawn(params, 2)
    dense = dict(flatten(params))
    for path, one in adapters.items():
        dense[path] = dense[path] + CONFIG.scale * np.asarray(one.down, np.float64) @ np.asarray(one.up, np.float64)
    merged = merge(params, adapters, CONFIG)
    for path, leaf in flatten(merged).items():
        np.testing.assert_allclose(leaf, dense[path], atol=1e-6, err_msg=path)
    beside = logits(model, attach(params, adapters, CONFIG))
    assert float(abs(beside - logits(model, params)).max()) > 0.01
    np.testing.assert_allclose(beside, logits(model, merged), atol=1e-5)


@pytest.mark.long
def test_rows_of_a_batch_have_their_own(model, params):
    bank = [drawn(params, seed) for seed in (3, 4)]
    mixed = logits(model, attach(params, by_row(bank, [1, -1, 0]), CONFIG))
    alone = [attach(params, bank[1], CONFIG), params, attach(params, bank[0], CONFIG)]
    for row, tree in enumerate(alone):
        np.testing.assert_allclose(mixed[row], logits(model, tree, slice(row, row + 1))[0], atol=1e-5)


@pytest.mark.parametrize("config", [GenerationConfig(num_beams=3, max_length=8), GenerationConfig(max_length=8)])
def test_one_generation_decodes_for_several_adapters(model, params, config):
    bank = [drawn(params, seed) for seed in (3, 4)]
    mixed = attach(params, by_row(bank, [1, -1, 0]), CONFIG)
    together = generate(model, mixed, IDS, config=config).sequences
    for row, tree in enumerate([merge(params, bank[1], CONFIG), params, merge(params, bank[0], CONFIG)]):
        np.testing.assert_array_equal(
            together[row], generate(model, tree, IDS[row : row + 1], config=config).sequences[0]
        )


def test_quantised_kernels_are_adapted_too(model, params):
    adapters, small = drawn(params, 5), quantize(params)
    change = logits(model, attach(small, adapters, CONFIG)) - logits(model, small)
    wanted = logits(model, attach(params, adapters, CONFIG)) - logits(model, params)
    assert float(abs(change - wanted).max()) < 0.2 * float(abs(wanted).max())


@pytest.mark.long
def test_gradients_reach_adapters_alone(model, params):
    adapters = drawn(params, 6)

    def loss(adapters):
        return logits(model, attach(params, adapters, CONFIG)).var()

    gradients = jax.grad(loss)(adapters)
    assert jax.tree.structure(gradients) == jax.tree.structure(adapters)
    assert all(float(abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradients))


def test_files_give_back_what_was_saved_under_the_names_of_peft(params, tmp_path):
    adapters = drawn(params, 7)
    save_lora(tmp_path, adapters, CONFIG, base="demo")
    read, config = load_lora(tmp_path)
    assert config == CONFIG
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), read, adapters))
    stored = load_file(tmp_path / "adapter_model.safetensors")
    name = "base_model.model.model.encoder.layers.0.self_attn.q_proj.lora_A.weight"
    np.testing.assert_array_equal(stored[name], adapters["model/encoder/layers/0/self_attn/q_proj/kernel"].down.T)
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"], said["target_modules"]) == (3, 6.0, ["fc1", "q_proj", "v_proj"])


def test_files_that_are_no_adapters_of_ours_are_refused(params, tmp_path):
    with pytest.raises(CheckpointError, match="no readable LoRA adapter"):
        load_lora(tmp_path)
    save_lora(tmp_path, drawn(params, 8), CONFIG)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    half = {key: value for key, value in stored.items() if "fc1.lora_B" not in key}
    save_file(half, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="lora_A"):
        load_lora(tmp_path)
    save_file(
        {**stored, "base_model.model.x.lora_A.weight": stored[min(stored)]}, tmp_path / "adapter_model.safetensors"
    )
    with pytest.raises(CheckpointError, match="names no kernel"):
        load_lora(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": True}))
    with pytest.raises(CheckpointError, match="use_dora is True"):
        load_lora(tmp_path)


def test_what_does_not_fit_is_refused(model, params):
    with pytest.raises(ValueError, match="no kernel is called 'qproj'"):
        init_lora(params, LoraConfig(targets=("qproj",)), jax.random.key(0))
    with pytest.raises(ValueError, match="at least 1, not 0"):
        LoraConfig(rank=0)
    adapters = drawn(params, 9)
    with pytest.raises(ValueError, match="does not have"):
        attach(params, {"model/none/kernel": next(iter(adapters.values()))}, CONFIG)
    path = next(iter(adapters))
    narrow = Adapter(adapters[path].down[:-1], adapters[path].up)
    with pytest.raises(ValueError, match="is for a kernel"):
        attach(params, {path: narrow}, CONFIG)
    with pytest.raises(ValueError, match="merge one at a time"):
        merge(params, by_row([adapters], [0, 0]), CONFIG)
    with pytest.raises(ValueError, match="then quantize"):
        merge(quantize(params), adapters, CONFIG)
    with pytest.raises(ValueError, match="0 to 0"):
        by_row([adapters], [1])
    with pytest.raises(ValueError, match="same kernels"):
        by_row([adapters, {path: adapters[path]}], [0])
