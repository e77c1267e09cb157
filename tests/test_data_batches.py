"""Batches: every example once an epoch, whatever the shapes and the processes, and the same ones when a run goes on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blenderbot_jax.data import Batches, Example, PackedExamples

PAD, IGNORED = 0, -100


def example(number, S, T):
    """Ids that tell which example they are of."""
    return Example((number + 1,) * S, (number + 1,) * T)


def examples(sizes):
    return [example(number, S, T) for number, (S, T) in enumerate(sizes)]


def many(count, seed=0):
    chance = np.random.default_rng(seed)
    return examples(zip(chance.integers(1, 129, count).tolist(), chance.integers(1, 60, count).tolist(), strict=True))


def unpadded(batches, number=0, **options):
    """The examples that an epoch holds, as (input_ids, labels)."""
    found = []
    for batch in batches.epoch(number, **options):
        for source, mask, target in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            ids, labels = source[mask == 1].tolist(), target[target != IGNORED].tolist()
            if labels:
                found.append((tuple(ids), tuple(labels)))
            else:
                assert (ids, source.any()) == ([PAD], False)
    return found


def as_pairs(rows):
    return sorted((row.input_ids, row.labels) for row in rows)


def same(first, second):
    first, second = list(first), list(second)
    return len(first) == len(second) and all(
        (a[name] == b[name]).all() and a[name].shape == b[name].shape
        for a, b in zip(first, second, strict=True)
        for name in ("input_ids", "attention_mask", "labels")
    )


SIZES = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=40)


@settings(deadline=None, max_examples=150)
@given(sizes=SIZES, batch_size=st.integers(1, 9), shuffle=st.booleans(), number=st.integers(0, 3))
def test_every_example_comes_exactly_once_an_epoch(sizes, batch_size, shuffle, number):
    rows = examples(sizes)
    batches = Batches(rows, batch_size, shuffle=shuffle, source_widths=(8, 16, 40), target_widths=(4, 20, 40), seed=3)
    assert sorted(unpadded(batches, number)) == as_pairs(rows)
    shapes = [rows.shape for rows in batches.order(number)]
    assert len(shapes) == len(batches)
    assert set(shapes) == set(batches.widths)
    assert sorted(shapes) == sorted(rows.shape for rows in batches.order(number + 1))


@settings(deadline=None)
@given(sizes=SIZES, share=st.integers(1, 4), processes=st.integers(1, 4), shuffle=st.booleans())
def test_the_rows_of_all_processes_together_are_the_batch_of_one(sizes, share, processes, shuffle):
    packed = PackedExamples.of(examples(sizes))
    options = {"batch_size": share * processes, "shuffle": shuffle, "seed": 5}
    parts = [Batches(packed, **options, process_index=p, process_count=processes) for p in range(processes)]
    together = [
        {name: np.concatenate([batch[name] for batch in shares]) for name in shares[0]}
        for shares in zip(*(part.epoch(2) for part in parts), strict=True)
    ]
    assert same(together, Batches(packed, **options).epoch(2))
    assert len({part.fingerprint for part in parts}) == 1


@settings(deadline=None)
@given(sizes=SIZES, batch_size=st.integers(1, 6), data=st.data())
def test_an_epoch_that_goes_on_is_the_tail_of_the_whole(sizes, batch_size, data):
    batches = Batches(examples(sizes), batch_size, seed=1)
    start = data.draw(st.integers(0, len(batches)))
    assert same(batches.epoch(4, start), list(batches.epoch(4))[start:])
    assert same(batches.epoch(4, start), Batches(examples(sizes), batch_size, seed=1).epoch(4, start))


def test_arrays_are_int32_and_padded_where_there_is_nothing():
    [batch] = Batches([Example((5, 6), (7, 8, 2)), Example((9,), (3,))], 3, shuffle=False, pad_token_id=1).epoch(0)
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}
    assert batch["input_ids"].tolist() == [[5, 6], [9, 1], [1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0], [1, 0]]
    assert batch["labels"].tolist() == [[7, 8, 2], [3, -100, -100], [-100, -100, -100]]


def test_order_depends_on_seed_and_epoch_alone():
    rows = many(60)
    first = unpadded(Batches(rows, 4, seed=1))
    assert first == unpadded(Batches(iter(rows), 4, seed=1))
    assert first != unpadded(Batches(rows, 4, seed=1), 1)
    assert first != unpadded(Batches(rows, 4, seed=2))
    plain = Batches(rows, 4, shuffle=False)
    assert unpadded(plain, 0) == unpadded(plain, 7)
    assert [rows.shape for rows in plain.order(0)] == sorted(
        (rows.shape for rows in plain.order(0)), key=lambda s: (sum(s), s)
    )


def test_an_unshuffled_shape_keeps_the_order_given():
    rows = examples([(8, 8)] * 7)
    assert unpadded(Batches(rows, 3, shuffle=False)) == [(row.input_ids, row.labels) for row in rows]


def test_shuffling_mixes_examples_and_batches():
    rows = many(400)
    batches = Batches(rows, 8)
    orders = [np.concatenate([rows.places for rows in batches.order(number)]) for number in range(2)]
    # Of 400 places some 1 in 400 agrees by chance in each.
    assert (orders[0] == orders[1]).mean() < 0.1
    widths = [sum(rows.shape) for rows in batches.order(0)]
    assert widths != sorted(widths)


def test_widths_are_buckets_up_to_the_longest():
    batches = Batches(examples([(3, 2), (17, 20), (40, 50)]), 1)
    assert (batches.source_widths, batches.target_widths) == ((16, 32, 40), (16, 32, 48, 50))
    assert batches.widths == ((16, 16), (32, 32), (40, 50))
    assert batches.padding == pytest.approx(1 - (5 + 37 + 90) / (32 + 64 + 90))


def test_what_is_left_of_a_shape_goes_to_a_wider_one_where_that_pads_less():
    widths = {"source_widths": (8, 16), "target_widths": (8,)}
    few, most = examples([(8, 8)] * 5 + [(16, 8)] * 3), examples([(8, 8)] * 7 + [(16, 8)] * 4)
    assert [rows.shape for rows in Batches(few, 4, shuffle=False, **widths).order(0)] == [(8, 8), (16, 8)]
    assert [rows.shape for rows in Batches(most, 4, shuffle=False, **widths).order(0)] == [(8, 8), (8, 8), (16, 8)]
    # A source that is wider does no good where the target is narrower.
    apart = examples([(8, 16)] + [(16, 8)] * 4)
    batches = Batches(apart, 4, source_widths=(8, 16), target_widths=(8, 16))
    assert batches.widths == ((8, 16), (16, 8))


def test_dropping_the_last_leaves_full_batches_only():
    batches = Batches(many(50), 8, drop_last=True)
    found = unpadded(batches)
    assert len(found) == 8 * len(batches)
    assert len(found) + 8 * len(batches.widths) > 50 - 8
    assert len(set(found)) == len(found)
    assert set(found) <= set(as_pairs(many(50)))
    assert Batches(examples([(4, 4)] * 4), 4, drop_last=True).padding == 0
    with pytest.raises(ValueError, match="3 examples fill no batch of 4, and drop_last"):
        Batches(examples([(4, 4)] * 3), 4, drop_last=True)


def test_the_fingerprint_tells_other_data_and_other_settings_apart():
    rows = many(12)
    same_again = [Batches(rows, 4).fingerprint, Batches(PackedExamples.of(rows), 4).fingerprint]
    same_again.append(Batches(rows, 4, process_count=2, process_index=1).fingerprint)
    assert len(set(same_again)) == 1
    cut_elsewhere = [Example((1, 2), (3,)), Example((4,), (5, 6))], [Example((1,), (3, 5)), Example((2, 4), (6,))]
    others = [
        Batches(rows, 8),
        Batches(rows[:-1], 4),
        Batches(rows[::-1], 4),
        Batches([*rows[:-1], Example((7,), (7,))], 4),
        Batches(rows, 4, seed=1),
        Batches(rows, 4, shuffle=False),
        Batches(rows, 4, drop_last=True),
        Batches(rows, 4, pad_token_id=1),
        Batches(rows, 4, source_widths=(128,)),
        Batches(rows, 4, target_widths=(60,)),
        *(Batches(part, 4) for part in cut_elsewhere),
    ]
    assert len({batches.fingerprint for batches in others} | set(same_again)) == 1 + len(others)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"process_count": 3}, "3 of them cannot share 4 evenly: take a multiple of 3"),
        ({"process_count": 0}, "process_count must be at least 1, not 0"),
        ({"process_count": 2, "process_index": 2}, "process_index is from 0 to 1, not 2"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
        ({"source_widths": (4, 2)}, "source_widths are ascending numbers"),
        ({"source_widths": ()}, "source_widths are ascending numbers"),
        ({"target_widths": (0, 4)}, "target_widths are ascending numbers"),
        (
            {"target_widths": (2,)},
            "example 1 has a target of 3 tokens, and the widest of target_widths is 2: add 3, or",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(options, reason):
    rows = examples([(2, 2), (1, 3)])
    with pytest.raises(ValueError, match=reason):
        Batches(rows, **{"batch_size": 4, **options})


def test_epochs_and_starts_out_of_range_are_refused_before_a_batch_is_taken():
    batches = Batches(many(20), 4)
    assert list(batches.epoch(0, len(batches))) == []
    for start in (-1, len(batches) + 1):
        with pytest.raises(ValueError, match=f"start is from 0 to {len(batches)}, not {start}"):
            batches.epoch(0, start)
    with pytest.raises(ValueError, match="numbered from 0 on, not -1"):
        batches.epoch(-1)


def test_examples_that_nothing_can_be_learned_from_are_refused():
    with pytest.raises(ValueError, match="there are no examples"):
        Batches([], 4)
    good = Example((5,), (2,))
    with pytest.raises(ValueError, match="example 1 has no labels"):
        Batches([good, Example((5,), ())], 4)
    with pytest.raises(ValueError, match="example 1 has no input_ids"):
        Batches([good, Example((), (5,))], 4)
    with pytest.raises(ValueError, match="example 2 has a negative id in its labels"):
        Batches([good, good, Example((5,), (5, -100))], 4)


def test_packed_examples_are_those_that_were_packed():
    rows = many(30)
    packed = PackedExamples.of(iter(rows))
    assert [packed[place] for place in range(len(packed))] == rows
    assert (packed.sources.flat.itemsize, packed.targets.flat.itemsize) == (4, 4)
    for place in (-1, 30):
        with pytest.raises(IndexError, match=f"30 examples, from 0 on; not {place}"):
            packed[place]
