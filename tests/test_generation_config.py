"""GenerationConfig: what is accepted, what is refused by name, and how it splits into plan and settings."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.generation import GenerationConfig
from blenderbot_jax.generation.plan import compile_config

MODEL = BlenderbotConfig()
BOOLS, NO_BOOLS = (True, False), ("yes", 1)
SHARE, NO_SHARE = (0, 0.5, 1.0), (-0.1, 1.1, "half", True, float("nan"))
COUNT, NO_COUNT = (1, 7), (-1, 2.0, "two", True)
IDS, NO_IDS = ([], [3, 4]), (3, [-1], [0.5], "3", [[3]])
ONE_OR_MORE_IDS, NO_ID = (0, [2, 3]), (-1, [], [2, -1], "2", 1.5)

# Every field of transformers' GenerationConfig, with values that are right beside None, and some that are not.
FIELDS: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "max_length": ((2, 60), (1, 0, 2.5, True)),
    "max_new_tokens": (COUNT, (*NO_COUNT, 0)),
    "min_length": ((0, 20), NO_COUNT),
    "min_new_tokens": ((0, 20), NO_COUNT),
    "early_stopping": ((True, False, "never"), ("sometimes", 2)),
    "max_time": ((), (1.0,)),
    "stop_strings": (([],), ("end", ["end"])),
    "do_sample": (BOOLS, NO_BOOLS),
    "num_beams": (COUNT, (*NO_COUNT, 0)),
    "use_mtp": ((False,), (True,)),
    "use_cache": (BOOLS, NO_BOOLS),
    "cache_implementation": (("static", "dynamic", "offloaded"), ("quantized", "paged", "own")),
    "cache_config": (({},), ({"nbits": 4},)),
    "max_cache_len": ((), (64,)),
    "temperature": ((0.1, 1, 2.5), (0.0, -1.0, float("nan"), "hot", True)),
    "top_k": ((0, 50), NO_COUNT),
    "top_p": (SHARE, NO_SHARE),
    "min_p": (SHARE, NO_SHARE),
    "top_h": ((0.1, 1.0), (*NO_SHARE, 0)),
    "typical_p": ((0.1, 1.0), (*NO_SHARE, 0)),
    "epsilon_cutoff": ((0, 0.0003, 0.9), (1.0, -0.1, "small")),
    "eta_cutoff": ((0, 0.0003, 0.9), (1.0, -0.1, "small")),
    "repetition_penalty": ((0.5, 1, 2.0), (0, -1.0, "some", float("inf"))),
    "encoder_repetition_penalty": ((0.5, 1, 2.0), (0, -1.0, "some", float("inf"))),
    "length_penalty": ((-1.0, 0, 0.65), ("long", float("nan"), True)),
    "no_repeat_ngram_size": ((0, 3), NO_COUNT),
    "bad_words_ids": (([], [[7], [9, 12]]), ([[]], [7], 7, [[-1]], [["a"]])),
    "renormalize_logits": (BOOLS, NO_BOOLS),
    "forced_bos_token_id": ((0, 5), (-1, [5], 1.5, True)),
    "forced_eos_token_id": (ONE_OR_MORE_IDS, NO_ID),
    "remove_invalid_values": (BOOLS, NO_BOOLS),
    "exponential_decay_length_penalty": (((3, 1.1), [0, 2]), ((3,), (1.5, 1.1), (-1, 1.1), 1.1, (3, "x"), (3, 1.1, 1))),
    "suppress_tokens": (IDS, NO_IDS),
    "begin_suppress_tokens": (IDS, NO_IDS),
    "sequence_bias": (
        ([], {}, {(3, 4): 1.5}, [[[3, 4], 1], [[5], float("-inf")]]),
        ([3], {(): 1.0}, {3: 1.0}, {"3": 1.0}, [[[3], "x"]], [[[3], float("nan")]], [[[-3], 1.0]], 3, [[3, 4, 5]]),
    ),
    "token_healing": ((False,), (True,)),
    "guidance_scale": ((1, 1.0), (1.5,)),
    "watermarking_config": ((), ({"bias": 2.0}, 3)),
    "num_return_sequences": ((1,), (*NO_COUNT, 0)),
    "output_attentions": (BOOLS, NO_BOOLS),
    "output_hidden_states": (BOOLS, NO_BOOLS),
    "output_scores": (BOOLS, NO_BOOLS),
    "output_logits": (BOOLS, NO_BOOLS),
    "return_dict_in_generate": (BOOLS, NO_BOOLS),
    "pad_token_id": ((0, 5), NO_COUNT),
    "bos_token_id": ((0, 5), NO_COUNT),
    "eos_token_id": (ONE_OR_MORE_IDS, NO_ID),
    "encoder_no_repeat_ngram_size": ((0, 3), NO_COUNT),
    "decoder_start_token_id": ((0, 5), NO_COUNT),
    "is_assistant": ((False,), (True,)),
    "num_assistant_tokens": ((20, 5), (7,)),
    "num_assistant_tokens_schedule": (("constant", "heuristic"), ("own",)),
    "assistant_confidence_threshold": ((0.4,), (0.9,)),
    "prompt_lookup_num_tokens": ((), (3,)),
    "max_matching_ngram_size": ((2,), (3,)),
    "assistant_early_exit": ((), (3,)),
    "assistant_lookbehind": ((10,), (3,)),
    "target_lookbehind": ((10,), (3,)),
    "assistant_ensemble_weight": ((), (0.5,)),
    "speculation_type": ((), ("dflash",)),
    "compile_config": ((), ({"fullgraph": True},)),
    "disable_compile": (BOOLS, NO_BOOLS),
    "continuous_batching_config": ((), ({"page_size": 4},)),
    "low_memory": ((False,), (True,)),
    "penalty_alpha": ((0, 0.0), (0.6,)),
    "dola_layers": ((), ("high",)),
    "diversity_penalty": ((0, 0.0), (0.5,)),
    "num_beam_groups": ((1,), (2,)),
    "constraints": (([],), (["word"],)),
    "force_words_ids": (([],), ([[5]],)),
    "prefill_chunk_size": ((), (16,)),
    "_from_model_config": ((True, False), ()),
    "transformers_version": (("5.23.0",), ()),
}


def test_the_fields_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    if tuple(map(int, transformers.__version__.split(".")[:2])) != (5, 23):
        pytest.skip(f"the list is that of transformers 5.23, not {transformers.__version__}")
    assert set(vars(transformers.GenerationConfig())) == set(FIELDS)


def test_there_are_no_other_fields():
    assert {field.name for field in dataclasses.fields(GenerationConfig)} == set(FIELDS)
    with pytest.raises(TypeError, match="num_beems"):
        GenerationConfig(num_beems=3)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_takes_what_it_may_hold_and_names_itself_otherwise(name: str):
    right, wrong = FIELDS[name]
    for value in (None, *right):
        assert isinstance(hash(GenerationConfig(**{name: value})), int)
    for value in wrong:
        with pytest.raises(
            ValueError, match=rf"GenerationConfig: {name}(=.* is not implemented: .*| must be .*, not )"
        ):
            GenerationConfig(**{name: value})


@pytest.mark.parametrize(
    ("fields", "way_out"),
    [
        ({"max_time": 3.0}, "looks at no clock.*max_new_tokens"),
        ({"stop_strings": ["end"]}, "pass stop_sequences="),
        ({"guidance_scale": 3.0}, "leave it out"),
        ({"num_assistant_tokens": 3}, "leave it out"),
    ],
)
def test_what_is_not_here_says_the_way_out(fields: dict[str, Any], way_out: str):
    with pytest.raises(ValueError, match=way_out):
        GenerationConfig(**fields)


def test_what_transformers_fills_in_by_default_asks_for_nothing():
    # `_get_default_generation_params` of 5.23.
    defaults: dict[str, Any] = {
        "max_length": 20, "min_length": 0, "do_sample": False, "use_cache": True, "early_stopping": False,
        "num_beams": 1, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0,
        "length_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "bad_words_ids": None,
        "num_return_sequences": 1, "output_scores": False, "return_dict_in_generate": False,
        "forced_bos_token_id": None, "forced_eos_token_id": None, "remove_invalid_values": False,
        "exponential_decay_length_penalty": None, "suppress_tokens": None, "begin_suppress_tokens": None,
        "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "encoder_repetition_penalty": 1.0, "num_assistant_tokens": 20,
        "num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.4,
        "assistant_lookbehind": 10, "target_lookbehind": 10, "num_beam_groups": 1, "diversity_penalty": 0.0,
    }  # fmt: skip
    plan, _ = compile_config(GenerationConfig(**defaults), MODEL, 7)
    assert (plan.mode, plan.processors, plan.outputs, plan.stops) == ("greedy", (), (), False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences=3 is more than"),
        ({"num_return_sequences": 2}, "greedy decoding gives one reply"),
        ({"suppress_tokens": [2, 5], "forced_eos_token_id": [5, 2]}, "every token of forced_eos_token_id"),
        ({"suppress_tokens": [4], "forced_bos_token_id": 4}, "every token of forced_bos_token_id"),
    ],
)
def test_contradictions_are_refused_by_name(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**fields)


def test_settings_of_sampling_are_ignored_without_it():
    cold = GenerationConfig(temperature=0.5, top_k=3, top_p=0.5, min_p=0.1, top_h=0.5, typical_p=0.5, eta_cutoff=0.1)
    assert compile_config(cold, MODEL, 7)[0].processors == ()
    assert "top_h" in compile_config(cold.replace(do_sample=True), MODEL, 7)[0].processors


def test_it_is_frozen_and_hashable_and_lists_become_tuples():
    config = GenerationConfig(num_beams=10, bad_words_ids=[[7], [9, 12]], eos_token_id=[2, 3])
    assert config.bad_words_ids == ((7,), (9, 12))
    assert config.eos_token_id == (2, 3)
    assert hash(config) == hash(GenerationConfig(num_beams=10, bad_words_ids=((7,), (9, 12)), eos_token_id=(2, 3)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_beams = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_biases_are_the_same_as_a_dict_and_as_a_list():
    bias = GenerationConfig(sequence_bias={(9, 12): -2.0, (7,): 1})
    assert bias == GenerationConfig(sequence_bias=[[[9, 12], -2.0], [[7], 1.0]])
    assert bias.sequence_bias == (((9, 12), -2.0), ((7,), 1.0))
    # Twice the same sequence: the last bias counts, as in transformers.
    assert GenerationConfig(sequence_bias=[[[7], 3.0], [[9], 1.0], [[7], 5.0]]).sequence_bias == (
        ((7,), 5.0),
        ((9,), 1),
    )


def test_settings_survive_a_file(tmp_path):
    config = GenerationConfig.recipe(
        bad_words_ids=[[7], [9, 12]], sequence_bias={(4, 5): -2.0, (6,): float("-inf")}, suppress_tokens=[3],
        exponential_decay_length_penalty=(3, 1.5), output_scores=True, top_h=0.4, transformers_version="5.23.0",
    )  # fmt: skip
    config.save_json(tmp_path / "generation_config.json")
    assert GenerationConfig.from_pretrained(tmp_path) == config
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert written["sequence_bias"] == [[[4, 5], -2.0], [[6], float("-inf")]]
    assert "transformers_version" not in written


def test_a_generation_config_file_is_the_only_source_where_it_exists(tmp_path):
    BlenderbotConfig().save_json(tmp_path / "config.json")
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"num_beams": 4, "_from_model_config": True, "transformers_version": "4.26.0", "_commit_hash": "x"})
    )
    assert GenerationConfig.from_pretrained(tmp_path) == GenerationConfig(num_beams=4)


def test_a_file_that_asks_for_what_is_not_here_is_refused_by_name(tmp_path):
    for field, value in {"num_beam_groups": 5, "max_time": 2.0, "prefix_allowed_tokens_fn": "f"}.items():
        (tmp_path / "generation_config.json").write_text(json.dumps({"num_beams": 5, field: value}))
        with pytest.raises(ValueError, match=rf"generation_config\.json.*{field}"):
            GenerationConfig.from_pretrained(tmp_path)


def test_older_folders_keep_the_settings_in_config_json(tmp_path):
    legacy = {**BlenderbotConfig().to_dict(), "num_beams": 10, "min_length": 20, "length_penalty": 0.65}
    (tmp_path / "config.json").write_text(json.dumps({**legacy, "force_bos_token_to_be_generated": False}))
    found = GenerationConfig.from_pretrained(tmp_path)
    assert (found.num_beams, found.min_length, found.length_penalty) == (10, 20, 0.65)
    assert (found.encoder_no_repeat_ngram_size, found.forced_eos_token_id) == (3, 2)
    assert found.forced_bos_token_id is None


def test_an_old_name_for_a_forced_first_token_is_understood():
    old = {"_from_model_config": True, "bos_token_id": 1, "force_bos_token_to_be_generated": True}
    assert GenerationConfig.from_dict(old).forced_bos_token_id == 1


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


@pytest.mark.parametrize(
    ("fields", "mode", "rows", "returned"),
    [
        ({}, "greedy", 1, 1),
        ({"do_sample": True, "num_return_sequences": 3}, "sample", 3, 3),
        ({"num_beams": 4, "num_return_sequences": 2}, "beam", 4, 2),
        ({"num_beams": 4, "num_return_sequences": 2, "do_sample": True}, "beam_sample", 4, 2),
    ],
)
def test_the_mode_says_how_tokens_are_chosen(fields: dict[str, Any], mode: str, rows: int, returned: int):
    plan, _ = compile_config(GenerationConfig(**fields), MODEL, 7)
    assert (plan.mode, plan.rows, plan.returned) == (mode, rows, returned)


def test_outputs_are_part_of_the_plan():
    asked = GenerationConfig(output_attentions=True, output_scores=True, output_logits=False)
    assert compile_config(asked, MODEL, 7)[0].outputs == ("scores", "attentions")


def test_numbers_do_not_change_the_plan():
    plans = {
        compile_config(GenerationConfig(do_sample=True, temperature=t, top_k=k, top_p=0.5, max_length=n), MODEL, 7)[0]
        for t, k, n in [(0.5, 3, 50), (1.7, 40, 60), (2.0, 9, 33)]
    }
    assert len(plans) == 1


def lengths(prompt_length: int = 1, **fields: int) -> tuple[int, int]:
    _, settings = compile_config(GenerationConfig(**fields), MODEL, 7, prompt_length)
    return int(settings.max_length[0]), int(settings.min_length[0])


def test_new_token_limits_win_over_lengths():
    assert lengths(max_length=99, max_new_tokens=5, min_length=1, min_new_tokens=3) == (6, 4)
    assert lengths(max_length=99, min_length=9) == (99, 9)
    assert lengths() == (21, 0)


def test_new_tokens_come_on_top_of_a_decoder_prompt():
    assert lengths(4, max_new_tokens=5, min_new_tokens=3) == (9, 7)
    assert lengths(4, max_length=9, min_length=7) == (9, 7)
    assert lengths(4) == (24, 0)
    # The default ends with the positions, the last place of which is never fed back.
    assert lengths(120) == (128, 0)
    assert lengths(120, max_new_tokens=9) == (129, 0)


def test_a_decoder_prompt_that_leaves_no_room_is_refused():
    with pytest.raises(ValueError, match=r"decoder prompt of 9 tokens leaves no room.*max_length=9 counts it"):
        lengths(9, max_length=9)
    with pytest.raises(ValueError, match=r"decoder prompt of 128 tokens leaves no room.*max_length=128"):
        lengths(128)
    with pytest.raises(ValueError, match=r"max_new_tokens=9 .*max_new_tokens at most 5"):
        lengths(124, max_new_tokens=9)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        lengths(0)


def test_a_reply_longer_than_the_positions_is_refused():
    assert compile_config(GenerationConfig(max_length=129), MODEL, 7)[0].capacity == 129
    with pytest.raises(ValueError, match=r"max_length=130 .*128 positions.*at most 129"):
        compile_config(GenerationConfig(max_length=130), MODEL, 7)


@pytest.mark.parametrize(
    "fields",
    [
        {"bad_words_ids": [[5, 8008]]}, {"sequence_bias": {(5, 8008): 1.0}}, {"suppress_tokens": [8008]},
        {"begin_suppress_tokens": [8008]}, {"forced_bos_token_id": 8008}, {"eos_token_id": [2, 8008]},
    ],
    ids=lambda fields: next(iter(fields)),
)  # fmt: skip
def test_ids_outside_the_vocabulary_are_refused(fields: dict[str, Any]):
    with pytest.raises(ValueError, match=f"{next(iter(fields))} names id 8008"):
        compile_config(GenerationConfig(**fields), MODEL, 7)


def test_rules_that_look_at_the_prompt_need_its_ids():
    for field in ("encoder_no_repeat_ngram_size", "encoder_repetition_penalty"):
        config = GenerationConfig(**{field: 3})
        assert compile_config(config, MODEL, 7)[1].source_width == [7]
        with pytest.raises(ValueError, match=f"{field} looks at the prompt's ids: pass input_ids"):
            compile_config(config, MODEL, None)
    assert compile_config(GenerationConfig(no_repeat_ngram_size=3), MODEL, None)[0].processors == ("no_repeat_ngram",)


def test_stop_sequences_are_settings():
    plan, settings = compile_config(GenerationConfig(), MODEL, 7, stop_sequences=([5, 6, 7], (9,)))
    assert plan.stops
    np.testing.assert_array_equal(settings.stop_sequences, [[[-1, 5, 6, 7], [-1, -1, -1, 9]]])
    assert not compile_config(GenerationConfig(), MODEL, 7)[0].stops


@pytest.mark.parametrize("stops", [[[]], [5, 6], ["end"], [[5, -1]], [[5, 1.0]]])
def test_stop_sequences_that_are_none_are_refused(stops: Any):
    with pytest.raises(ValueError, match=r"stop_sequences must be .*such as.*not \["):
        compile_config(GenerationConfig(), MODEL, 7, stop_sequences=stops)


def test_stop_sequences_outside_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match="stop_sequences names id 8008"):
        compile_config(GenerationConfig(), MODEL, 7, stop_sequences=[[8008]])


def test_numbers_are_rounded_to_float32_once():
    config = GenerationConfig(
        num_beams=2, length_penalty=0.65, top_p=0.9, encoder_repetition_penalty=3.0,
        exponential_decay_length_penalty=(2, 1.01),
    )  # fmt: skip
    _, settings = compile_config(config, MODEL, 7)
    np.testing.assert_array_equal(settings.length_divisors[0, 1:], np.float32(np.arange(1, 33) ** np.float64(0.65)))
    assert settings.top_p_tail == np.float32(1 - 0.9) != 1 - np.float32(0.9)
    assert settings.encoder_repetition_factor == np.float32(1 / 3)
    np.testing.assert_array_equal(settings.length_decay[0, :5], np.float32([0, 0, 0, 1.01 - 1, 1.01**2 - 1]))


def test_a_decay_beyond_float32_stays_finite():
    _, settings = compile_config(GenerationConfig(max_length=60, exponential_decay_length_penalty=(0, 1e9)), MODEL, 7)
    assert np.isfinite(settings.length_decay).all()
    assert settings.length_decay[0, -1] == np.finfo(np.float32).max


def test_single_biases_are_added_before_longer_ones():
    biases = [[[1, 2, 3], 0.1], [[4, 5], 0.2], [[6], 0.3], [[7, 8, 9], 0.4]]
    _, settings = compile_config(GenerationConfig(sequence_bias=biases), MODEL, 7)
    np.testing.assert_array_equal(settings.sequence_biases, np.float32([[0.3, 0.1, 0.4, 0.2]]))
    assert settings.sequence_bias_ids[0, 0].tolist() == [-1, -1, -1, 6]
