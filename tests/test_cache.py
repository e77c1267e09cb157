"""The decoder's cache: writing, reordering in both forms, and cached decoding equal to uncached."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blenderbot_jax.cache import (
    CacheShape,
    append,
    expand_beams,
    grow,
    init_cache,
    reorder,
    self_attention_mask,
)
from blenderbot_jax.model import BlenderbotForConditionalGeneration
from tests.golden.fill import golden_params
from tests.natively import needs_native

CLOSE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(params=["tiny_config", "tiny_small_config"])
def model(request):
    return BlenderbotForConditionalGeneration(request.getfixturevalue(request.param))


@partial(jax.jit, static_argnums=0)
def step(model, params, tokens, cache):
    return model.apply({"params": params}, tokens, cache, method="decode_step")


@partial(jax.jit, static_argnums=(0, 4))
def prefill(model, params, ids, mask, settings):
    variables = {"params": params}
    encoded = model.apply(variables, ids, mask, method="encode")
    return model.apply(variables, encoded, mask, method="prefill", **dict(settings))


@partial(jax.jit, static_argnums=0)
def uncached(model, params, ids, mask, replies):
    """Logits of replies [B, K, T], each beam a row of its own."""
    B, K, T = replies.shape
    ids, mask = jnp.repeat(ids, K, axis=0), jnp.repeat(mask, K, axis=0)
    logits = model.apply({"params": params}, ids, mask, replies.reshape(B * K, T)).logits
    return logits.reshape(B, K, T, -1)


def small_cache(ancestry, *, B=2, K=3, capacity=4):
    cross = (jnp.zeros((B, 2, 1, 5)),)
    shape = CacheShape(layers=1, heads=2, head_dim=1, dtype=jnp.float32)
    mask = jnp.ones((B, 5), bool)
    return init_cache(cross, cross, mask, shape=shape, beams=K, capacity=capacity, ancestry=ancestry)


def written(cache, tokens):
    """The cache after a token of each beam [B, K], known by its number in keys and in values."""
    new = jnp.broadcast_to(
        jnp.asarray(tokens, jnp.float32)[:, None, :, None, None], (len(tokens), 2, cache.beams, 1, 1)
    )
    keys, values = append(cache.self_keys[0], cache.self_values[0], (new, -new), cache.length)
    return dataclasses.replace(cache, self_keys=(keys,), self_values=(values,), length=cache.length + 1)


def slots(cache):
    """What was written: [G, C, J], checked to be the same in every head, and negated in the values."""
    keys = np.concatenate(cache.self_keys[0], axis=3)[:, :, 0]
    values = np.concatenate(cache.self_values[0], axis=2)[..., 0]
    assert (keys == -values).all()
    assert (keys[:, 0] == keys[:, 1]).all()
    return keys[:, 0].reshape(len(keys), -1, cache.writers)


def test_append_writes_a_step_of_all_beams_side_by_side_and_nothing_else():
    keys, values = (jnp.zeros((1, 1, 1, 10)),), (jnp.zeros((1, 1, 10, 1)),)
    new = jnp.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 1, 2, 2, 1)
    keys, values = append(keys, values, (new, -new), jnp.int32(2))
    assert keys[0][0, 0, 0].tolist() == [0, 0, 0, 0, 1, 3, 2, 4, 0, 0]
    assert values[0][0, 0, :, 0].tolist() == [0, 0, 0, 0, -1, -3, -2, -4, 0, 0]


def test_a_new_cache_is_empty_and_knows_its_sizes():
    shared, own = small_cache(ancestry=True), small_cache(ancestry=False)
    for cache in (shared, own):
        assert (cache.beams, cache.capacity, int(cache.length)) == (3, 4, 0)
        assert not cache.self_keys[0][0].any()
    assert shared.ancestry.shape == (2, 3, 4)
    assert own.ancestry is None
    for cache, keys, values in ((shared, (2, 2, 1, 12), (2, 2, 12, 1)), (own, (6, 2, 1, 4), (6, 2, 4, 1))):
        assert (cache.self_keys[0][0].shape, cache.self_values[0][0].shape) == (keys, values)


@pytest.mark.parametrize("ancestry", [False, True])
def test_a_cache_that_grows_holds_what_one_of_full_size_does(ancestry):
    small, large = small_cache(ancestry, capacity=2), small_cache(ancestry, capacity=5)
    for t in range(5):
        small = grow(small, 5) if t == 2 else small
        tokens = 1 + 10 * t + np.arange(6).reshape(2, 3)
        small, large = written(small, tokens), written(large, tokens)
        small, large = (reorder(cache, jnp.array([[1, 1, 0], [2, 0, 1]])) for cache in (small, large))
    assert small.capacity == large.capacity == 5
    assert len(small.self_keys[0]) == 2
    np.testing.assert_array_equal(slots(small), slots(large))
    np.testing.assert_array_equal(self_attention_mask(small, 1), self_attention_mask(large, 1))
    assert grow(small, 5) is small


def test_beams_go_on_from_copies_of_one_row():
    one = written(small_cache(ancestry=False, K=1), np.array([[7], [8]]))
    for ancestry in (False, True):
        cache = expand_beams(one, 3, ancestry=ancestry)
        assert (cache.beams, cache.capacity, cache.ancestry is not None) == (3, 4, ancestry)
        assert slots(cache)[:, 0].reshape(2, 3).tolist() == [[7] * 3, [8] * 3]


def test_both_forms_hold_the_same_histories_under_random_parents():
    B, K, C = 2, 3, 6
    rng = np.random.default_rng(0)
    own, shared = (small_cache(form, capacity=C) for form in (False, True))
    histories = [[[] for _ in range(K)] for _ in range(B)]
    for t in range(C):
        # a token is known by its step, prompt and beam
        tokens = 100 * t + np.arange(B * K).reshape(B, K)
        parents = rng.integers(0, K, (B, K))
        histories = [[[*histories[b][p], int(tokens[b, p])] for p in parents[b]] for b in range(B)]
        own, shared = (reorder(written(cache, tokens), jnp.asarray(parents)) for cache in (own, shared))
        assert slots(own)[:, : t + 1, 0].reshape(B, K, t + 1).tolist() == histories
        table, held = np.asarray(shared.ancestry), slots(shared)
        assert [[[held[b, i, table[b, k, i]] for i in range(t + 1)] for k in range(K)] for b in range(B)] == histories
        # what is not written yet is each beam's own
        assert (table[:, :, t + 1 :] == np.arange(K)[:, None]).all()
    assert (np.asarray(shared.ancestry) != np.arange(K)[:, None]).any()


def test_the_mask_takes_the_form_of_the_cache():
    assert self_attention_mask(small_cache(ancestry=False), 2).shape == (1, 1, 2, 4)
    assert self_attention_mask(small_cache(ancestry=True), 2).shape == (2, 1, 6, 12)


@pytest.mark.parametrize("natively", [False, pytest.param(True, marks=needs_native)])
@pytest.mark.parametrize("ancestry", [False, True])
def test_cached_decoding_equals_uncached_under_random_parents(model, ancestry, natively):
    B, K, chunks = 2, 3, (1, 1, 2, 1)
    params = golden_params(model)
    rng = np.random.default_rng(1)
    ids = rng.integers(3, 96, (B, 7))
    mask = np.arange(7) < np.array([[7], [4]])
    settings = (("capacity", 8), ("beams", K), ("ancestry", ancestry), ("native", natively))
    cache = prefill(model, params, ids, mask, settings)
    assert ((cache.ancestry is not None), cache.native) == (ancestry, natively)
    histories = np.zeros((B, K, 0), int)
    for T in chunks:
        tokens = rng.integers(3, 96, (B, K, T))
        logits, cache = step(model, params, tokens, cache)
        histories = np.concatenate([histories, tokens], axis=2)
        padded = np.pad(histories, ((0, 0), (0, 0), (0, 8 - histories.shape[2])))
        full = uncached(model, params, ids, mask, padded)[:, :, histories.shape[2] - T : histories.shape[2]]
        np.testing.assert_allclose(logits, full, **CLOSE)
        parents = rng.integers(0, K, (B, K))
        histories = np.take_along_axis(histories, parents[:, :, None], axis=1)
        cache = jax.jit(reorder)(cache, jnp.asarray(parents))
    assert int(cache.length) == sum(chunks)


def test_a_table_is_kept_for_several_beams_unless_told_otherwise(model):
    params = golden_params(model)
    encoded = jnp.zeros((1, 3, 24))
    prefilled = partial(model.apply, {"params": params}, encoded, method="prefill", capacity=4)
    assert prefilled(beams=1).ancestry is None
    assert prefilled(beams=2).ancestry is not None
    assert prefilled(beams=2, ancestry=False).ancestry is None


def test_refusals_name_the_room_and_the_shape(model):
    variables = {"params": golden_params(model)}
    encoded = jnp.zeros((2, 3, 24))
    decode = partial(model.apply, variables, method="decode_step")
    prefilled = partial(model.apply, variables, encoded, method="prefill")
    cache = prefilled(capacity=2, beams=2)
    _, full = decode(jnp.ones((2, 2, 2), int), cache)
    with pytest.raises(ValueError, match="room for 2 tokens; 1 more"):
        decode(jnp.ones((2, 2, 1), int), full)
    with pytest.raises(ValueError, match="room for 2 tokens; 3 more"):
        decode(jnp.ones((2, 2, 3), int), cache)
    with pytest.raises(ValueError, match=r"B=2, K=2, not \[2, 3, 1\]"):
        decode(jnp.ones((2, 3, 1), int), cache)
    with pytest.raises(ValueError, match=r"the cache has 25 tokens.*24"):
        prefilled(capacity=25)
    with pytest.raises(ValueError, match="at least 1, not 0 and 1"):
        prefilled(capacity=0)
