"""The measuring scripts: names, floors, ratios and records; one tiny program is loaded and answers calls."""

import json
import math

import click
import pytest
from click.testing import CliRunner

from benchmarks import compare, cost_curves, records, roofline, tables, text_speed, training_speed
from benchmarks.calls import Call
from benchmarks.options import Setup
from benchmarks.pool import Definition, Pool, Variant, groups
from benchmarks.programs import SUPPORTED, trimmed
from benchmarks.shapes import checkpoint_folder, config_of, count_parameters
from benchmarks.worker import Server
from benchmarks.workloads import SETS, Workload, calls, select
from blenderbot_jax import BlenderbotForConditionalGeneration, GenerationConfig

TINY = "1x32"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(autouse=True)
def _no_data(monkeypatch):
    monkeypatch.delenv("BLENDERBOT_JAX_DATA", raising=False)


@pytest.mark.parametrize("name", [name for members in SETS.values() for name in members])
def test_a_workload_is_called_what_it_was_read_from(name):
    ((workload, precisions),) = select([name])
    assert name in (workload.name, *(f"{workload.name}-{precision}" for precision in precisions))


@pytest.mark.parametrize(
    "name", ["400m", "400m-b1", "400m-b1-beam", "1x32-b1-greedy-p9-real", "5m-b1-greedy", "1x33-b1-greedy"]
)
def test_a_name_that_is_no_workload_is_refused(name):
    with pytest.raises(ValueError, match=r"names no workload|a size is one of"):
        Workload.parse(name)


def test_names_select_workloads_and_precisions():
    found = dict(select(["400m-b1-beam10-int8", "400m-b1-beam10-f32", "2x64-b2-greedy"]))
    assert found == {
        Workload("400m", 1, 10): ("f32", "int8"),
        Workload("2x64", 2, 1): ("f32", "bf16", "int8"),
    }
    assert {workload.name for workload, _ in select(["3b-*"])} == {"3b-b1-beam10-n20", "3b-b1-greedy-n20"}
    with pytest.raises(ValueError, match="no workload matches"):
        list(select(["7b-*"]))


def test_all_programs_take_the_same_number_of_steps():
    (fixed,) = calls(Workload.parse("2x64-b3-beam4-n12"))
    assert (len(fixed.input_ids), fixed.steps) == (3, 12)
    real = calls(Workload.parse("2x64-b1-greedy-real"))
    assert len({len(call.input_ids[0]) for call in real}) > 3
    assert all(17 <= call.steps <= 31 and call.max_length == 60 for call in real)
    assert Call.from_dict(json.loads(json.dumps(real[0].to_dict()))) == real[0]


def test_random_weights_are_a_checkpoint_in_the_published_layout(workspace):
    folder = checkpoint_folder(TINY, workspace)
    model, params = BlenderbotForConditionalGeneration.from_pretrained(folder)
    assert model.config.decoder_layers == 1
    assert GenerationConfig.from_pretrained(folder).num_beams == 10
    assert 0.015 < float(params["model"]["shared"]["embedding"].std()) < 0.025
    assert float(params["model"]["decoder"]["layer_norm"]["scale"].min()) == 1
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert (checkpoint_folder(TINY, workspace) / "model.safetensors").stat().st_mtime_ns == written


def test_a_worker_loads_warms_up_and_replies_with_the_length_asked_for(workspace):
    server = Server({"kind": "ours", "precision": "f32", "paths": [], "threads": 1})
    folder = checkpoint_folder(TINY, workspace)
    assert server.answer({"do": "load", "folder": str(folder), "workspace": str(workspace)})["seconds"] > 0
    stopped = Call(((5, 6, 7, 2),), 1, min_length=3, max_length=12, stop=3).to_dict()
    assert len(server.answer({"do": "warm", "calls": [stopped]})["seconds"]) == 1
    answer = server.answer({"do": "run", "calls": [stopped]})
    assert [[len(row) for row in rows] for rows in answer["replies"]] == [[2]]  # and </s>
    assert server.answer({"do": "memory"})["peak"] >= 0


