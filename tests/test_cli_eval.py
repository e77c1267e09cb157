"""The commands eval and self-chat as their users meet them."""

import json
import re
import sys

import jax
import pytest
from click.testing import CliRunner

from blenderbot_jax import Chatbot
from blenderbot_jax.cli.errors import as_script
from blenderbot_jax.cli.evaluate import evaluate_files
from blenderbot_jax.cli.self_chat import self_chat_command
from blenderbot_jax.data import corpus_examples, read_dialogues
from blenderbot_jax.evaluation.report import evaluate
from blenderbot_jax.evaluation.self_chat import OPENINGS, self_chat

FAST = ("--beams", "1", "--max-length", "10")
COMMANDS = {"eval": evaluate_files, "self-chat": self_chat_command}


def run(name, *arguments):
    command = as_script(COMMANDS[name], None)
    return CliRunner().invoke(command, [str(one) for one in arguments], prog_name=f"blenderbot-jax {name}")


def output(name, *arguments):
    result = run(name, *arguments)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def refusal(name, *arguments):
    result = run(name, *arguments)
    assert result.exit_code == 2, result.output
    [line] = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dialogues")
    (folder / "talk.jsonl").write_text(
        '{"turns": [{"speaker": "A", "text": "Hi!"}, {"speaker": "B", "text": "Hello there."},'
        ' {"speaker": "A", "text": "Do you like music?"}], "personas": {"B": ["i love hiking."]}}\n'
    )
    (folder / "pairs.tsv").write_text("Good morning!\tGood morning to you.\nBye.\tSee you!\n")
    return folder / "talk.jsonl", folder / "pairs.tsv"


@pytest.fixture(scope="module")
def bot():
    return Chatbot.from_pretrained("demo").configured(num_beams=1, max_length=10)


def examples(bot, path, **options):
    limits = {"max_source": 128, "max_target": 128}
    return tuple(corpus_examples(read_dialogues(path), bot.checkpoint.tokenizer, **limits, **options))


# ---- eval ------------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_eval_prints_and_writes_what_evaluate_finds(files, bot, tmp_path):
    report, replies = tmp_path / "out" / "report.json", tmp_path / "replies.jsonl"
    printed = output("eval", *files, *FAST, "--output", report, "--replies", replies)
    wanted = evaluate(bot, {str(path): examples(bot, path) for path in files})
    written = json.loads(report.read_text())
    assert {name: written[name] for name in ("model", "dtype", "limit")} == {
        "model": "demo",
        "dtype": "float32",
        "limit": None,
    }
    for found, scores in [(written["in_all"], wanted.in_all)] + [
        (written["by_corpus"][name], scores) for name, scores in wanted.by_corpus.items()
    ]:
        assert found == pytest.approx(scores.to_dict(), rel=1e-4)
    answers = [json.loads(line) for line in replies.read_text().splitlines()]
    assert [one["reply"] for one in answers] == [one.reply for one in wanted.answers]
    assert answers[0]["reference"] == "Hello there."
    assert re.search(r"examples\s+2\s+2\s+4\s", printed)
    assert re.search(rf"perplexity .*\s{re.escape(f'{wanted.in_all.likelihood.perplexity:.4g}')}\s", printed)


def test_eval_without_replies_gives_likelihood_alone(files, monkeypatch):
    monkeypatch.setattr(Chatbot, "prepared", lambda *_: pytest.fail("weights were packed for decoding"))
    printed = output("eval", files[0], "--no-generate")
    assert "perplexity" in printed
    assert "f1" not in printed
    assert "in all" not in printed  # of one file


def test_eval_takes_the_first_examples_of_each_file(files, tmp_path):
    output("eval", *files, "--no-generate", "--limit", 1, "--output", tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())
    assert [part["examples"] for part in written["by_corpus"].values()] == [1, 1]
    assert written["limit"] == 1


def test_eval_takes_speakers_and_leaves_personas_out(files, bot, tmp_path):
    output("eval", files[0], "--no-generate", "--speaker", "B", "--no-persona", "--output", tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())["in_all"]
    wanted = evaluate(bot, examples(bot, files[0], speakers=["B"], persona=False), metrics=()).in_all.likelihood
    assert written["examples"] == 1
    assert written["loss"] == pytest.approx(wanted.loss, rel=1e-4)


def test_eval_draws_by_its_seed(files, tmp_path):
    def drawn(seed):
        output("eval", files[1], "--sample", "--max-length", 10, "--metrics", "f1", "--seed", seed,
               "--replies", tmp_path / "replies.jsonl", "--output", tmp_path / "report.json")  # fmt: skip
        assert json.loads((tmp_path / "report.json").read_text())["seed"] == seed
        return (tmp_path / "replies.jsonl").read_text()

    assert drawn(3) == drawn(3)
    assert len({drawn(seed) for seed in (3, 4, 5)}) > 1


