"""The configuration: fields and defaults as transformers, published sizes, files in and out, refusals."""

import dataclasses
import json
import math

import jax
import pytest

from blenderbot_jax.config import BlenderbotConfig, BlenderbotSmallConfig
from blenderbot_jax.model import BlenderbotForConditionalGeneration

# What the published 400M file holds beside the architecture, and the older keys that repeat the family.
OLD_KEYS = {
    "add_bias_logits": False,
    "add_final_layer_norm": True,
    "classif_dropout": 0.0,
    "do_blenderbot_90_layernorm": True,
    "extra_layer_norm": False,
    "extra_pos_embeddings": 0,
    "force_bos_token_to_be_generated": False,
    "gradient_checkpointing": False,
    "id2label": {"0": "LABEL_0"},
    "layernorm_variant": "prelayernorm",
    "normalize_before": True,
    "normalize_embedding": False,
    "num_beams": 10,
    "num_hidden_layers": 2,
    "static_position_embeddings": False,
    "unk_token_id": 3,
}
FILE_400M = OLD_KEYS | {
    "model_type": "blenderbot",
    "architectures": ["BlenderbotForConditionalGeneration"],
    "vocab_size": 8008,
    "max_position_embeddings": 128,
    "d_model": 1280,
    "encoder_layers": 2,
    "decoder_layers": 12,
    "encoder_attention_heads": 32,
    "decoder_attention_heads": 32,
    "encoder_ffn_dim": 5120,
    "decoder_ffn_dim": 5120,
    "scale_embedding": True,
    "activation_function": "gelu",
}
SIZES = {
    "blenderbot_small_90m": 87_508_992,
    "blenderbot_400m_distill": 364_802_560,
    "blenderbot_1b_distill": 1_437_393_920,
    "blenderbot_3b": 2_696_268_800,
    "blenderbot_9b": 9_431_810_048,
}


@pytest.mark.parametrize("ours", [BlenderbotConfig, BlenderbotSmallConfig])
def test_fields_and_defaults_are_those_of_transformers(ours):
    transformers = pytest.importorskip("transformers", reason="the defaults are compared with transformers")
    theirs = getattr(transformers, ours.__name__)
    # the fields of its class, without those every transformers configuration has
    names = set(theirs.__annotations__) - set(transformers.PretrainedConfig.__annotations__) - {"model_type"}
    names |= {"is_encoder_decoder"}
    assert len(names) >= 26
    mine, reference = ours(), theirs()
    assert {name: getattr(mine, name) for name in names} == {name: getattr(reference, name) for name in names}
    for alias, name in theirs.attribute_map.items():
        assert getattr(mine, alias) == getattr(mine, name)


@pytest.mark.parametrize("config", [BlenderbotConfig(), BlenderbotSmallConfig(), BlenderbotConfig.blenderbot_3b()])
def test_transformers_reads_what_is_written(config):
    transformers = pytest.importorskip("transformers", reason="the file is read by transformers")
    theirs = getattr(transformers, type(config).__name__).from_dict(config.to_dict())
    # its small class has no field for the encoder rule
    values = {name: value for name, value in config.to_dict().items() if hasattr(theirs, name)}
    assert {name: getattr(theirs, name) for name in values} == values
    assert config.to_dict().keys() - values.keys() <= {"encoder_no_repeat_ngram_size"}


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes_have_their_exact_number_of_parameters(name):
    config = getattr(BlenderbotConfig, name)()
    params = jax.eval_shape(BlenderbotForConditionalGeneration(config).init_params, jax.random.key(0))
    params.pop("final_logits_bias")  # a buffer in PyTorch, not counted
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == SIZES[name]
    assert config.scale_embedding


def test_the_published_90m_file_is_the_90m_constructor(data_folder, tmp_path):
    published = data_folder / "tokenizers" / "blenderbot_small-90M" / "config.json"
    config = BlenderbotConfig.from_json(published)
    assert config == BlenderbotConfig.blenderbot_small_90m()
    config.save_json(tmp_path / "new" / "config.json")
    written = json.loads((tmp_path / "new" / "config.json").read_text())
    original = json.loads(published.read_text())
    assert {key: written[key] for key in original} == original
    assert BlenderbotConfig.from_json(tmp_path / "new" / "config.json") == config


def test_a_400m_file_with_every_old_key_is_the_400m_constructor():
    config = BlenderbotConfig.from_dict(FILE_400M)
    assert config == BlenderbotConfig.blenderbot_400m_distill()
    assert FILE_400M.items() <= config.to_dict().items()


def test_unknown_keys_are_kept_but_not_compared():
    plain, marked = BlenderbotConfig(), BlenderbotConfig.from_dict({"model_type": "blenderbot", "mood": ["calm"]})
    assert marked.extra == {"mood": ["calm"]}
    assert marked.replace(dropout=0.5).to_dict()["mood"] == ["calm"]
    assert marked == plain
    assert hash(marked) == hash(plain)


def test_absent_fields_take_the_defaults_of_their_family():
    assert BlenderbotConfig.from_dict({"model_type": "blenderbot"}) == BlenderbotConfig()
    assert BlenderbotConfig.from_dict({"model_type": "blenderbot-small"}) == BlenderbotSmallConfig()
    assert BlenderbotSmallConfig.from_dict({}) == BlenderbotSmallConfig()


