"""Compiled programs: where the command keeps them, ahead of time or while its user types, and what nobody waits for."""

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

import blenderbot_jax
from blenderbot_jax import native
from blenderbot_jax.chatbot import Chatbot
from blenderbot_jax.cli import main, programs
from blenderbot_jax.cli.programs import keep_programs, program_cache
from blenderbot_jax.cli.warming import Warming
from blenderbot_jax.dialogue import Conversation
from tests.compiling import compiled_programs

FOLDER = "jax_compilation_cache_dir"


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A JAX that keeps nothing yet, what it was told, and a cache folder of the user's own."""
    told = {FOLDER: None}
    config = SimpleNamespace(values=told, update=told.__setitem__)
    monkeypatch.setattr(programs, "jax", SimpleNamespace(config=config, __version__="9.8.7"))
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return told


def test_programs_are_kept_in_the_users_cache_folder_by_version_and_machine(fresh, tmp_path):
    kept = keep_programs(None).folder
    assert kept.parent == tmp_path / "cache" / "blenderbot-jax" / "programs"
    assert kept.name.startswith("jax-9.8.7-")
    assert kept.stat().st_mode & 0o077 == 0
    assert fresh == {
        FOLDER: str(kept),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }


@pytest.mark.parametrize("named", ["", "not/absolute"])
def test_without_a_cache_folder_of_their_own_users_get_the_platforms(fresh, monkeypatch, tmp_path, named):
    monkeypatch.setenv("XDG_CACHE_HOME", named)
    monkeypatch.setenv("HOME", str(tmp_path))
    for system, folder in (("linux", ".cache"), ("darwin", "Library/Caches")):
        monkeypatch.setattr(sys, "platform", system)
        assert program_cache().folder.is_relative_to(tmp_path / folder / "blenderbot-jax")


def test_a_folder_can_be_named_and_the_cache_be_off(fresh, tmp_path):
    assert keep_programs("off").folder is None
    assert fresh == {FOLDER: None}
    assert keep_programs(str(tmp_path / "mine")).folder.parent == tmp_path / "mine"


def test_a_folder_that_jax_has_already_stays(fresh, tmp_path):
    fresh[FOLDER] = str(tmp_path)
    assert keep_programs(str(tmp_path / "mine")).folder == tmp_path
    assert fresh == {FOLDER: str(tmp_path)}


