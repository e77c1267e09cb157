"""The command `blenderbot-jax` as its users meet it: replies, conversations, wrong inputs, interruptions."""

import errno
import json
import os
import re
import select
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import blenderbot_jax
from blenderbot_jax.chatbot import Chatbot
from blenderbot_jax.cli import main
from blenderbot_jax.dialogue import Conversation, Turn
from blenderbot_jax.responses import Response
from tests.commands import Typed
from tests.talking import echoing, saying

FAST = ("--beams", "1", "--max-length", "12")
TYPED = Typed(main)
run, output, refusal = TYPED.run, TYPED.output, TYPED.refusal


@pytest.fixture
def echo(monkeypatch):
    """Bots that say again what they hear; the list holds the bots that were asked."""
    asked = []

    def respond(bot, conversation, *, key=None):
        asked.append((bot, key))
        return saying(conversation.turns[-1].text, conversation)

    monkeypatch.setattr(Chatbot, "responses", echoing(asked))
    monkeypatch.setattr(Chatbot, "respond", respond)
    return asked


# ---- reply -----------------------------------------------------------------------------------------------------------


def test_reply_prints_what_the_bot_says():
    bot = Chatbot.from_pretrained("demo").configured(num_beams=1, max_length=12)
    assert output("reply", *FAST, "Hello,", "how are you?") == bot.reply("Hello, how are you?") + "\n"


def test_replies_to_lines_are_in_order_and_the_same_from_file_and_pipe(tmp_path):
    bot = Chatbot.from_pretrained("demo").configured(num_beams=1, max_length=12)
    lines = ["Do you like music?", "", "Hi!", "   ", "I am tired."]
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n")
    wanted = "".join(f"{bot.reply(line) if line.strip() else ''}\n" for line in lines)
    assert output("reply", *FAST, "--batch-size", 1, "--file", tmp_path / "lines.txt") == wanted
    assert output("reply", *FAST, "--batch-size", 1, stdin="\n".join(lines)) == wanted
    assert output("reply", *FAST, "--batch-size", 1, "--file", "-", stdin="\r\n".join(lines)) == wanted


def test_sampling_repeats_with_its_seed():
    def draw(seed):
        return output("reply", "--sample", "--max-length", 12, "--seed", seed, "Hi!")

    assert draw(7) == draw(7)
    assert len({draw(seed) for seed in range(5)}) > 1


def test_lines_end_where_an_editor_ends_them(echo):
    text = "\ufeffone\u2028line\n\ntwo\x0clines\x85more"
    assert output("reply", stdin=text) == "one line\n\ntwo lines more\n"


def test_a_reply_is_one_line_whatever_the_model_writes(monkeypatch):
    monkeypatch.setattr(Chatbot, "responses", lambda bot, texts, **options: [saying("two\nlines") for _ in texts])
    assert output("reply", stdin="a\nb\n") == "two lines\ntwo lines\n"


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        ((), {}),
        (("--beams", 3), {"num_beams": 3}),
        (("--min-length", 4, "--max-length", 9), {"min_length": 4, "max_length": 9}),
        (("--length-penalty", 1.5), {"length_penalty": 1.5}),
        (("--no-repeat", 0), {"no_repeat_ngram_size": 0}),
        (("--no-echo", 2), {"encoder_no_repeat_ngram_size": 2}),
        (("--repetition-penalty", 1.2), {"repetition_penalty": 1.2}),
        (("--sample",), {"do_sample": True, "num_beams": 1}),
        (
            ("--sample", "--temperature", 0.7, "--top-k", 5, "--top-p", 0.9, "--min-p", 0.05),
            {"do_sample": True, "num_beams": 1, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.05},
        ),
    ],
)
def test_options_reach_the_generation_config(echo, arguments, changes):
    output("reply", *arguments, "Hi!")
    [bot] = echo
    assert bot.generation_config == bot.checkpoint.generation_config.replace(**changes)