@pytest.mark.parametrize("key", ["normalize_before", "add_final_layer_norm"])
def test_the_place_of_the_norms_outweighs_the_name_of_the_family(key):
    config = BlenderbotConfig.from_dict({"model_type": "blenderbot", key: False})
    assert isinstance(config, BlenderbotSmallConfig)
    assert config.model_type == "blenderbot-small"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "bart"}, ["model_type", "bart", "blenderbot-small"]),
        ({"model_type": "blenderbot", "layernorm_variant": "xlm"}, ["layernorm_variant", "prelayernorm"]),
        ({"model_type": "blenderbot", "normalize_embedding": True}, ["normalize_embedding"]),
        ({"normalize_before": True, "add_final_layer_norm": False}, ["add_final_layer_norm"]),
        ({"model_type": "blenderbot-small", "do_blenderbot_90_layernorm": False}, ["do_blenderbot_90_layernorm"]),
        ({"extra_pos_embeddings": 2}, ["extra_pos_embeddings=2"]),
        ({"static_position_embeddings": True}, ["static_position_embeddings"]),
        ({"extra_layer_norm": True}, ["extra_layer_norm"]),
        ({"add_bias_logits": True}, ["add_bias_logits"]),
        ({"force_bos_token_to_be_generated": True}, ["force_bos_token_to_be_generated"]),
    ],
)
def test_files_of_other_architectures_are_refused_by_key(values, words):
    with pytest.raises(ValueError, match=r"model_type|architecture") as refusal:
        BlenderbotConfig.from_dict(values)
    assert all(word in str(refusal.value) for word in words)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("d_model", 2561),
        ("encoder_attention_heads", 3),
        ("decoder_attention_heads", 7),
        ("vocab_size", 0),
        ("max_position_embeddings", -1),
        ("encoder_layers", 1.5),
        ("decoder_layers", True),
        ("encoder_ffn_dim", "10240"),
        ("encoder_no_repeat_ngram_size", -1),
        ("dropout", 1.5),
        ("attention_dropout", -0.1),
        ("activation_dropout", None),
        ("decoder_layerdrop", 2),
        ("init_std", -0.1),
        ("activation_function", "tanh"),
        ("scale_embedding", 1),
        ("use_cache", "yes"),
        ("pad_token_id", 8008),
        ("bos_token_id", -1),
        ("eos_token_id", [2, 9000]),
        ("forced_eos_token_id", "2"),
        ("decoder_start_token_id", None),
    ],
)
def test_a_bad_value_is_refused_with_its_field_and_itself(field, value):
    with pytest.raises(ValueError, match=field) as refusal:
        BlenderbotConfig(**{field: value})
    shown = max(value) if isinstance(value, list) else value
    assert str(shown) in str(refusal.value)


def test_every_contradiction_is_named_at_once():
    with pytest.raises(ValueError, match=r"encoder_attention_heads=3.*dropout.*activation_function"):
        BlenderbotConfig(encoder_attention_heads=3, dropout=2.0, activation_function="none")


def test_replace_checks_like_a_constructor():
    with pytest.raises(ValueError, match="d_model=10"):
        BlenderbotConfig().replace(d_model=10)


def test_lists_of_end_tokens_become_tuples_and_lists_again_in_files():
    config = BlenderbotConfig(eos_token_id=[2, 5], forced_eos_token_id=[2])
    assert config.eos_token_ids == config.eos_token_id == (2, 5)
    assert json.loads(json.dumps(config.to_dict()))["eos_token_id"] == [2, 5]
    assert BlenderbotConfig.from_dict(config.to_dict()) == config
    assert BlenderbotConfig().eos_token_ids == (2,)
    assert BlenderbotConfig(eos_token_id=None).eos_token_ids == ()


def test_a_configuration_is_frozen_and_hashable():
    config = BlenderbotConfig(eos_token_id=[2, 5])
    assert len({config, BlenderbotConfig(eos_token_id=(2, 5)), BlenderbotConfig()}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.d_model = 3


def test_an_unknown_attribute_is_refused_as_python_does():
    assert not hasattr(BlenderbotConfig(), "n_head")


@pytest.mark.parametrize("text", ["[1]", "{", '{"model_type": "bart"}', '{"d_model": "wide"}'])
def test_errors_in_a_file_name_the_file(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"config\.json: "):
        BlenderbotConfig.from_json(path)


def test_second_names_of_a_field_are_read_and_refused_where_they_disagree():
    read = BlenderbotConfig.from_dict({"hidden_size": 64, "num_hidden_layers": 3})
    assert (read.d_model, read.encoder_layers, read.hidden_size) == (64, 3, 64)
    assert read.replace(encoder_layers=4).to_dict()["num_hidden_layers"] == 4
    with pytest.raises(ValueError, match=r"encoder_layers=2 and, under its other name, num_hidden_layers=3"):
        BlenderbotConfig.from_dict({"encoder_layers": 2, "num_hidden_layers": 3})