def test_a_folder_that_cannot_be_used_stops_nothing(fresh, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    keep_programs(str(tmp_path / "file"))
    assert "Compiled programs are not kept: " in capsys.readouterr().err
    # Nobody named this one, so nobody is told; `info` says why.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert keep_programs(None).reason
    assert capsys.readouterr().err == ""
    assert fresh == {FOLDER: None}


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_programs_that_others_may_replace_are_not_run(fresh, tmp_path):
    folder = program_cache(str(tmp_path)).folder
    folder.chmod(0o777)
    found = program_cache(str(tmp_path))
    assert found.folder is None
    assert f"other users may write to {folder}: chmod go-w" in str(found)


def test_an_entry_that_cannot_be_read_is_made_anew_in_silence(fresh, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *args, **options: shown.append(str(message)))
    folder = keep_programs(None).folder
    (folder / "jit_decode-1-cache").write_bytes(b"broken")
    show = warnings.showwarning
    show(UserWarning("Error writing persistent compilation cache entry for 'jit_decode'"), UserWarning, "", 1)
    assert (folder / "jit_decode-1-cache").exists()
    show(UserWarning("Error reading persistent compilation cache entry for 'jit_decode'"), UserWarning, "", 1)
    assert not (folder / "jit_decode-1-cache").exists()
    assert shown == []
    show(UserWarning("something else"), UserWarning, "", 1)
    assert shown == ["something else"]


def test_info_says_where_programs_are_how_many_and_how_to_be_rid_of_them(monkeypatch, tmp_path):
    (tmp_path / "jit_decode-1-cache").write_bytes(b"12345")
    monkeypatch.setattr(programs, "jax_folder", lambda: str(tmp_path))
    shown = CliRunner().invoke(main, ["info", "demo"]).stdout
    assert f"compiled programs: {tmp_path} (1 files, 5 bytes; delete the folder to be rid of them)\n" in shown


@pytest.mark.parametrize(("there", "said"), [(True, "yes"), (False, "no, they need x86-64 Linux, AVX-512 VNNI")])
def test_info_says_whether_native_kernels_decode(monkeypatch, there, said):
    monkeypatch.setattr(native, "available", lambda: there)
    assert f"native CPU kernels: {said}" in CliRunner().invoke(main, ["info", "demo"]).stdout


@pytest.mark.slow
def test_the_second_start_compiles_nothing_and_a_broken_cache_is_healed(tmp_path):
    root = Path(blenderbot_jax.__file__).parents[1]
    arguments = ["--beams", "1", "--max-length", "12", "--program-cache", str(tmp_path), "Hi!"]

    def start() -> str:
        command = [sys.executable, "-m", "blenderbot_jax", "reply", *arguments]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    first = start()
    [entry] = tmp_path.rglob("jit_decode-*-cache")
    written = entry.stat().st_mtime_ns
    assert start() == first
    assert entry.stat().st_mtime_ns == written
    whole = entry.read_bytes()
    entry.write_bytes(whole[:1000])
    assert start() == first
    assert entry.stat().st_size > 1000


# ---- warm-up ---------------------------------------------------------------------------------------------------------


def test_warm_up_keeps_programs_for_the_sizes_and_options_given(monkeypatch, tmp_path):
    asked = []

    def compile_nothing(model, params, config, *, batch_sizes, source_widths, draft, on_progress):
        del model, params, draft
        asked.append((config.num_beams, batch_sizes, source_widths))
        on_progress(1, 1)
        return tuple((size, 16) for size in batch_sizes)

    monkeypatch.setattr("blenderbot_jax.chatbot.warm_up", compile_nothing)
    monkeypatch.setattr("blenderbot_jax.cli.warm_up.jax_folder", lambda: str(tmp_path))
    options = ["--beams", "2", "--batch-size", "1", "--batch-size", "8", "--source-width", "9"]
    result = CliRunner().invoke(main, ["warm-up", *options])
    assert result.stdout == f"demo: programs for 1 x 16 tokens, 8 x 16 tokens are kept in {tmp_path}\n", result.stderr
    assert CliRunner().invoke(main, ["warm-up"]).exit_code == 0
    assert asked == [(2, (1,), (9,)), (2, (8,), (9,)), (3, (1,), None)]


@pytest.mark.slow
def test_after_warming_up_replies_compile_nothing(tmp_path):
    root = Path(blenderbot_jax.__file__).parents[1]
    options = ["--beams", "1", "--max-length", "12", "--program-cache", str(tmp_path)]

    def programs_after(*command: str) -> set[str]:
        subprocess.run([sys.executable, "-m", "blenderbot_jax", *command, *options], cwd=root, check=True)
        return {path.name for path in tmp_path.rglob("jit_decode-*-cache")}

    kept = programs_after("warm-up", "--batch-size", "1", "--batch-size", "2", "--source-width", "16")
    assert len(kept) == 2
    assert programs_after("reply", "Hi!") == kept
    (tmp_path / "lines").write_text("Hi!\nHello!\n")
    assert programs_after("reply", "--file", str(tmp_path / "lines")) == kept


def test_warming_up_without_a_place_to_keep_programs_is_refused(monkeypatch):
    monkeypatch.setattr("blenderbot_jax.cli.warm_up.jax_folder", lambda: None)
    result = CliRunner().invoke(main, ["warm-up", "--program-cache", "off"])
    assert result.exit_code == 2
    assert "name a --program-cache" in result.stderr


# ---- while somebody types --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bot() -> Chatbot:
    return Chatbot.from_pretrained("demo")


def test_a_chat_compiles_the_widths_that_its_prompts_can_have(bot, monkeypatch):
    asked, done = [], threading.Event()

    def compile_nothing(model, params, config, *, source_widths, draft, on_progress):
        del model, params, draft, on_progress
        asked.append((config, source_widths))
        done.set()

    monkeypatch.setattr("blenderbot_jax.chatbot.warm_up", compile_nothing)
    for persona, widths in (((), [16, 32, 64, 128]), (("i love hiking.",) * 4, [64, 128])):
        done.clear()
        with Warming(bot, Conversation(persona=persona)) as running:
            assert done.wait(10)
            running.join()  # a chat that ended sooner would take the whole process with it
        assert asked.pop() == (bot.generation_config, widths)


def test_what_goes_wrong_in_the_background_is_not_shown(bot, capfd):
    with Warming(bot, Conversation(persona=("i love hiking. " * 60,))) as running:
        running.join()
    assert capfd.readouterr() == ("", "")


def test_a_chat_that_ends_waits_for_no_compilation(bot, monkeypatch):
    left, compiling, may_end = [], threading.Event(), threading.Event()
    reported = []

    def compile_long(model, params, config, *, source_widths, draft, on_progress):
        del model, params, config, source_widths, draft
        compiling.set()
        may_end.wait(10)
        try:
            on_progress(1, 4)
        except InterruptedError as error:
            reported.append(str(error))
            raise

    monkeypatch.setattr("blenderbot_jax.chatbot.warm_up", compile_long)
    monkeypatch.setattr(os, "_exit", lambda code: (left.append(code), may_end.set()))
    with Warming(bot, Conversation()):
        assert compiling.wait(10)
    assert left == [0]
    assert reported == ["the chat has ended with 1 of 4 programs compiled"]


def test_an_error_in_a_chat_is_not_hidden_by_its_end(bot, monkeypatch):
    monkeypatch.setattr("blenderbot_jax.chatbot.warm_up", lambda *args, **options: None)
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail("the error would be lost"))
    with pytest.raises(RuntimeError, match="lost"), Warming(bot, Conversation()):
        raise RuntimeError("lost")


def test_a_reply_waits_for_its_program_in_the_making_and_makes_no_second_one(bot):
    # Rules of which no other test makes a program.
    config = bot.generation_config.replace(num_beams=1, max_length=12, min_length=3, no_repeat_ngram_size=9)
    bot = Chatbot(bot.checkpoint, config)
    persona = ("i love hiking.",) * 9
    with compiled_programs("decode") as compiled, Warming(bot, Conversation(persona=persona)) as running:
        bot.respond(Conversation(persona=persona).add("user", "Hi"))
        running.join()
    assert len(compiled) == 1
