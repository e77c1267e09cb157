"""Distinct n-grams, repetition and length: within replies, over replies, and through dialogues."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blenderbot_jax.data import Dialogue
from blenderbot_jax.evaluation.dialogues import dialogue_metrics
from blenderbot_jax.evaluation.diversity import (
    inter_distinct,
    intra_distinct,
    mean_words,
    repeated_share,
    repeating_share,
)

SENTENCES = st.lists(st.sampled_from(["i", "do", "not"]), max_size=7).map(" ".join)
REPLIES = st.lists(SENTENCES, min_size=1, max_size=5)


def runs(text, n):
    items = text.split()
    return [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]


@given(REPLIES, st.integers(1, 3))
def test_distinct_counts_different_runs_over_all_runs(replies, n):
    each = [runs(reply, n) for reply in replies]
    wanted = sum(len(set(one)) / len(one) if one else 0 for one in each) / len(each)
    assert intra_distinct(replies, n) == pytest.approx(wanted)
    together = [run for one in each for run in one]
    assert inter_distinct(replies, n) == pytest.approx(len(set(together)) / len(together) if together else 0)


@given(REPLIES, st.integers(1, 3))
def test_repetition_counts_runs_that_came_before(replies, n):
    before = [[run in runs(reply, n)[:i] for i, run in enumerate(runs(reply, n))] for reply in replies]
    every = [one for reply in before for one in reply]
    assert repeated_share(replies, n) == pytest.approx(sum(every) / len(every) if every else 0)
    assert repeating_share(replies, n) == pytest.approx(sum(map(any, before)) / len(before))


def test_values_by_hand():
    replies = ["No, no, no!", "Yes, I do."]
    assert intra_distinct(replies, 1) == pytest.approx((1 / 3 + 1) / 2)
    assert intra_distinct(replies, 2) == pytest.approx((1 / 2 + 1) / 2)
    assert inter_distinct(replies, 1) == pytest.approx(4 / 6)
    assert repeated_share(replies, 1) == pytest.approx(2 / 6)
    assert repeating_share(replies, 2) == 0.5
    assert mean_words(["The end.", "well-known"]) == 1.5


def test_nothing_is_no_division_by_zero():
    assert (intra_distinct([""], 1), inter_distinct([], 2), repeated_share(["a"], 3), mean_words([])) == (0, 0, 0, 0)


def talk(*texts):
    return Dialogue(tuple(("AB"[i % 2], text) for i, text in enumerate(texts)))


def test_dialogue_metrics_by_hand():
    circling = talk("Hi!", "Do you like music?", "i do, do you like music", "do you like MUSIC!")
    fresh = talk("Hi!", "hello there friend")
    found = dialogue_metrics([circling, fresh], given=1)
    assert found["turns"] == 2
    assert found["words"] == pytest.approx((4 + 6 + 4 + 3) / 4)
    # Of the first, 14 words of which i, do, you, like, music differ; of the second, all three.
    assert found["distinct-1"] == pytest.approx((5 / 14 + 1) / 2)
    # Pairs do not span turns: 3 + 5 + 3, of which the different ones are do-you, you-like, like-music, i-do, do-do.
    assert found["distinct-2"] == pytest.approx((5 / 11 + 1) / 2)
    assert found["interdistinct-1"] == pytest.approx(8 / 17)
    assert found["interdistinct-2"] == pytest.approx(7 / 13)
    # Trigrams: 2 new; 4, of which two were heard; 2 heard; 1 new.
    assert found["repeated-3"] == pytest.approx(4 / 9)
    assert found["repeating_turns"] == pytest.approx(1 / 4)
    assert found["circling"] == 0.5


def test_given_turns_are_heard_but_not_measured():
    echo = talk("do you like music", "do you like music")
    found = dialogue_metrics([echo], given=1)
    assert (found["turns"], found["repeating_turns"], found["repeated-3"]) == (1, 1, 1)
    found = dialogue_metrics([echo])
    assert (found["turns"], found["repeating_turns"], found["repeated-3"]) == (2, 0.5, 0.5)


def test_a_dialogue_that_ended_at_once_does_not_count_as_dull():
    alone = dialogue_metrics([talk("hi", "hello you")], given=1)
    beside = dialogue_metrics([talk("hi", "hello you"), talk("hi")], given=1)
    assert beside["distinct-1"] == alone["distinct-1"] == 1
    assert (beside["turns"], beside["circling"]) == (0.5, 0)


def test_dialogues_without_a_turn_to_measure_are_refused():
    with pytest.raises(ValueError, match="nothing to measure"):
        dialogue_metrics([talk("hi")], given=1)
    with pytest.raises(ValueError, match="nothing to measure"):
        dialogue_metrics([])
