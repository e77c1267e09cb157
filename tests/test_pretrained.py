"""Checkpoint: the parts of a folder, loaded together and fit for each other."""

import json

import jax
import jax.numpy as jnp
import pytest

from blenderbot_jax import Checkpoint, GenerationConfig, save_pretrained
from blenderbot_jax.checkpoint.names import flatten
from blenderbot_jax.model import BlenderbotForConditionalGeneration
from blenderbot_jax.tokenizer import BlenderbotSmallTokenizer, BlenderbotTokenizer
from tests.test_tokenizer_small import MERGES as SMALL_MERGES
from tests.test_tokenizer_small import VOCAB as SMALL_VOCAB


@pytest.fixture(scope="module")
def demo():
    return Checkpoint.from_pretrained("demo")


def save(folder, config, **parts):
    expected = jax.eval_shape(BlenderbotForConditionalGeneration(config).init_params, jax.random.key(0))
    save_pretrained(folder, config, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), expected), **parts)


def write_vocabulary(folder):
    """The files of the published 90M folder, which name neither mode nor limit."""
    (folder / "vocab.json").write_text(json.dumps(SMALL_VOCAB), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *SMALL_MERGES, ""]), encoding="utf-8")


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


def test_a_90m_folder_brings_its_tokenizer_in_the_mode_it_was_trained_with(tmp_path, tiny_small_config):
    save(tmp_path, tiny_small_config)
    write_vocabulary(tmp_path)
    checkpoint = Checkpoint.from_pretrained(tmp_path)
    assert checkpoint.model.config == tiny_small_config
    assert isinstance(checkpoint.tokenizer, BlenderbotSmallTokenizer)
    assert checkpoint.tokenizer.mode == "parlai"
    assert BlenderbotSmallTokenizer.from_pretrained(tmp_path).mode == "hf"


@pytest.mark.parametrize("mode", ["hf", "parlai"])
def test_a_90m_folder_that_names_a_mode_is_taken_at_its_word(tmp_path, tiny_small_config, mode):
    tokenizer = BlenderbotSmallTokenizer(SMALL_VOCAB, SMALL_MERGES, mode=mode, model_max_length=9)
    save(tmp_path, tiny_small_config, tokenizer=tokenizer)
    assert Checkpoint.from_pretrained(tmp_path).tokenizer == tokenizer


def test_the_limit_of_the_tokenizer_is_the_models_where_no_file_names_one(tmp_path, tiny_config, tiny_small_config):
    bare = BlenderbotTokenizer({token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "a"])}, [])
    save(tmp_path / "big", tiny_config, tokenizer=bare)
    save(tmp_path / "small", tiny_small_config)
    write_vocabulary(tmp_path / "small")
    for name, config in (("big", tiny_config), ("small", tiny_small_config)):
        for file in ("{}", '{"model_max_length": 1000000000000000019884624838656}'):
            (tmp_path / name / "tokenizer_config.json").write_text(file)
            found = Checkpoint.from_pretrained(tmp_path / name).tokenizer.model_max_length
            assert found == config.max_position_embeddings
    (tmp_path / "small" / "tokenizer_config.json").write_text('{"model_max_length": 11}')
    assert Checkpoint.from_pretrained(tmp_path / "small").tokenizer.model_max_length == 11


def test_a_folder_without_a_tokenizer_is_refused_and_its_model_loads_alone(tmp_path, tiny_small_config):
    save(tmp_path, tiny_small_config)
    with pytest.raises(FileNotFoundError, match=r"no vocab\.json and no tokenizer\.json"):
        Checkpoint.from_pretrained(tmp_path)
    model, _ = BlenderbotForConditionalGeneration.from_pretrained(tmp_path)
    assert model.config == tiny_small_config
