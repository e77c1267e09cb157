"""Prompts of many lengths in few shapes: every prompt once, within the limits; the best widths, by brute force."""

from itertools import combinations

import numpy as np
import pytest

from blenderbot_jax.generation.packing import Costs, Limits, choose_buckets, covering, pack

WIDTHS = (16, 32, 64, 128)
COSTS = Costs(place=0.005)


def padded(lengths, widths):
    return sum(min(width for width in widths if width >= length) for length in lengths)


@pytest.mark.parametrize("multiple_of", [1, 4])
def test_the_chosen_widths_pad_as_little_as_any(multiple_of):
    rng = np.random.default_rng(0)
    for _ in range(30):
        lengths = rng.integers(1, 9 + 3 * multiple_of, rng.integers(1, 20)).tolist()
        steps = range(multiple_of, 9 + 4 * multiple_of, multiple_of)
        for count in (1, 2, 3):
            chosen = choose_buckets(lengths, count, multiple_of)
            tried = (set_ for n in range(1, count + 1) for set_ in combinations(steps, n) if set_[-1] >= max(lengths))
            assert padded(lengths, chosen) == min(padded(lengths, set_) for set_ in tried)
            assert len(chosen) <= count
            assert all(width % multiple_of == 0 for width in chosen)


def test_no_more_widths_are_chosen_than_lengths_need():
    assert choose_buckets([7, 8, 31], 9) == (8, 32)
    assert choose_buckets([128], 3) == (128,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(([], 2), "at least one length"), (([4, 0], 2), "lengths must be"), (([4], 0), "count must be at least 1, not 0"),
     (([4], 1, 0), "multiple_of must be at least 1, not 0")],
)  # fmt: skip
def test_widths_of_nothing_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        choose_buckets(*arguments)


@pytest.mark.parametrize("limits", [Limits(), Limits(8), Limits(48, places=2000, places_per_row=40), Limits(200)])
def test_every_prompt_is_in_one_batch_that_holds_it(limits):
    lengths = {place: int(n) for place, n in enumerate(np.random.default_rng(0).integers(1, 129, 1000))}
    batches = pack(lengths, WIDTHS, limits, COSTS)
    assert sorted(place for batch in batches for place in batch.places) == list(lengths)
    for batch in batches:
        assert max(lengths[place] for place in batch.places) <= batch.width
        assert len(batch.places) <= batch.rows <= limits.batch_size
        assert limits.places is None or batch.rows * (batch.width + limits.places_per_row) <= limits.places
    assert [batch.width for batch in batches] == sorted((batch.width for batch in batches), reverse=True)


def test_many_prompts_take_about_as_many_shapes_as_widths():
    lengths = {place: int(n) for place, n in enumerate(np.random.default_rng(0).integers(1, 129, 5000))}
    batches = pack(lengths, WIDTHS, Limits(32), COSTS)
    assert len({(batch.rows, batch.width) for batch in batches}) <= len(WIDTHS) + 2
    assert sum(batch.rows for batch in batches) < 1.01 * len(lengths)


def test_rows_that_fill_a_shape_are_fewer_than_its_prompts():
    for count in (1, 3, 31, 33, 64, 67, 129):
        batches = pack(dict.fromkeys(range(count), 9), WIDTHS, Limits(), COSTS)
        assert all(len(batch.places) > batch.rows / 2 for batch in batches)
    assert [batch.rows for batch in pack(dict.fromkeys(range(3), 9), WIDTHS, Limits(), COSTS)] == [4]
    assert [batch.rows for batch in pack(dict.fromkeys(range(67), 9), WIDTHS, Limits(), COSTS)] == [64, 4]


def test_a_batch_is_filled_with_shorter_prompts_if_padding_them_costs_less_than_another_batch():
    lengths = {3: 100, 5: 2, 7: 20}
    [batch] = pack(lengths, WIDTHS, Limits(), COSTS)
    assert (batch.places, batch.rows, batch.width) == ((3, 7, 5), 4, 128)
    apart = pack(lengths, WIDTHS, Limits(), Costs(place=10.0))
    assert [(batch.places, batch.rows, batch.width) for batch in apart] == [
        ((3,), 1, 128),
        ((7,), 1, 32),
        ((5,), 1, 16),
    ]


def test_no_cut_costs_less_than_the_chosen_one():
    def cost(batches):
        return sum(
            batch.rows * (1 + costs.place * batch.width) + costs.batch + costs.shape * (batch.rows < 4)
            for batch in batches
        )

    def cuts(ordered):
        if not ordered:
            yield 0.0
        for rows in (1, 2, 4):
            part, rest = ordered[:rows], ordered[rows:]
            if part:
                width = min(width for width in WIDTHS if width >= part[0])
                here = rows * (1 + costs.place * width) + costs.batch + costs.shape * (rows < 4)
                yield from (here + other for other in cuts(rest))

    rng = np.random.default_rng(0)
    for place in (0.001, 0.05, 1.0):
        costs = Costs(place=place, shape=2.0)
        lengths = rng.integers(1, 129, 9).tolist()
        found = pack(dict(enumerate(lengths)), WIDTHS, Limits(4), costs)
        assert cost(found) == pytest.approx(min(cuts(sorted(lengths, reverse=True))))


def test_a_prompt_past_the_memory_is_decoded_alone():
    assert [batch.rows for batch in pack({0: 100, 1: 90}, WIDTHS, Limits(64, places=10), COSTS)] == [1, 1]


def test_nothing_is_packed_into_nothing():
    assert pack({}, WIDTHS, Limits(), COSTS) == []


def test_widths_cover_what_the_model_reads():
    assert covering((24, 48), 128) == (24, 48, 64, 128)
    assert covering((16, 200), 128) == (16, 128)
    for widths in ((), (0, 4), (32, 16), (8, 8)):
        with pytest.raises(ValueError, match="ascending numbers"):
            covering(widths, 128)
