"""The command `blenderbot-jax generate` as its users meet it: files in, a folder of parts out, interruptions."""

import json
import os
import re
import signal
from dataclasses import replace

import jax
import pytest

from blenderbot_jax.chatbot import Chatbot
from blenderbot_jax.cli.errors import as_script
from blenderbot_jax.cli.generate import generate
from blenderbot_jax.generation import Packing
from blenderbot_jax.offline import corpus, prepared
from tests.commands import Typed

FAST = ("--beams", 1, "--max-length", 12)
TEXTS = ("Hi!", "Do you like music?", "Yes.", "I am tired.", "No.", "I love dogs.")
TYPED = Typed(as_script(generate, generate.help), name="generate")
run, output, refusal = TYPED.run, TYPED.output, TYPED.refusal


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with some rows."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (tmp_path / "lines.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    return tmp_path


@pytest.fixture
def echo(monkeypatch):
    """Rows are answered by their own texts; the list holds who was asked, and the key."""
    asked = []

    def answer(bot, rows, *, key=None, first=0, on_progress=lambda count: None):
        asked.append((bot, key))
        for _ in rows:
            on_progress(1)
        return [{**row, "reply": row["text"]} for row in rows]

    monkeypatch.setattr(corpus, "answer_rows", answer)
    return asked


def replies(path):
    return [json.loads(line)["reply"] for line in path.read_text().splitlines()]


def test_shards_and_a_merge_give_what_the_bot_says(folder):
    bot = Chatbot.from_pretrained("demo").configured(num_beams=1, max_length=12)
    bot = prepared(replace(bot, packing=Packing(batch_size=2)))
    for shard in ("2/2", "1/2"):
        said = output("rows.jsonl", "--output", "out", "--shard", shard, "--part-size", 2, "--batch-size", 2, *FAST)
        assert re.search(rf"^out: (2 of 2|1 of 1) parts of shard {shard} are finished, \d of them now in ", said)
    said = output("out", "--merge", "all.jsonl")
    assert said == "all.jsonl: 6 rows, 0 of them with an error, from 3 parts\n"
    assert replies(folder / "all.jsonl") == bot.replies(TEXTS)


def test_the_summary_counts_errors_and_tells_the_first(folder, monkeypatch):
    (folder / "rows.jsonl").write_text('{"text": "Hi!"}\n{"text": ""}\n}\n')
    said = output("rows.jsonl", "--output", "out", *FAST)
    assert said.count("\n") == 1
    assert said.endswith("3 rows, 2 of them with an error (row 1: a turn must not be empty)\n")


def test_a_rerun_keeps_what_is_finished(folder, echo):
    arguments = ("rows.jsonl", "--output", "out", "--part-size", 2, *FAST)
    assert "3 of 3 parts are finished, 3 of them now" in output(*arguments)
    assert "3 of 3 parts are finished, 0 of them now" in output(*arguments)
    assert len(echo) == 3


def test_other_settings_are_refused_unless_overwritten(folder, echo):
    output("rows.jsonl", "--output", "out", *FAST)
    assert "decoding.max_length is 12 there and 13 here" in refusal("rows.jsonl", "--output", "out", *FAST[:3], 13)
    assert "1 of them now" in output("rows.jsonl", "--output", "out", *FAST[:3], 13, "--overwrite")


def test_options_reach_the_bot(folder, echo):
    output("rows.jsonl", "--output", "out", "--sample", "--temperature", 0.5, "--seed", 3, "--batch-size", 2)
    [(bot, key)] = echo
    config = bot.generation_config
    assert (config.do_sample, config.num_beams, config.temperature) == (True, 1, 0.5)
    assert bot.packing.batch_size == 2
    assert jax.random.key_data(key).tolist() == jax.random.key_data(jax.random.key(3)).tolist()
    about = json.loads((folder / "out" / "manifest.json").read_text())["about"]
    assert about["model"] == "demo"