def test_end_tokens_and_what_follows_are_cut():
    assert trimmed([[5, 6, 2, 2, 0], [1, 7], [2]]) == [[5, 6], [1, 7], []]


def test_the_floor_is_what_must_be_read_or_multiplied():
    config, rates = config_of("400m"), roofline.Rates(1e9, {"f32": 1e9, "bf16": 1e9, "int8": 1e9})
    one = roofline.step_work(config, 1, 1, 32, 1, "f32")
    weights = 12 * (6 * 1280**2 + 2 * 1280 * 5120) + 8008 * 1280
    assert one.bytes == 4 * (weights + 2 * 12 * 1280 * 33)
    assert one.seconds(rates, "f32") == max(one.bytes, one.operations) / 1e9
    ten = roofline.step_work(config, 1, 10, 32, 1, "int8")
    assert ten.operations > 9.9 * one.operations * 0.99
    assert ten.bytes < one.bytes
    (call,) = calls(Workload.parse("400m-b1-greedy"))
    floor = roofline.floor_seconds(config, call, 59, "f32", rates)
    assert 59 * one.seconds(rates, "f32") < floor < 65 * one.seconds(rates, "f32")


def test_rates_of_a_machine_are_measured():
    rates = roofline.measure(read=2**14, side=32, repeats=1)
    assert rates.bandwidth > 0
    assert all(0 < rate < math.inf for rate in rates.matrix.values())


def test_programs_that_do_not_fit_are_measured_beside_ours():
    first, second, third = (Variant(Definition(name, "ours"), "f32") for name in ("ours", "a", "b"))
    one = first.memory("3b")
    everything = [first, second, third]
    assert groups(everything, "3b", 3.1 * one) == [everything]
    assert groups(everything, "3b", 2.1 * one) == [[first, second], [first, third]]
    assert groups(everything, "3b", 1.1 * one) == [[first], [second], [third]]
    assert count_parameters(config_of("3b")) == 2_696_268_800 + 8008  # and final_logits_bias


@pytest.mark.parametrize("text", ["ours", "=ours", "x=theirs", "x=ours,folder=y"])
def test_a_definition_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="defines no program"):
        Definition.parse(text)


def test_definitions_add_programs_and_replace_them(tmp_path):
    found = tuple(map(Definition.parse, ("before=ours,path=old,XLA_FLAGS=--a=b", "flax=flax,path=four")))
    setup = Setup(("ours", "before", "flax"), ("f32", "bf16"), found, False, 0, 1, tmp_path)
    assert [variant.label for variant in setup.variants()] == [
        "ours-f32", "flax-f32", "before-f32", "ours-bf16", "before-bf16",
    ]  # fmt: skip
    assert found[0].environment == (("XLA_FLAGS", "--a=b"),)
    with pytest.raises(click.BadParameter, match="no program is called nobody"):
        Setup(("nobody",), (), (), False, 0, 1, tmp_path).variants()
    assert set(SUPPORTED) == {"ours", "torch", "flax", "ctranslate2"}


def _case() -> dict:
    shared = {"precision": "f32", "versions": {"python": "3"}, "first_seconds": 1, "peak": 1e9, "steps_per_call": 10}
    shared |= {"same_replies": "", "floor_ms_per_step": 50.0, "round_groups": [0, 0, 0]}
    return {
        "batch": 1,
        "about": "greedy",
        "groups": [["ours-f32", "torch-f32"]],
        "results": {
            "ours-f32": {**shared, "kind": "ours", "rounds": [[1.0], [1.0], [4.0]]},
            "torch-f32": {**shared, "kind": "torch", "rounds": [[2.0], [3.0], [8.0]]},
        },
        "left_out": {"flax-f32": "not here"},
    }


def test_ratios_are_taken_round_by_round():
    theirs, ours = tables.rounds_beside(_case(), "torch-f32") or ([], [])
    assert tables.paired_ratio(theirs, ours) == 2
    assert tables.spread(ours) == 3
    text = tables.table("400m-b1-greedy", _case())
    assert "| torch-f32 | 3000.0 | 200% | 300.00 | 50.00 | 6.00 | 2.00 |" in text
    assert "| flax-f32 | left out: not here |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1


