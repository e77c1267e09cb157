"""Whatever is put in, a right answer or a clear error comes out: configurations, masks, ids, settings."""

import json
import math
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.generation import GenerationConfig, generate
from blenderbot_jax.generation.plan import compile_config
from blenderbot_jax.model import BlenderbotForConditionalGeneration

RELAXED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}
REFUSALS = (ValueError, TypeError)

# Anything a JSON file could hold in the place of a value, and what only a program could pass.
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 200),
    st.integers(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=5),
    st.lists(st.integers(-2, 100), max_size=3),
    st.lists(st.lists(st.integers(-2, 100), max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
CONFIG_FIELDS = sorted(set(BlenderbotConfig.__dataclass_fields__) - {"unknown_keys"})
SETTINGS = sorted(GenerationConfig.__dataclass_fields__)


def must_say_why(error: BaseException) -> None:
    """An error is for people: more than a word, and not the inside of a library."""
    assert len(str(error)) > 15
    assert "Traceback" not in str(error)


@given(changes=st.dictionaries(st.one_of(st.sampled_from(CONFIG_FIELDS), st.text(max_size=8)), JUNK, max_size=4))
@settings(max_examples=400, **RELAXED)
def test_a_configuration_is_read_back_equal_or_refused(changes: dict[str, Any]):
    values = {"d_model": 8, "encoder_attention_heads": 2, "decoder_attention_heads": 2, **changes}
    try:
        config = BlenderbotConfig.from_dict(values)
    except REFUSALS as error:
        must_say_why(error)
        return
    assume(not any(isinstance(value, float) and math.isnan(value) for value in changes.values()))
    assert BlenderbotConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert hash(config) == hash(config.replace())


@given(fields=st.dictionaries(st.sampled_from(SETTINGS), JUNK, max_size=4))
@settings(max_examples=600, **RELAXED)
def test_settings_are_read_back_equal_and_compiled_or_refused(fields: dict[str, Any]):
    try:
        config = GenerationConfig(**fields)
    except REFUSALS as error:
        must_say_why(error)
        return
    assert GenerationConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert isinstance(hash(config), int)
    try:
        plan, numbers = compile_config(config, BlenderbotConfig(vocab_size=64, max_position_embeddings=32), 5)
    except ValueError as error:
        must_say_why(error)
        return
    assert 1 <= plan.returned <= plan.rows
    assert 2 <= int(numbers.max_length[0]) <= plan.capacity <= 33
    assert all(np.asarray(leaf).shape[0] == 1 for leaf in jax.tree.leaves(numbers))
    # A barred score is -inf; a setting that is not a number would spread through all of them.
    assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(numbers) if leaf.dtype.kind == "f")


@cache
def tiny() -> tuple[BlenderbotForConditionalGeneration, Any]:
    """A model and parameters; no fixture, because hypothesis would print all of them."""
    config = BlenderbotConfig(
        vocab_size=96,
        max_position_embeddings=24,
        d_model=24,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=4,
        encoder_ffn_dim=40,
        decoder_ffn_dim=40,
    )
    model = BlenderbotForConditionalGeneration(config)
    return model, jax.tree.map(lambda leaf: leaf * 6, model.init_params(jax.random.key(0)))


IDS = st.lists(st.lists(st.integers(-2, 99), min_size=4, max_size=4), min_size=2, max_size=2)
MASKS = st.lists(
    st.lists(st.sampled_from([0, 1, 1, 2, -1, 0.5, math.nan]), min_size=4, max_size=4), min_size=2, max_size=2
)


@pytest.mark.long
@given(ids=IDS, mask=MASKS, dtype=st.sampled_from(["int32", "int8", "uint16", "int64", "float32", "bool", "complex64"]))
@settings(max_examples=60, **RELAXED)
def test_masked_ids_do_not_matter_and_wrong_ones_are_refused(ids: list[Any], mask: list[Any], dtype: str):
    model, params = tiny()
    with np.errstate(all="ignore"):
        array, kept = np.array(ids).astype(dtype), np.array(mask)
    reply = np.array([[1, 7], [1, 8]])
    right = (
        array.dtype.kind in "iu"
        and ((array >= 0) & (array < model.config.vocab_size)).all()
        and ((kept == 0) | (kept == 1)).all()
    )
    if not right:
        with pytest.raises(REFUSALS, match=r"input_ids|attention_mask"):
            model.apply({"params": params}, array, kept, reply)
        return
    out = model.apply({"params": params}, array, kept, reply).logits
    assert np.isfinite(out).all()
    assume((kept.sum(axis=1) > 0).all())
    other = np.where(kept == 1, array, 11).astype(array.dtype)
    np.testing.assert_allclose(model.apply({"params": params}, other, kept, reply).logits, out, atol=1e-5)


COUNT = st.integers(1, 4)
SOME_IDS = st.lists(st.integers(3, 20), min_size=1, max_size=3)
RULES = {
    "num_beams": COUNT,
    "num_return_sequences": COUNT,
    "do_sample": st.booleans(),
    "min_length": st.integers(0, 14),
    "min_new_tokens": st.integers(0, 14),
    "no_repeat_ngram_size": st.integers(0, 4),
    "encoder_no_repeat_ngram_size": st.integers(0, 6),
    "bad_words_ids": st.lists(SOME_IDS, max_size=3),
    "suppress_tokens": SOME_IDS,
    "forced_eos_token_id": st.sampled_from([2, 5]),
    "repetition_penalty": st.floats(0.1, 10),
    "length_penalty": st.floats(-30, 30),
    "early_stopping": st.sampled_from([True, False, "never"]),
    "temperature": st.floats(0.01, 100),
    "top_p": st.floats(0, 1),
    "renormalize_logits": st.booleans(),
}
DECODED = {
    "rules": st.fixed_dictionaries({"max_length": st.integers(2, 12)}, optional=RULES),
    "ids": st.lists(st.lists(st.integers(0, 95), min_size=1, max_size=6), min_size=1, max_size=3),
    "seed": st.integers(0, 2**31),
}


def decode_and_check(rules: dict[str, Any], ids: list[list[int]], seed: int) -> None:
    """Decode under arbitrary settings; what comes out keeps to them."""
    model, params = tiny()
    width = max(map(len, ids))
    prompts = np.array([row + [0] * (width - len(row)) for row in ids])
    try:
        config = GenerationConfig(**rules)
        out = generate(model, params, prompts, config=config, key=jax.random.key(seed) if config.do_sample else None)
    except ValueError as error:
        must_say_why(error)
        return
    R = config.num_return_sequences or 1
    sequences, lengths = np.asarray(out.sequences), np.asarray(out.lengths)
    assert sequences.shape == (len(ids), R, config.max_length)
    assert ((sequences >= 0) & (sequences < model.config.vocab_size)).all()
    assert (sequences[..., 0] == model.config.decoder_start_token_id).all()
    assert ((lengths >= 2) & (lengths <= (config.max_length or 0))).all()
    assert not np.isnan(out.scores).any()
    for b, r in np.ndindex(*lengths.shape):
        reply, rest = sequences[b, r, : lengths[b, r]], sequences[b, r, lengths[b, r] :]
        assert (rest == 0).all()
        assert 2 not in reply[1:-1]
        assert reply[-1] == 2 or len(reply) == config.max_length


@pytest.mark.long
@given(**DECODED)
@settings(max_examples=8, **RELAXED)
def test_replies_keep_to_arbitrary_settings(rules: dict[str, Any], ids: list[list[int]], seed: int):
    decode_and_check(rules, ids, seed)


@pytest.mark.slow
@given(**DECODED)
@settings(max_examples=150, **RELAXED)
def test_replies_keep_to_many_arbitrary_settings(rules: dict[str, Any], ids: list[list[int]], seed: int):
    decode_and_check(rules, ids, seed)
