"""What drawing is cut down to: by hand on simple distributions, and what each rule promises whatever the scores."""

from functools import partial
from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from tests.test_processors import V, bent


def test_top_k_keeps_ties_with_the_kth():
    out = bent([0, 1, 3, 3, 3, 9, 0, 0, 0, 0], [1], do_sample=True, top_k=2)
    assert set(np.flatnonzero(np.isfinite(out))) == {2, 3, 4, 5}


def test_temperature_divides():
    np.testing.assert_array_equal(bent(np.arange(V), [1], do_sample=True, temperature=2.0), np.arange(V) / 2)


def kept(scores: Any, **fields: Any) -> set[int]:
    """The tokens that sampling may draw."""
    return set(np.flatnonzero(np.isfinite(bent(scores, [1], **{"do_sample": True, **fields}))).tolist())


with np.errstate(divide="ignore"):
    HALVES = np.log([0.5, 0.25, 0.125, 0.0625, 0.0625, 0, 0, 0, 0, 0])


def test_cut_offs_of_a_distribution_of_halves():
    assert kept(HALVES, top_p=0.7) == {0, 1}
    assert kept(HALVES, top_p=0.0) == {0}
    assert kept(HALVES, min_p=0.3) == {0, 1}
    assert kept(HALVES, epsilon_cutoff=0.1) == {0, 1, 2}
    assert kept(HALVES, epsilon_cutoff=0.7) == {0}
    # The entropy is 1.875 bits. A quarter, of 2 bits, lies nearest to it, then a half and an eighth.
    assert kept(HALVES, typical_p=0.2) == {1}
    assert kept(HALVES, typical_p=0.7) == {0, 1}
    # Parts of the entropy: 0.5, 0.5, 0.375, 0.25 and 0.25 bits.
    assert kept(HALVES, top_h=0.6) == {0, 1}
    assert kept(HALVES, top_h=0.1) == {0}
    # sqrt(0.25) * 2 ** -1.875 is 0.136, below 0.25.
    assert kept(HALVES, eta_cutoff=0.25) == {0, 1}


def test_of_equal_scores_top_p_keeps_the_later():
    assert kept(np.zeros(V), top_p=0.25) == {7, 8, 9}


def test_beam_sampling_keeps_one_token_more_than_there_are_ends():
    beams = {"num_beams": 2, "eos_token_id": [2, 9]}
    for rule in ({"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}, {"epsilon_cutoff": 0.9}, {"eta_cutoff": 0.9}):
        assert kept(HALVES, **rule, **beams) == {0, 1, 2}
    assert kept(HALVES, typical_p=0.2, **beams) == {0, 1, 2}
    assert kept(HALVES, top_h=0.1, **beams) == {0}


SCORES = st.lists(st.integers(-12, 12), min_size=V, max_size=V).map(lambda quarters: np.array(quarters) / 4)
SHARES = st.floats(0.03, 0.97)
EPS = 1e-5  # float32 against float64
fast = partial(settings, max_examples=60, deadline=None)


def probabilities(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def mask_kept(scores: np.ndarray, **fields: Any) -> np.ndarray:
    return np.isfinite(bent(scores, [1], do_sample=True, **fields))


@fast()
@given(SCORES, SHARES)
def test_top_p_keeps_the_fewest_of_the_likeliest_that_reach_p(scores: np.ndarray, p: float):
    probs, mask = probabilities(scores), mask_kept(scores, top_p=p)
    assert probs[mask].sum() >= p - EPS
    assert probs[mask].sum() - probs[mask].min() <= p + EPS
    assert mask.all() or probs[mask].min() >= probs[~mask].max()


@fast()
@given(SCORES, SHARES)
def test_min_p_keeps_what_is_at_least_a_fraction_as_likely_as_the_best(scores: np.ndarray, fraction: float):
    ratio, mask = probabilities(scores) / probabilities(scores).max(), mask_kept(scores, min_p=fraction)
    assert (ratio[mask] >= fraction - EPS).all()
    assert (ratio[~mask] < fraction + EPS).all()


@fast()
@given(SCORES, SHARES)
def test_typical_p_keeps_the_fewest_of_the_nearest_to_the_entropy_that_reach_p(scores: np.ndarray, p: float):
    probs, mask = probabilities(scores), mask_kept(scores, typical_p=p)
    distance = np.abs(-np.log(probs) + (probs * np.log(probs)).sum())
    farthest = distance[mask].max()
    assert probs[mask].sum() >= p - EPS
    assert probs[mask & (distance < farthest - EPS)].sum() <= p + EPS
    assert mask.all() or farthest <= distance[~mask].min() + EPS


@fast()
@given(SCORES, SHARES)
def test_top_h_keeps_the_likeliest_within_a_share_of_the_entropy(scores: np.ndarray, share: float):
    probs, mask = probabilities(scores), mask_kept(scores, top_h=share)
    parts = -probs * np.log(probs)
    assert mask.sum() == 1 or parts[mask].sum() <= share * parts.sum() + EPS
    assert mask.all() or parts[mask].sum() + parts[~mask & (probs == probs[~mask].max())][0] > share * parts.sum() - EPS
    assert mask.all() or probs[mask].min() >= probs[~mask].max()


@fast()
@given(SCORES, SHARES)
def test_epsilon_and_eta_keep_what_is_likely_enough_and_the_likeliest(scores: np.ndarray, cutoff: float):
    probs = probabilities(scores)
    eta = min(cutoff, np.sqrt(cutoff) * np.exp((probs * np.log(probs)).sum()))
    for name, threshold in (("epsilon_cutoff", cutoff), ("eta_cutoff", eta)):
        mask = mask_kept(scores, **{name: cutoff})
        assert (probs[~mask] < threshold + EPS).all()
        assert ((probs[mask] >= threshold - EPS) | (scores[mask] == scores.max())).all()
        assert mask[scores.argmax()]