def test_a_case_replaces_its_predecessor_and_leaves_the_others(tmp_path):
    path = tmp_path / "results" / "x.json"
    for name, value in (("a", 1), ("b", 2), ("a", 3)):
        records.add(path, name, {"value": value})
    assert records.read(path) == {"a": {"value": 3}, "b": {"value": 2}}
    assert {"date", "commit", "command", "machine"} <= set(records.provenance())


def test_a_recorded_command_names_no_folder_of_the_machine(monkeypatch):
    monkeypatch.setattr("sys.argv", ["x", "--out", "/home/me/a.json", "--define", "f=flax,path=/opt/four,A=b/c"])
    assert records.command().endswith("--out a.json --define f=flax,path=four,A=b/c")


def test_the_picture_of_costs_is_drawn_from_its_record(tmp_path):
    pytest.importorskip("matplotlib")
    found = cost_curves.sweeps(TINY, ["1x32", "2x32"], ["1x32", "1x64"])
    points = [
        {"sweep": sweep.title, "value": value, "program": "ours-f32", "ms": 1.0 + value}
        for sweep in found
        for value, _ in sweep.points
    ]
    cost_curves.draw(points, tmp_path / "cost.svg")
    text = (tmp_path / "cost.svg").read_text(encoding="utf-8")
    assert all(sweep.title in text for sweep in found)


def test_tokenizers_take_turns():
    said: list[str] = []
    sides = {side: {task: lambda side=side: said.append(side) for task in ("one by one", "in a batch", "back to text")}
             for side in ("a", "b")}  # fmt: skip
    seconds = text_speed.measure(sides, rounds=2)
    assert said == ["a", "b"] * 9
    assert [len(times["a"]) for times in seconds.values()] == [2, 2, 2]


@pytest.mark.slow
def test_two_checkouts_are_compared_and_what_is_missing_is_said(tmp_path, workspace):
    options = ["--only", f"{TINY}-b1-greedy-n6", "--precision", "f32", "--rounds", "2", "--no-roofline", "--pause", "0"]
    options += ["--define", "same=ours", "--define", f"gone=flax,path={tmp_path}", "--workspace", str(workspace)]
    chosen = ["--program", "ours", "--program", "same", "--program", "gone", "--out", str(tmp_path / "out.json")]
    run = CliRunner().invoke(compare.main, [*options, *chosen])
    assert run.exit_code == 0, run.output
    (case,) = records.read(tmp_path / "out.json").values()
    assert set(case["results"]) == {"ours-f32", "same-f32"}
    assert case["results"]["same-f32"]["same_replies"] == "1/1"
    assert [len(result["rounds"]) for result in case["results"].values()] == [2, 2]
    assert "gone-f32" in case["left_out"]


@pytest.mark.slow
def test_a_process_that_ends_is_a_program_left_out(tmp_path):
    with Pool(tmp_path, timeout=60, pause=0) as pool:
        variant = Variant(Definition("broken", "ours", python="false"), "f32")
        assert pool.ready([variant], TINY, lambda text: None) == []
        assert "its process ended" in pool.refused["broken-f32", TINY]


def test_training_is_measured_on_the_same_examples_however_they_are_put_together(data_folder, monkeypatch):
    monkeypatch.setenv("BLENDERBOT_JAX_DATA", str(data_folder))
    given = training_speed.real_batches(4, 5)
    assert [*given] == ["ours", "pytorch", "pytorch, by length"]
    assert len({training_speed.tokens_of(batches) for batches in given.values()}) == 1
    for batches in given.values():
        labels = sorted(tuple(row[row >= 0]) for batch in batches for row in batch["labels"] if (row >= 0).any())
        assert len(labels) == 20
        assert labels == sorted(tuple(row[row >= 0]) for batch in given["pytorch"] for row in batch["labels"])
    widths = [batch["input_ids"].shape[1] for batch in given["pytorch, by length"]]
    assert widths == sorted(widths, reverse=True)