def test_dtype_reaches_the_parameters(echo):
    output("reply", "--dtype", "bfloat16", "Hi!")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(echo[0].checkpoint.params)} == {"bfloat16"}


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nope",), "No such command 'nope'"),
        (("--nope",), "No such option"),
        (("reply", "--nope", "hi"), "blenderbot-jax reply --help"),
        (("reply", "--model", "no-such-model", "hi"), "'no-such-model' could not be had"),
        (("reply", "--model", "/no/such/folder", "hi"), "there is no folder"),
        (("reply", "--beams", 0, "hi"), "num_beams must be an integer of at least 1, not 0"),
        (("reply", "--beams", "many", "hi"), "'many' is not a valid integer"),
        (("reply", "--max-length", 999, "hi"), "max_length=999 is more than this model can decode"),
        (("reply", "--temperature", 0, "hi"), "temperature must be a number above 0"),
        (("reply", "--temperature", 0.5, "hi"), "--temperature has no effect"),
        (("reply", "--top-k", 5, "hi"), "--top-k has no effect"),
        (("reply", "--sample", "--top-p", 2, "hi"), "top_p must be a number between 0 and 1"),
        (("reply", "--length-penalty", "nan", "hi"), "length_penalty must be a number"),
        (("reply", "--sample", "--seed", 2**80, "hi"), "--seed"),
        (("reply", "--seed", -1, "hi"), "--seed"),
        (("reply", "--dtype", "int8", "hi"), "'int8' is not one of"),
        (("reply", "--batch-size", 0, "hi"), "--batch-size"),
        (("reply", "--file", "no-such-file"), "No such file"),
        (("reply", "--file", ".", "hi"), "directory"),
        (("reply", ""), "nothing to answer"),
        (("reply",), "nothing to answer"),
        (("chat", "--persona", " "), "a persona line must not be empty"),
        (("chat", "--beams", 0), "num_beams must be"),
        (("chat", "hi"), "unexpected extra argument"),
        (("warm-up", "--source-width", 129), "source_widths are at most the model's positions, 128"),
        (("warm-up", "--batch-size", 0), "--batch-size"),
        (("export", "demo"), "Missing argument 'FOLDER'"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_refused_in_one_line(arguments, says):
    assert says in refusal(*arguments)


def test_text_and_file_together_are_refused(tmp_path):
    (tmp_path / "lines.txt").write_text("hi\n")
    assert "not both" in refusal("reply", "--file", tmp_path / "lines.txt", "hi")


@pytest.mark.parametrize("source", ["file", "pipe"])
def test_binary_input_is_refused(tmp_path, source):
    (tmp_path / "data.bin").write_bytes(b"abc\n\xff\xfe\x00")
    given = {"stdin": b"abc\n\xff\xfe\x00"} if source == "pipe" else {}
    line = refusal("reply", *(() if given else ("--file", tmp_path / "data.bin")), **given)
    assert "not UTF-8 text" in line


@pytest.mark.parametrize("content", ["", "\n \n\n"])
def test_empty_input_is_refused(tmp_path, content):
    (tmp_path / "lines.txt").write_text(content)
    assert "nothing to answer" in refusal("reply", "--file", tmp_path / "lines.txt")
    assert "nothing to answer" in refusal("reply", stdin=content)


def test_a_device_out_of_memory_is_told_in_one_line(monkeypatch):
    def fail(bot, texts, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nand a long dump")

    monkeypatch.setattr(Chatbot, "responses", fail)
    assert "out of memory; --dtype bfloat16 takes less memory" in refusal("reply", "hi")


def test_interrupting_a_reply_ends_with_130_and_no_traceback(monkeypatch):
    def interrupt(bot, texts, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Chatbot, "responses", interrupt)
    result = run("reply", "hi")
    assert result.exit_code == 130
    assert result.output.strip() == ""


def test_a_reader_that_leaves_ends_the_command_in_silence(monkeypatch):
    def leave(bot, texts, **options):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(Chatbot, "responses", leave)
    result = run("reply", "hi")
    assert (result.exit_code, result.output) == (1, "")


# ---- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [(), ("reply",), ("chat",), ("warm-up",), ("export",)])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_shows_examples(command, flag):
    text = output(*command, flag)
    assert re.search(r"Examples:\n\s+blenderbot-jax ", text)
    assert not re.search(r"^  .*\.\.\.$", text, re.MULTILINE)


def test_the_command_alone_shows_its_help():
    assert output() == output("--help")


def test_version_is_the_packages():
    assert output("--version") == f"blenderbot-jax, version {blenderbot_jax.__version__}\n"


def test_every_decoding_option_says_what_it_does():
    for command in ("reply", "chat", "warm-up", "export"):
        for option in main.get_command(None, command).params:
            assert option.param_type_name == "argument" or option.help


# ---- chat ------------------------------------------------------------------------------------------------------------


def talk(*lines, arguments=()):
    return output("chat", *arguments, stdin="".join(f"{line}\n" for line in lines))


def test_a_chat_answers_every_line_and_says_how_long_it_took():
    said = talk("Hi!", arguments=FAST)
    assert "may take longer: it compiles" in said
    assert re.search(r"^you: Hi!\nbot: .+ \(\d+\.\d\d s\)$", said, re.MULTILINE)


@pytest.mark.parametrize("end", ["/quit", "/exit"])
def test_a_chat_ends_when_told(echo, end):
    assert "after" not in talk("before", end, "after")
    assert len(echo) == 1


def test_a_chat_ends_with_its_input_and_skips_empty_lines(echo):
    assert talk("one", "", "  ", "two").count("bot: ") == 2


def test_the_bot_hears_persona_and_history(monkeypatch, echo):
    heard = []
    respond = Chatbot.respond
    monkeypatch.setattr(Chatbot, "respond", lambda bot, chat, **k: heard.append(chat) or respond(bot, chat, **k))
    talk("hi", "/persona i ski.", "yo", "/reset", "la", "/persona clear", "na", arguments=("--persona", "i hike."))
    before = Conversation(persona=("i hike.",)).add("user", "hi")
    both = ("i hike.", "i ski.")
    assert heard == [
        before,
        Conversation(before.turns, both).add("bot", "hi").add("user", "yo"),
        Conversation(persona=both).add("user", "la"),
        Conversation().add("user", "la").add("bot", "la").add("user", "na"),
    ]


def test_commands_show_what_they_name(echo):
    said = talk("/persona", "/history", "/persona i ski.", "/persona", "hi", "/history", "/help", "/nope", "/reset")
    assert "no traits" in said
    assert "nothing was said yet" in said
    assert said.count("\ni ski.\n") == 2
    assert "user: hi\nbot: hi\n" in said
    assert said.count("/save FILE") == 2
    assert "there is no /nope" in said
    assert "forgotten" in said


def test_save_writes_the_conversation(echo, tmp_path):
    talk("héllo", f"/save {tmp_path}/new folder/talk.json", arguments=("--persona", "i hike."))
    text = (tmp_path / "new folder" / "talk.json").read_text(encoding="utf-8")
    assert "héllo" in text
    saved = json.loads(text)
    again = Conversation(tuple(Turn(**turn) for turn in saved["turns"]), tuple(saved["persona"]))
    assert again == Conversation(persona=("i hike.",)).add("user", "héllo").add("bot", "héllo")


def test_a_save_that_fails_does_not_end_the_chat(echo, tmp_path):
    (tmp_path / "file").write_text("")
    said = talk("/save", f"/save {tmp_path}", f"/save {tmp_path}/file/talk.json", "hi")
    assert said.count("not saved: ") == 3
    assert "bot: hi" in said


@pytest.mark.parametrize("text", ["[bold]", "[/]", "[/bold] [red", ":smile:", "back\\", "\\[x]", "</s>"])
def test_what_looks_like_markup_is_shown_as_it_was_typed(echo, monkeypatch, tmp_path, text):
    monkeypatch.chdir(tmp_path)
    said = talk(text, f"/persona {text}", "/history", f"/save {text}/\0")
    assert f"you: {text}\nbot: {text} (" in said
    assert f"user: {text}\nbot: {text}\n" in said
    assert f"/persona {text}\n{text}\n" in said


def test_long_lines_are_not_broken_in_a_pipe(echo):
    text = "word " * 60
    assert f"bot: {text.strip()} (" in talk(text)


def test_a_refused_turn_does_not_end_the_chat():
    said = talk("hi", "/history", arguments=("--persona", "i love hiking. " * 60))
    assert re.search(r"the persona takes \d+ tokens and the model reads \d+", said)
    assert "nothing was said yet" in said


def test_bytes_that_are_no_text_do_not_end_the_chat(echo):
    assert "bot: \ufffd\ufffd!" in output("chat", stdin=b"\xff\xfe!\n")


def test_interrupting_a_reply_forgets_the_turn_and_goes_on(monkeypatch, echo):
    respond = Chatbot.respond

    def once(bot, chat, **options):
        if chat.turns[-1].text == "slow":
            raise KeyboardInterrupt
        return respond(bot, chat, **options)

    monkeypatch.setattr(Chatbot, "respond", once)
    said = talk("slow", "fast", "/history")
    assert "your turn is forgotten" in said
    assert "user: slow" not in said
    assert "user: fast" in said


def test_notes_say_what_the_bot_could_not_read(monkeypatch):
    answer = Response("", 0.0, Conversation(), 3, 5, ())
    monkeypatch.setattr(Chatbot, "respond", lambda *args, **options: answer)
    said = talk("hi")
    assert "bot: (nothing) (" in said
    assert "3 older turns no longer fit, the first 5 tokens of your turn did not fit)" in said


def test_every_turn_draws_with_a_key_of_its_own(echo):
    talk("a", "b", arguments=("--sample", "--seed", "3"))
    keys = [jax.random.key_data(key).tolist() for _, key in echo]
    assert keys[0] != keys[1]
    talk("a", arguments=("--sample", "--seed", "3"))
    assert jax.random.key_data(echo[2][1]).tolist() == keys[0]


def test_lines_can_be_edited_in_a_terminal():
    pty = pytest.importorskip("pty")
    pytest.importorskip("readline")
    ours, theirs = pty.openpty()
    root = Path(blenderbot_jax.__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "blenderbot_jax", "chat"],
        cwd=root,
        env={**os.environ, "TERM": "xterm", "NO_COLOR": "", "BLENDERBOT_JAX_PROGRAM_CACHE": "off"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""

    def read_until(ending, seconds=60):
        nonlocal shown
        while ending not in shown and select.select([ours], [], [], seconds)[0]:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # how Linux says that the other side is closed
                return
            if not piece:
                return
            shown += piece

    read_until(b"you:")
    # Three steps left, a letter put in.
    os.write(ours, b"/persona i love hikng.\x1b[D\x1b[D\x1b[Di\n")
    read_until(b"\r\ni love hiking.\r\n\x1b[1myou:")
    os.write(ours, b"\x04")
    read_until(b"Traceback", 5)
    os.close(ours)
    assert process.wait(60) == 0, shown
    assert b"\r\ni love hiking.\r\n" in shown
    assert shown.count(b"you:") == 2
    assert b"Traceback" not in shown
