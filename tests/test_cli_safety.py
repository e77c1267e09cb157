"""Filters and presentable text on the command line."""

import json

import pytest
from click.testing import CliRunner

from blenderbot_jax.chatbot import REFUSAL
from blenderbot_jax.cli import main
from tests.parlai_classifiers import write_classifier

FAST = ("--beams", "1", "--max-length", "12")


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("rock band\n")
    return str(path)


def run(*args, **options):
    return CliRunner().invoke(main, [*args], **options)


def test_reply_refuses_a_line_and_says_which_on_standard_error(words):
    found = run("reply", *FAST, "--filter-phrases", words, input="Hi!\nA rock band?\n")
    assert found.exit_code == 0, found.output
    first, second = found.stdout.splitlines()
    assert first
    assert second == REFUSAL
    assert found.stderr == "line 2: what you said was held back: it holds the phrase 'rock band' (words.txt)\n"


def test_chat_refuses_forgets_and_goes_on(words):
    found = run("chat", *FAST, "--filter-phrases", words, input="A rock band?\n/history\nHi!\n/quit\n")
    assert found.exit_code == 0, found.output
    assert f"bot: {REFUSAL}" in found.output
    assert "what you said was held back: it holds the phrase 'rock band' (words.txt)" in found.output
    assert "nothing was said yet" in found.output
    assert found.output.count("bot: ") == 2


def test_a_classifier_filters_too(tmp_path):
    write_classifier(tmp_path / "all", "xlm", threshold=1e-9, ref_class="__notok__")
    write_classifier(tmp_path / "none", "xlm", threshold=1 - 1e-9, ref_class="__notok__")
    every = run("reply", *FAST, "--filter-model", str(tmp_path / "all"), "Hi!")
    assert every.stdout.strip() == REFUSAL
    assert "it is __notok__ with probability" in every.stderr
    assert (
        run("reply", *FAST, "--filter-model", str(tmp_path / "none"), "Hi!").stdout == run("reply", *FAST, "Hi!").stdout
    )


def test_rows_say_what_was_blocked_and_a_folder_is_of_its_filters(words, tmp_path):
    rows, output = tmp_path / "rows.txt", str(tmp_path / "answers")
    rows.write_text("A rock band?\nHi!\n")
    found = run("generate", str(rows), "--output", output, *FAST, "--filter-phrases", words)
    assert found.exit_code == 0, found.output
    [part] = (tmp_path / "answers").glob("*.jsonl")
    first, second = map(json.loads, part.read_text().splitlines())
    assert first["blocked"][0]["filter"] == "words.txt"
    assert "blocked" not in second
    other = run("generate", str(rows), "--output", output, *FAST)
    assert other.exit_code != 0
    assert "filters" in other.output


def test_presentable_replies_begin_with_a_capital():
    plain, written = (run("reply", *FAST, *flags, "Hi!").stdout for flags in ((), ("--presentable",)))
    assert written.casefold().split() == plain.casefold().split() or written[0].isupper()
    assert written[0].isupper()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--filter-phrases", "nowhere.txt"), "nowhere.txt"),
        (("--filter-model", "."), "holds no checkpoint of ParlAI"),
    ],
)
def test_filters_that_are_not_there_are_told_in_a_line(flags, says):
    found = run("reply", *FAST, *flags, "Hi!")
    assert found.exit_code != 0
    assert says in found.output
    assert "Traceback" not in found.output