def test_files_patterns_and_standard_input_are_read(folder, echo):
    output("rows.jsonl", "--output", "a", *FAST)
    output("*.jsonl", "--output", "a", *FAST)
    output("-", "--format", "jsonl", "--output", "a", *FAST, stdin=(folder / "rows.jsonl").read_text())
    assert len(echo) == 1
    output("lines.txt", "-", "--format", "text", "--output", "b", *FAST, stdin="more\n")
    assert replies(folder / "b" / "part-00001-of-00001.jsonl") == [*TEXTS, "more"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "Missing argument 'INPUT...'"),
        (("rows.jsonl",), "say where replies go"),
        (("absent.jsonl", "--output", "out"), "there is no file 'absent.jsonl'"),
        (("rows.jsonl", "lines.txt", "--output", "out"), "have one format"),
        (("rows.jsonl", "--output", "rows.jsonl"), "is a file"),
        (("rows.jsonl", "--output", "out", "--shard", "0/2"), "'0/2' is no shard"),
        (("rows.jsonl", "--output", "out", "--shard", "3/2"), "'3/2' is no shard"),
        (("rows.jsonl", "--output", "out", "--shard", "one"), "'one' is no shard"),
        (("rows.jsonl", "--output", "out", "--part-size", 0), "--part-size"),
        (("rows.jsonl", "--output", "out", "--format", "csv"), "'csv' is not one of"),
        (("rows.jsonl", "--output", "out", "--temperature", 2), "--temperature has no effect"),
        (("-", "--output", "out"), "add --format"),
        (("-", "--output", "out", "--format", "text", "--shard", "1/2"), "by one process only"),
        (("-", "-", "--output", "out", "--format", "text"), "once only"),
        (("out", "--merge", "all.jsonl"), "out has no manifest.json"),
        (("out", "--merge", "all.jsonl", "--output", "out"), "--merge joins one folder"),
        (("out", "in", "--merge", "all.jsonl"), "--merge joins one folder"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_refused_in_one_line(folder, arguments, says):
    assert says in refusal(*arguments)
    assert not (folder / "out").exists()


def test_a_merge_says_which_parts_are_missing(folder, echo):
    output("rows.jsonl", "--output", "out", "--part-size", 1, "--shard", "2/3", *FAST)
    assert "4 of the 6 parts of out are not finished" in refusal("out", "--merge", "all.jsonl")
    assert not (folder / "all.jsonl").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_after_the_batch_and_the_next_run_goes_on(folder, echo, monkeypatch, number, code):
    answer = corpus.answer_rows

    def interrupted(bot, rows, *, first, **options):
        if first == 2:
            os.kill(os.getpid(), number)
        return answer(bot, rows, first=first, **options)

    monkeypatch.setattr(corpus, "answer_rows", interrupted)
    before = signal.getsignal(number)
    arguments = ("rows.jsonl", "--output", "out", "--part-size", 2, *FAST)
    result = run(*arguments)
    assert result.exit_code == code
    assert "1 of 3 parts are finished, 1 of them now" in result.stdout
    assert result.stdout.endswith("stopped: run the same command again to go on\n")
    assert signal.getsignal(number) is before
    monkeypatch.setattr(corpus, "answer_rows", answer)
    assert "3 of 3 parts are finished, 2 of them now" in output(*arguments)


def test_a_second_signal_ends_at_once(folder, monkeypatch):
    def interrupted(*args, **options):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(corpus, "answer_rows", interrupted)
    result = run("rows.jsonl", "--output", "out", *FAST)
    assert (result.exit_code, result.stdout) == (130, "")
    assert [path.name for path in (folder / "out").iterdir()] == ["manifest.json"]


def test_without_a_terminal_lines_tell_how_far_things_are(folder, echo, monkeypatch):
    monkeypatch.setattr("blenderbot_jax.cli.generate._LOG_SECONDS", 0)
    result = run("lines.txt", "--output", "out", *FAST)
    lines = result.stderr.splitlines()
    assert len(lines) == len(TEXTS)
    assert re.fullmatch(r"out: 6 of 6 rows, \d+\.\d rows/s, 0:00:00 left", lines[-1])


def test_help_shows_examples_and_every_option_says_what_it_does():
    assert re.search(r"Examples:\n\s+blenderbot-jax generate ", output("--help"))
    for option in generate.params:
        assert option.param_type_name == "argument" or option.help