def test_eval_leaves_bad_lines_out_where_it_is_told(files, tmp_path):
    path = tmp_path / "damaged.jsonl"
    path.write_text(files[0].read_text() + "{}\n")
    assert "damaged.jsonl:2" in refusal("eval", path, "--no-generate")
    assert "examples" in output("eval", path, "--no-generate", "--skip-bad")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "Missing argument 'FILES...'"),
        (("no-such.jsonl",), "no file or folder 'no-such.jsonl'"),
        (("{file}", "--metrics", "f1,nope"), "no metric 'nope': take some of f1"),
        (("{file}", "--metrics", ","), "--metrics names at least one"),
        (("{file}", "--no-generate", "--metrics", "f1"), "--metrics is about the model's own replies"),
        (("{file}", "--no-generate", "--replies", "x.jsonl"), "--replies is about the model's own replies"),
        (("{file}", "--speaker", "nobody"), "no turn to measure"),
        (("{file}", "--format", "xml"), "'xml' is not one of"),
        (("{file}", "--limit", 0), "--limit"),
        (("{file}", "--model", "/no/such/folder"), "there is no folder"),
        (("{file}", "--temperature", 0.5), "--temperature has no effect"),
    ],
)
def test_eval_refuses_in_one_line(files, arguments, says):
    assert says in refusal("eval", *(files[0] if one == "{file}" else one for one in arguments))


def test_eval_names_the_extra_of_sacrebleu(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    assert "pip install 'blenderbot-jax[eval]'" in refusal("eval", files[0], "--metrics", "sacrebleu")


def test_files_that_cannot_be_written_are_told_before_a_model_is_loaded(files, tmp_path):
    (tmp_path / "file").write_text("")
    for name, given in (("eval", (files[0], "--no-generate")), ("self-chat", ())):
        line = refusal(name, *given, "--model", "/no/such/folder", "--output", tmp_path / "file" / "out")
        assert str(tmp_path / "file") in line
        assert "/no/such/folder" not in line


# ---- self-chat -------------------------------------------------------------------------------------------------------


def test_self_chat_writes_what_the_models_say(bot, tmp_path):
    openings, path = tmp_path / "openings.txt", tmp_path / "out" / "talk.jsonl"
    openings.write_text("Hi!\n\nDo you like music?\n")
    printed = output("self-chat", *FAST, "--openings", openings, "--turns", 3, "--output", path)
    wanted = self_chat(bot, openings=["Hi!", "Do you like music?"], turns=3)
    assert [one.turns for one in read_dialogues(path)] == [one.turns for one in wanted]
    assert re.search(r"\n +turns +2 +\n", printed)
    assert f"2 dialogues in {path}" in " ".join(printed.split())


@pytest.mark.long
def test_self_chat_draws_dialogues_by_a_seed(bot, tmp_path):
    path = tmp_path / "talk.jsonl"

    def drawn(seed):
        output("self-chat", "--sample", "--max-length", 10, "--dialogues", 9, "--turns", 2, "--seed", seed,
               "--batch-size", 4, "--output", path)  # fmt: skip
        return [one.turns for one in read_dialogues(path)]

    found = drawn(3)
    assert [turns[0][1] for turns in found] == [*OPENINGS, OPENINGS[0]]
    assert found == drawn(3) != drawn(4)
    drawing = bot.configured(do_sample=True)
    assert found[0] == self_chat(drawing, openings=OPENINGS[:1], turns=2, key=jax.random.key(3))[0].turns


def test_self_chat_gives_personas_and_a_partner_their_turns(tmp_path):
    personas, path = tmp_path / "personas.txt", tmp_path / "talk.jsonl"
    personas.write_text("i love hiking.\ti have a dog.\ni am a cook.\ni sing.\n")
    output("self-chat", *FAST, "--partner", "demo", "--dialogues", 2, "--turns", 2, "--personas", personas,
           "--output", path)  # fmt: skip
    assert [one.personas for one in read_dialogues(path)] == [
        {"A": ("i love hiking.", "i have a dog."), "B": ("i am a cook.",)},
        {"A": ("i sing.",), "B": ("i love hiking.", "i have a dog.")},
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "Missing option '--output'"),
        (("--output", "x", "--dialogues", 9), "would hold the same ones twice"),
        (("--output", "x", "--turns", 1), "--turns"),
        (("--output", "x", "--openings", "no-such-file"), "No such file"),
        (("--output", "x", "--openings", "{empty}"), "the file of --openings is empty"),
        (("--output", "x", "--openings", "{bytes}"), "--openings is not UTF-8 text"),
        (("--output", "x", "--personas", "{empty}"), "the file of --personas is empty"),
        (("--output", "x", "--partner", "/no/such/folder"), "there is no folder"),
    ],
)
def test_self_chat_refuses_in_one_line(tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    named = {"{empty}": "empty.txt", "{bytes}": "bytes.txt"}
    assert says in refusal("self-chat", *(named.get(str(one), one) for one in arguments))
    assert not (tmp_path / "x").exists()


# ---- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_examples(name):
    text = output(name, "--help")
    assert re.search(rf"Examples:\n\s+blenderbot-jax {name} ", text)
