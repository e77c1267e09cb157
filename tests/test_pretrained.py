"""Checkpoint: the parts of a folder, loaded together and fit for each other."""

import jax
import jax.numpy as jnp
import pytest

from blenderbot_jax import Checkpoint, GenerationConfig, save_pretrained
from blenderbot_jax.checkpoint.names import flatten
from blenderbot_jax.model import BlenderbotForConditionalGeneration


@pytest.fixture(scope="module")
def demo():
    return Checkpoint.from_pretrained("demo")


def save(folder, config, **parts):
    expected = jax.eval_shape(BlenderbotForConditionalGeneration(config).init_params, jax.random.key(0))
    save_pretrained(folder, config, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), expected), **parts)


def shapes(params):
    return {path: leaf.shape for path, leaf in flatten(params).items()}


def test_the_parts_of_the_demo_fit_each_other(demo):
    config, tokenizer = demo.model.config, demo.tokenizer
    assert shapes(demo.params) == shapes(jax.eval_shape(demo.model.init_params, jax.random.key(0)))
    assert tokenizer.vocab_size == config.vocab_size
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        assert getattr(tokenizer, name) == getattr(config, name)
    assert demo.generation_config == GenerationConfig.from_pretrained("demo")
    assert demo.generation_config.max_length <= config.max_position_embeddings


def test_dtype_is_that_of_storage_and_computation():
    checkpoint = Checkpoint.from_pretrained("demo", dtype=jnp.bfloat16)
    assert checkpoint.model.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(checkpoint.params)} == {jnp.dtype(jnp.bfloat16)}


def test_more_tokens_than_rows_are_refused(tmp_path, demo, tiny_config):
    save(tmp_path, tiny_config, tokenizer=demo.tokenizer)
    message = rf"the tokenizer has {demo.tokenizer.vocab_size} tokens, the model {tiny_config.vocab_size} rows"
    with pytest.raises(ValueError, match=message):
        Checkpoint.from_pretrained(tmp_path)


def test_more_rows_than_tokens_are_fine(tmp_path, demo, tiny_config):
    config = tiny_config.replace(vocab_size=demo.tokenizer.vocab_size + 8)
    save(tmp_path, config, tokenizer=demo.tokenizer, generation_config=GenerationConfig(num_beams=2))
    checkpoint = Checkpoint.from_pretrained(str(tmp_path))
    assert checkpoint.model.config == config
    assert checkpoint.tokenizer == demo.tokenizer
    assert checkpoint.generation_config == GenerationConfig(num_beams=2)


def test_a_90m_folder_is_refused_with_a_way_out_that_works(tmp_path, tiny_small_config):
    save(tmp_path, tiny_small_config)
    with pytest.raises(ValueError, match=r"BlenderbotSmall model .* alone with BlenderbotForC"):
        Checkpoint.from_pretrained(tmp_path)
    model, _ = BlenderbotForConditionalGeneration.from_pretrained(tmp_path)
    assert model.config == tiny_small_config
