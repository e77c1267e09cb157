"""The command `blenderbot-jax data show`: what it prints of examples, and what it counts."""

import json
import re

import pytest
from click.testing import CliRunner

from blenderbot_jax.checkpoint import load as weights
from blenderbot_jax.cli.data import data
from blenderbot_jax.cli.errors import OneLineGroup
from blenderbot_jax.data import Batches, corpus_examples, read_dialogues
from blenderbot_jax.tokenizer import load_tokenizer

MAIN = OneLineGroup("blenderbot-jax", commands=[data])
TALK = [
    {"turns": [["A", "Hi!"], ["B", "Hello."], ["A", "Do you like\nmusic?"]], "personas": {"B": ["i love hiking."]}},
    {"turns": [["A", "Good morning."], ["B", "Morning."]]},
]


def run(*arguments):
    return CliRunner().invoke(MAIN, ["data", "show", *map(str, arguments)], prog_name="blenderbot-jax")


def output(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def refusal(*arguments):
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    line = result.stderr.splitlines()[-1]
    assert line.startswith("Error: ")
    return line


def counted(text):
    """The rows of the table."""
    rows = (line.split("│") for line in text.splitlines() if line.startswith("│"))
    return {label.strip(): value.strip() for _, label, value, _ in rows}


@pytest.fixture
def talk(tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in TALK))
    return path


def test_examples_are_shown_turn_by_turn_as_the_model_sees_them(talk):
    shown = output(talk, "--limit", 2)
    lines = [line.rstrip() for line in shown.splitlines()]
    start = lines.index(f"{talk}:1, turn 2 of 3, B")
    assert [re.sub(r"(context|reply), \d+ +", r"\1, n ", line) for line in lines[start : start + 9]] == [
        f"{talk}:1, turn 2 of 3, B",
        "  context, n your persona: i love hiking. <sep>",
        "                Hi!</s>",
        "  reply, n Hello.</s>",
        "",
        f"{talk}:1, turn 3 of 3, A",
        "  context, n Hi! <sep>",
        "                Hello.</s>",
        "  reply, n Do you like\\nmusic?</s>",
    ]
    assert f"{talk}:2" not in shown


def test_what_does_not_fit_is_named(talk):
    shown = output(talk, "--max-source", 6, "--max-target", 3, "--speaker", "A")
    assert "  dropped       A: Hi!\n" in shown
    assert re.search(r"reply, 3 .*\n +\(its last \d+ tokens do not fit\)", shown)
    assert "</s>" not in shown.partition("reply")[2].splitlines()[0]
    short = output(talk, "--max-source", 2, "--limit", 3, "--speaker", "A")
    assert re.search(r"\(its first \d+ tokens do not fit\)", short)


def test_the_table_counts_what_there_is_to_learn(talk):
    rows = counted(output(talk, "--limit", 0, "--batch-size", 2))
    tokenizer = load_tokenizer("demo")
    examples = list(corpus_examples(read_dialogues(talk), tokenizer, max_source=128, max_target=128))
    batches = Batches(examples, 2)
    tokens = [len(example.input_ids) for example in examples]
    assert rows["dialogues"] == "2"
    assert rows["examples"] == "3"
    assert rows["left out"] == "0 lines or dialogues"
    assert rows["contexts"] == f"{sum(tokens)} tokens, {sum(tokens) / 3:.1f} on average, {max(tokens)} at most"
    assert rows["contexts that lost turns or tokens"] == "0 (0.0%)"
    assert rows["batches of 2"] == f"{len(batches)} an epoch"
    assert rows["padding"] == f"{batches.padding:.1%} of places"
    assert rows["source x target widths"] == ", ".join(f"{S} x {T}" for S, T in batches.widths)


def test_no_weights_are_read(talk, monkeypatch):
    monkeypatch.setattr(weights, "load_params", lambda *_, **__: pytest.fail("weights were read"))
    assert output(talk, "--limit", 0)


def test_bad_lines_are_refused_or_left_out_and_counted(talk):
    talk.write_text(talk.read_text() + "{\n" * 7)
    assert "7 lines cannot be read: " in refusal(talk, "--limit", 0)
    result = run(talk, "--skip-bad", "--limit", 0)
    assert result.exit_code == 0
    assert counted(result.stdout)["left out"] == "7 lines or dialogues"
    assert len(result.stderr.splitlines()) == 6
    assert result.stderr.startswith(f"left out: {talk}:3: a line is one JSON object")
    assert result.stderr.endswith("left out: more of them, which the table counts\n")


def test_a_persona_too_long_is_refused_or_left_out(talk):
    assert re.search(
        r":1, turns\[1\]: the persona takes \d+ tokens and the model reads 5", refusal(talk, "--max-source", 5)
    )
    result = run(talk, "--max-source", 5, "--skip-bad")
    assert counted(result.stdout)["left out"] == "1 lines or dialogues"
    assert counted(result.stdout)["examples"] == "1"


def test_a_speaker_who_never_speaks_is_refused_with_those_who_do(talk):
    assert "nobody is called C or D: the speakers are A, B" in refusal(talk, "--speaker", "C", "--speaker", "D")


def test_files_without_examples_are_refused(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    assert "the files hold no dialogue" in refusal(empty)
    empty.write_text('{"turns": [["A", "Hi!"]]}\n')
    assert "1 dialogues give no example" in refusal(empty)
    assert "there is no file or folder" in refusal(tmp_path / "nowhere.jsonl")


def test_limits_past_the_models_positions_are_refused(talk):
    assert "--max-source 4096 is more than this model has positions for" in refusal(talk, "--max-source", 4096)
    assert "--max-target 4096 is more than this model has positions for" in refusal(talk, "--max-target", 4096)


def test_a_format_can_be_named(tmp_path):
    path = tmp_path / "talk.txt"
    path.write_text("text:Hi!\tlabels:Hello.\n")
    assert "reply, " in output(path, "--format", "parlai")
    assert "one JSON object" in refusal(path, "--format", "dialogues")
    assert "'csv' is not one of" in refusal(path, "--format", "csv")


def test_the_90m_tokenizer_reads_as_it_was_trained(talk, data_folder):
    published = data_folder / "tokenizers" / "blenderbot_small-90M"
    shown = output(talk, "--model", published, "--limit", 2)
    assert "your persona : i love hiking . <sep>\n" in shown
    assert "do you like \\n music ? __end__" in shown
