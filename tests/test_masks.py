"""Masks as pictures: 1 where a query (row) may look at a key (column)."""

import jax.numpy as jnp
import numpy as np

from blenderbot_jax.masks import ancestry_mask, cache_mask, causal_mask, padding_mask, positions_from_mask


def picture(mask):
    return ["".join("01"[int(seen)] for seen in row) for row in np.asarray(mask)]


def kept(*rows):
    return jnp.array([[mark == "1" for mark in row] for row in rows])


def test_padding_mask_lets_every_query_see_the_kept_keys():
    mask = padding_mask(kept("1110", "1000"))
    assert mask.shape == (2, 1, 1, 4)
    assert picture(mask[:, 0, 0]) == ["1110", "1000"]


def test_causal_mask_looks_back_and_at_itself():
    mask = causal_mask(4)
    assert mask.shape == (1, 1, 4, 4)
    assert picture(mask[0, 0]) == ["1000", "1100", "1110", "1111"]


def test_causal_and_padding_masks_combine():
    mask = causal_mask(3) & padding_mask(kept("110", "011"))
    assert picture(mask[0, 0]) == ["100", "110", "110"]
    assert picture(mask[1, 0]) == ["000", "010", "011"]


def test_positions_count_kept_tokens_wherever_the_padding_stands():
    positions = positions_from_mask(kept("11100", "00111", "10110"))
    assert positions.tolist() == [[0, 1, 2, 2, 2], [0, 0, 0, 1, 2], [0, 0, 1, 2, 2]]


def test_cache_mask_of_the_first_token():
    assert picture(cache_mask(jnp.int32(0), 1, 4)) == ["1000"]


def test_cache_mask_of_two_tokens_after_three():
    assert picture(cache_mask(jnp.int32(3), 2, 6)) == ["111100", "111110"]


def test_ancestry_mask_follows_each_beam_through_the_slots_it_descends_from():
    # Beam 0 was beam 1 in its first step; beam 1 was beam 0 in its second; slots 2 and 3 are each one's own.
    ancestry = jnp.array([[[1, 0, 0, 0], [1, 0, 1, 1]]])
    mask = ancestry_mask(ancestry, cache_mask(jnp.int32(2), 1, 4)[None])
    assert mask.shape == (1, 1, 2, 8)
    assert picture(mask[0, 0]) == ["01101000", "01100100"]


def test_ancestry_mask_of_several_tokens_keeps_their_order():
    ancestry = jnp.array([[[0, 0, 0], [0, 1, 1]]])
    mask = ancestry_mask(ancestry, cache_mask(jnp.int32(1), 2, 3)[None])
    assert picture(mask[0, 0]) == ["101000", "100100", "101010", "100101"]
