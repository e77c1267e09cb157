"""The measuring script of drafts: its arithmetic, and that planted drafts are right as often as they are said to be."""

import json
import math

import pytest
from click.testing import CliRunner

from benchmarks.speculation import LONG, Pair, break_even, main, tokens_per_round


def test_a_round_gives_one_token_to_all_guesses_and_one_by_how_often_they_are_right():
    assert tokens_per_round(0, 4, 1) == 1
    assert tokens_per_round(1, 4, 1) == 5
    assert tokens_per_round(0.5, 3, 1) == 1.875
    assert tokens_per_round(0.5, 3, 2) == tokens_per_round(0.25, 3, 1)


@pytest.mark.parametrize(("cost", "batch"), [(1.3, 1), (2.5, 1), (2.5, 4)])
def test_at_the_break_even_rate_a_round_gives_what_it_costs(cost, batch):
    assert tokens_per_round(break_even(cost, 4, batch), 4, batch) == pytest.approx(cost)


def test_a_round_that_costs_more_than_it_can_give_never_pays():
    assert break_even(5.1, 4, 1) is None


def test_a_name_that_is_no_pair_is_refused():
    refused = CliRunner().invoke(main, ["--pair", "3b"])
    assert refused.exit_code == 2
    assert "3b is no pair such as 3b:400m" in refused.stderr


@pytest.mark.slow
def test_planted_drafts_are_right_as_often_as_they_are_said_to_be(tmp_path):
    pair = Pair.of("1x32:1x32", "f32", batch=2, tokens=3)
    rounds = {rate: pair.reply(LONG, pair.drafting(3, rate, seed=0))[1] for rate in (0.0, 0.8, 1.0)}
    assert rounds[0.0] == LONG - 1
    assert rounds[1.0] == math.ceil((LONG - 1) / 4)
    assert rounds[0.8] == pytest.approx((LONG - 1) / tokens_per_round(0.8, 3, 2), rel=0.25)
    file = tmp_path / "record.json"
    run = CliRunner().invoke(main, ["--pair", "1x32:1x32", "--tokens", "2", "--repeats", "1", "--out", str(file)])
    assert run.exit_code == 0, run.output
    assert "a plain step" in run.output
    assert json.loads(file.read_text())["1x32:1x32-b1-f32"]["drafted"]["2"]["rounds"]["1.0"] == 20
