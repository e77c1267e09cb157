"""GenerationConfig: what is accepted, what is refused by name, and how it splits into plan and settings."""

import json

import numpy as np
import pytest

from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.generation import GenerationConfig
from blenderbot_jax.generation.plan import compile_config


def test_it_is_frozen_and_hashable_and_lists_become_tuples():
    config = GenerationConfig(num_beams=10, bad_words_ids=[[7], [9, 12]], eos_token_id=[2, 3])
    assert config.bad_words_ids == ((7,), (9, 12))
    assert config.eos_token_id == (2, 3)
    assert hash(config) == hash(GenerationConfig(num_beams=10, bad_words_ids=((7,), (9, 12)), eos_token_id=(2, 3)))


def test_every_field_of_transformers_decoding_is_known_or_no_rule():
    transformers = pytest.importorskip("transformers")
    not_a_rule = {
        "use_cache", "use_mtp", "cache_implementation", "cache_config", "max_cache_len", "return_dict_in_generate",
        "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
        "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind", "target_lookbehind",
        "assistant_ensemble_weight", "speculation_type", "compile_config", "disable_compile",
        "continuous_batching_config", "low_memory", "prefill_chunk_size", "transformers_version",
        "generation_kwargs",
    }  # fmt: skip
    theirs = {name for name in vars(transformers.GenerationConfig()) if not name.startswith("_")}
    assert theirs - set(vars(GenerationConfig())) <= not_a_rule


@pytest.mark.parametrize(
    "field", ["top_h", "typical_p", "min_p", "sequence_bias", "stop_strings", "renormalize_logits"]
)
def test_a_rule_that_is_not_implemented_is_refused_by_name(field: str):
    with pytest.raises(ValueError, match=rf"{field}=.*not implemented"):
        GenerationConfig(**{field: 0.3})


def test_a_rule_that_is_not_implemented_is_accepted_where_it_asks_for_nothing():
    GenerationConfig(typical_p=1.0, min_p=None, num_beam_groups=1, renormalize_logits=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_beams": 0}, "num_beams"),
        ({"num_beams": 2.0}, "num_beams"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"max_length": 1}, "max_length"),
        ({"repetition_penalty": -1.0}, "repetition_penalty"),
        ({"early_stopping": "sometimes"}, "early_stopping"),
        ({"bad_words_ids": [[]]}, "bad_words_ids"),
        ({"bad_words_ids": [7]}, "bad_words_ids"),
        ({"eos_token_id": [2, -1]}, "eos_token_id"),
        ({"length_penalty": "long"}, "length_penalty"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences=3 is more than"),
        ({"num_return_sequences": 2}, "greedy decoding gives one reply"),
        ({"num_beams": 2, "do_sample": True}, "beam sampling"),
    ],
)
def test_nonsense_is_refused_by_name(fields: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**fields)


def test_settings_survive_a_file(tmp_path):
    config = GenerationConfig.recipe(bad_words_ids=[[7], [9, 12]])
    config.save_json(tmp_path / "generation_config.json")
    assert GenerationConfig.from_pretrained(tmp_path) == config


def test_a_generation_config_file_is_the_only_source_where_it_exists(tmp_path):
    BlenderbotConfig().save_json(tmp_path / "config.json")
    (tmp_path / "generation_config.json").write_text(json.dumps({"num_beams": 4, "_from_model_config": True}))
    assert GenerationConfig.from_pretrained(tmp_path) == GenerationConfig(num_beams=4)


def test_older_folders_keep_the_settings_in_config_json(tmp_path):
    legacy = {**BlenderbotConfig().to_dict(), "num_beams": 10, "min_length": 20, "length_penalty": 0.65}
    (tmp_path / "config.json").write_text(json.dumps(legacy))
    found = GenerationConfig.from_pretrained(tmp_path)
    assert (found.num_beams, found.min_length, found.length_penalty) == (10, 20, 0.65)
    assert (found.encoder_no_repeat_ngram_size, found.forced_eos_token_id) == (3, 2)


def test_a_damaged_file_is_refused_by_name(tmp_path):
    path = tmp_path / "generation_config.json"
    for content in ("{", "[1]", '{"num_beams": "ten"}'):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"generation_config\.json"):
            GenerationConfig.from_pretrained(tmp_path)


def test_the_published_recipe_is_ten_beams_and_both_ngram_rules():
    plan, settings = compile_config(GenerationConfig.recipe(), BlenderbotConfig.blenderbot_400m_distill(), 7)
    assert (plan.mode, plan.rows, plan.capacity) == ("beam", 10, 64)
    assert plan.processors == ("no_repeat_ngram", "encoder_no_repeat_ngram", "min_length", "forced_eos")
    assert (settings.max_length, settings.min_length, settings.source_width) == ([60], [20], [7])


def test_numbers_do_not_change_the_plan():
    model = BlenderbotConfig.blenderbot_400m_distill()
    plans = {
        compile_config(GenerationConfig(do_sample=True, temperature=t, top_k=k, top_p=0.5, max_length=n), model, 7)[0]
        for t, k, n in [(0.5, 3, 50), (1.7, 40, 60), (2.0, 9, 33)]
    }
    assert len(plans) == 1


def test_new_token_limits_win_over_lengths():
    model = BlenderbotConfig()
    both = GenerationConfig(max_length=99, max_new_tokens=5, min_length=1, min_new_tokens=3)
    _, settings = compile_config(both, model, 7)
    assert (settings.max_length, settings.min_length) == ([6], [4])
    assert compile_config(GenerationConfig(), model, 7)[1].max_length == [21]


def test_a_reply_longer_than_the_positions_is_refused():
    model = BlenderbotConfig()
    assert compile_config(GenerationConfig(max_length=129), model, 7)[0].capacity == 129
    with pytest.raises(ValueError, match=r"max_length=130 .*128 positions.*at most 129"):
        compile_config(GenerationConfig(max_length=130), model, 7)


def test_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match="bad_words_ids names id 8008"):
        compile_config(GenerationConfig(bad_words_ids=[[5, 8008]]), BlenderbotConfig(), 7)


def test_length_divisors_are_rounded_once():
    _, settings = compile_config(GenerationConfig(num_beams=2, length_penalty=0.65), BlenderbotConfig(), 7)
    np.testing.assert_array_equal(settings.length_divisors[0, 1:], np.float32(np.arange(1, 33) ** np.float64(0.65)))
