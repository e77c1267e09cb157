"""Replies to corpora: reading rows, answering blocks of them, and folders of parts that survive what may happen."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import blenderbot_jax
from blenderbot_jax.chatbot import Chatbot
from blenderbot_jax.generation import Packing
from blenderbot_jax.offline import (
    RayReplies,
    answer_rows,
    corpus,
    fingerprint,
    generate_corpus,
    manifest,
    merge,
    prepared,
    survey,
)
from blenderbot_jax.offline.rows import dump
from tests.corpora import ROWS, read, write

ROOT = Path(blenderbot_jax.__file__).parents[1]
TEXTS = ("Hi!", "Do you like music?", "Yes.", "I am tired.", "What is your name?", "No.", "I love dogs.")
ANSWER = {"reply", "score", "dropped_turns", "dropped_tokens"}


@pytest.fixture(scope="module")
def loaded():
    found = Chatbot.from_pretrained("demo").configured(num_beams=1, max_length=12)
    return replace(found, packing=Packing(batch_size=4))  # blocks of 3, 4, 7, 8 rows have batches of one shape


@pytest.fixture(scope="module")
def bot(loaded):
    return prepared(loaded)


@pytest.fixture(scope="module")
def sampling_bot(bot):
    return bot.configured(do_sample=True, temperature=2.0)


@pytest.fixture
def echo(monkeypatch):
    """Blocks are answered by their own texts, at once."""
    monkeypatch.setattr(corpus, "answer_rows", echoed)


def echoed(bot, rows, *, key=None, first=0, on_progress=lambda count: None):
    del bot, key, first
    for _ in rows:
        on_progress(1)
    return [{**row, "reply": row.get("text")} for row in rows]


def contents(folder):
    """What stands in a folder: the parts, their stamps, the manifest."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- a block ---------------------------------------------------------------------------------------------------------


def test_rows_keep_their_fields_and_get_the_bots_replies_in_order(bot):
    rows = [{"id": number, "text": text, "tags": ["é", None]} for number, text in enumerate(TEXTS)]
    counts = []
    answers = answer_rows(bot, rows, on_progress=counts.append)
    assert [{name: row[name] for name in ("id", "text", "tags")} for row in answers] == rows
    assert all(row.keys() - rows[0].keys() == ANSWER for row in answers)
    for row, response in zip(answers, bot.responses(TEXTS), strict=True):
        assert (row["reply"], row["dropped_turns"]) == (response.text, 0)
        assert row["score"] == pytest.approx(response.score, rel=1e-4)
    assert sum(counts) == len(rows)


def test_several_replies_are_alternatives_and_what_does_not_fit_is_counted(bot):
    long = {"turns": ["One more thing. " * 20, "What?", "dogs " * 200]}
    [row] = answer_rows(bot.configured(num_beams=2, num_return_sequences=2), [long])
    assert [set(found) for found in row["alternatives"]] == [{"text", "score"}] * 2
    assert row["alternatives"][0] == {"text": row["reply"], "score": row["score"]}
    assert row["dropped_turns"] == 2
    assert row["dropped_tokens"] > 0


def test_rows_that_cannot_be_answered_say_why_and_stop_nothing(bot):
    rows = [
        {"text": ""},
        {"text": "Hi!", "persona": ["i am very long."] * 50},
        {"text": "Hi!"},
        {"text": "Hi!", "reply": "Hello."},
        {"line": "}", "error": "not JSON"},
        {"text": "\ud800"},
        {"text": "Yes."},
        {"text": "No."},
    ]
    counts = []
    answers = answer_rows(bot, rows, on_progress=counts.append)
    said = ["must not be empty", "the persona takes", None, "has reply already", "not JSON", "surrogate", None, None]
    for row, answer, reason in zip(rows, answers, said, strict=True):
        assert row.items() <= answer.items()
        assert ("error" in answer) == (reason is not None)
        assert reason is None or reason in answer["error"]
    assert answers[4] == rows[4]
    replies = [answer["reply"] for answer in (answers[2], *answers[6:])]
    assert replies == bot.replies(["Hi!", "Yes.", "No."])
    assert sum(counts) == len(rows)


def test_a_row_draws_by_its_number_whatever_stands_beside_it(sampling_bot):
    key, rows = jax.random.key(7), [{"text": "Hi!"}] * 7
    together = answer_rows(sampling_bot, rows, key=key, first=10)
    assert len({row["reply"] for row in together}) > 1
    apart = answer_rows(sampling_bot, {15: rows[0], 11: rows[0], 16: rows[0]}, key=key)
    assert [row["reply"] for row in apart] == [together[place]["reply"] for place in (5, 1, 6)]
    with pytest.raises(ValueError, match="pass key"):
        answer_rows(sampling_bot, rows)


# ---- folders ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(rows=ROWS, size=st.integers(1, 13), shards=st.integers(1, 4), data=st.data())
def test_merged_parts_are_the_rows_in_order_however_they_were_divided(tmp_path_factory, bot, rows, size, shards, data):
    folder = tmp_path_factory.mktemp("merged")
    source, output = write(folder, rows), folder / "output"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "answer_rows", echoed)
        for index in data.draw(st.permutations(range(1, shards + 1))):
            generate_corpus(bot, source, output, part_size=size, shard=(index, shards), mark="m")
    report = merge(output, folder / "merged.jsonl")
    assert report.rows == len(rows)
    assert (folder / "merged.jsonl").read_bytes() == b"".join(dump(row) for row in echoed(None, rows))
    assert [part.stat().st_size > 0 for part in sorted(output.glob("part-*.jsonl"))] == [True] * -(-len(rows) // size)


def test_shards_make_the_parts_that_a_single_process_makes(bot, tmp_path):
    source = write(tmp_path, [{"text": TEXTS[number % 7]} for number in range(15)])
    report = generate_corpus(bot, source, tmp_path / "one", part_size=4, mark="m")
    assert (report.parts, report.kept, report.made, report.rows, report.errors) == (4, 0, 4, 15, 0)
    assert report.finished
    for index in (3, 1, 2):
        generate_corpus(bot, source, tmp_path / "three", part_size=4, shard=(index, 3), mark="m")
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    names = [f"part-{number:05}-of-00004.jsonl" for number in range(1, 5)]
    assert sorted(path.name for path in (tmp_path / "one").glob("*.jsonl")) == names
    assert [len(read(tmp_path / "one" / name)) for name in names] == [4, 4, 4, 3]


def test_what_is_drawn_depends_on_the_seed_alone(sampling_bot, tmp_path):
    source = write(tmp_path, [{"text": "Hi!"} for _ in range(12)])

    def drawn(name, seed, part_size, shards):
        for index in range(1, shards + 1):
            options = {"part_size": part_size, "shard": (index, shards), "key": jax.random.key(seed)}
            generate_corpus(sampling_bot, source, tmp_path / name, mark="m", **options)
        merge(tmp_path / name, tmp_path / f"{name}.jsonl")
        return [row["reply"] for row in read(tmp_path / f"{name}.jsonl")]

    first = drawn("a", 7, 12, 1)
    assert len(set(first)) > 1
    assert drawn("b", 7, 4, 2) == first
    assert drawn("c", 7, 3, 3) == first
    assert drawn("d", 8, 12, 1) != first


def test_what_is_finished_is_not_made_again(bot, tmp_path, monkeypatch, echo):
    source, output = write(tmp_path, [{"text": text} for text in TEXTS]), tmp_path / "output"
    generate_corpus(bot, source, output, part_size=2, shard=(2, 2), mark="m")
    before = contents(output)
    report = generate_corpus(bot, source, output, part_size=2, mark="m")
    assert (report.kept, report.made, report.rows) == (2, 2, 7)
    assert before.items() <= contents(output).items()
    monkeypatch.setattr(corpus, "answer_rows", None)
    assert generate_corpus(bot, source, output, part_size=2, mark="m").kept == 4


def test_folders_of_other_settings_are_refused_by_name(bot, tmp_path, echo):
    source, output = write(tmp_path, [{"text": "Hi!"}]), tmp_path / "output"
    generate_corpus(bot, source, output, mark="m")
    before = contents(output)
    drawing, key = bot.configured(do_sample=True), jax.random.key(3)
    changes = {
        "model": (bot, source, {"mark": "n"}),
        "decoding.num_beams": (bot.configured(num_beams=3), source, {"mark": "m"}),
        "key": (drawing, source, {"mark": "m", "key": key}),
        "part_size": (bot, source, {"mark": "m", "part_size": 3}),
        "input.digest": (bot, write(tmp_path, [{"text": "Ho!"}], "other.jsonl"), {"mark": "m"}),
        "input.format": (bot, source, {"mark": "m", "format": "text"}),
    }
    for name, (other, rows, options) in changes.items():
        with pytest.raises(ValueError, match=rf"other settings: .*{re.escape(name)} is .* there and .* here"):
            generate_corpus(other, rows, output, **options)
    assert contents(output) == before


def test_overwriting_makes_anew_what_has_other_settings_and_removes_parts_of_other_numbers(bot, tmp_path, echo):
    source, output = write(tmp_path, [{"text": text} for text in TEXTS]), tmp_path / "output"
    generate_corpus(bot, source, output, part_size=2, mark="m")
    (output / "notes.txt").write_text("mine")
    report = generate_corpus(bot, source, output, part_size=3, mark="n", overwrite=True)
    assert (report.kept, report.made) == (0, 3)
    assert len(list(output.glob("part-*"))) == 6
    assert (output / "notes.txt").exists()
    assert generate_corpus(bot, source, output, part_size=3, mark="n", overwrite=True).kept == 3


def test_parts_that_are_not_as_written_are_made_again_and_not_merged(bot, tmp_path, echo):
    source, output = write(tmp_path, [{"text": text} for text in TEXTS]), tmp_path / "output"
    generate_corpus(bot, source, output, part_size=1, mark="m")
    before = contents(output)
    parts = [output / f"part-0000{number}-of-00007.jsonl" for number in range(1, 8)]
    parts[0].write_bytes(parts[0].read_bytes()[:-5])
    parts[1].write_bytes(parts[2].read_bytes())
    parts[3].unlink()
    parts[4].with_suffix(".json").unlink()
    parts[5].with_suffix(".json").write_text("[]")
    parts[6].with_suffix(".json").write_text('{"settings": "')
    with pytest.raises(ValueError, match=r"6 of the 7 parts .*: 1-2, 4-7\. Run"):
        merge(output, tmp_path / "merged.jsonl")
    assert not (tmp_path / "merged.jsonl").exists()
    assert generate_corpus(bot, source, output, part_size=1, mark="m").made == 6
    assert contents(output) == before


def test_what_was_never_generated_is_not_merged(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no manifest\.json"):
        merge(tmp_path, tmp_path / "merged.jsonl")
    (tmp_path / "manifest.json").write_text('{"settings": {}}')
    with pytest.raises(ValueError, match="not one that was written here"):
        merge(tmp_path, tmp_path / "merged.jsonl")


def test_a_foreign_manifest_is_left_alone_unless_overwritten(bot, tmp_path, echo):
    source, output = write(tmp_path, [{"text": "Hi!"}]), tmp_path / "output"
    output.mkdir()
    (output / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="not one that was written here"):
        generate_corpus(bot, source, output, mark="m")
    assert (output / "manifest.json").read_text() == "{}"
    assert generate_corpus(bot, source, output, mark="m", overwrite=True).made == 1


def test_files_that_change_under_a_run_are_noticed(bot, tmp_path, echo):
    source = write(tmp_path, [{"text": text} for text in TEXTS])
    found = survey(source, part_size=2)
    write(tmp_path, [{"text": text.upper()} for text in TEXTS])
    with pytest.raises(ValueError, match="from row 0 on, rows are others"):
        generate_corpus(bot, found, tmp_path / "output", mark="m")


def test_a_run_stops_between_batches_and_keeps_what_is_finished(bot, tmp_path, echo):
    source, output = write(tmp_path, [{"text": text} for text in TEXTS]), tmp_path / "output"
    seen = []
    options = {"part_size": 3, "mark": "m", "on_progress": lambda *counts: seen.append(counts)}
    report = generate_corpus(bot, source, output, **options, should_stop=lambda: seen[-1][0] >= 5)
    assert (report.made, report.finished) == (1, False)
    assert seen[-1] == (5, 7)
    at_the_end = generate_corpus(bot, source, output, **options, should_stop=lambda: seen[-1] == (3, 4))
    assert (at_the_end.kept, at_the_end.made, at_the_end.finished) == (1, 1, False)
    assert generate_corpus(bot, source, output, **options).finished
    assert seen[-1] == (1, 1)


@pytest.mark.parametrize("shard", [(0, 2), (3, 2), (1, 0)])
def test_shards_are_counted_from_one(bot, tmp_path, shard):
    with pytest.raises(ValueError, match="i from 1 to n"):
        generate_corpus(bot, write(tmp_path, [{}]), tmp_path / "output", shard=shard)


def test_keys_are_wanted_where_chance_is(bot, sampling_bot, tmp_path):
    source = write(tmp_path, [{"text": "Hi!"}])
    with pytest.raises(ValueError, match="pass key"):
        generate_corpus(sampling_bot, source, tmp_path / "output")
    with pytest.raises(ValueError, match="nothing is drawn"):
        generate_corpus(bot, source, tmp_path / "output", key=jax.random.key(0))
    assert not (tmp_path / "output").exists()


# ---- many processes --------------------------------------------------------------------------------------------------


def goes_on(check, *arguments):
    try:
        check(*arguments)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("links", [True, False])
def test_of_processes_that_start_together_those_of_one_kind_go_on(tmp_path, monkeypatch, links):
    def no_links(*paths):
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    kinds = [{"input": {"rows": 1}, "part_size": 1, "model": number % 2} for number in range(16)]
    for attempt in range(10):
        folder, everyone = tmp_path / f"{attempt}", threading.Barrier(16)

        def start(kind, folder=folder, everyone=everyone):
            passed = [goes_on(manifest.claim, folder, kind, {})]
            everyone.wait(60)
            passed.append(goes_on(manifest.check_claim, folder, kind))
            return kind["model"] if all(passed) else None

        with ThreadPoolExecutor(16) as pool:
            went_on = set(pool.map(start, kinds)) - {None}
        assert went_on == {manifest.read_settings(folder)["model"]}
        assert [path.name for path in folder.iterdir()] == ["manifest.json"]


SHARD = """
import sys, time
from dataclasses import replace
from blenderbot_jax.chatbot import Chatbot
from blenderbot_jax.generation import Packing
from blenderbot_jax.offline import generate_corpus
source, output, shard, pause = sys.argv[1:]
bot = replace(Chatbot.from_pretrained("demo"), packing=Packing(batch_size=4)).configured(num_beams=1, max_length=12)
generate_corpus(bot, source, output, shard=(int(shard), 2), part_size=3,
                on_progress=lambda done, total: time.sleep(float(pause)))
"""


@pytest.mark.long
def test_a_shard_that_was_killed_is_run_again_and_nothing_shows(loaded, tmp_path):
    source, output = write(tmp_path, [{"id": n, "text": TEXTS[n % 7]} for n in range(24)]), tmp_path / "output"

    def start(shard, pause):
        # Programs as this process compiles them, and those that it kept.
        kept = jax.config.values["jax_compilation_cache_dir"]
        quick = str(jax.config.values["jax_disable_most_optimizations"])
        names = {"JAX_COMPILATION_CACHE_DIR": kept, "JAX_DISABLE_MOST_OPTIMIZATIONS": quick, "JAX_NUM_CPU_DEVICES": "4"}
        environment = {**os.environ, **{name: value for name, value in names.items() if value}}
        arguments = [sys.executable, "-c", SHARD, str(source), str(output), str(shard), str(pause)]
        return subprocess.Popen(arguments, cwd=ROOT, env=environment)

    generate_corpus(loaded, source, tmp_path / "one", part_size=3)
    killed, other = start(1, 0.5), start(2, 0)
    deadline = time.monotonic() + 120
    while not (output / "part-00001-of-00008.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.kill()
    assert killed.wait(10) == -signal.SIGKILL
    assert other.wait(120) == 0
    before = {path.name for path in output.glob("part-*.json")}
    assert "part-00001-of-00008.json" in before
    assert "part-00007-of-00008.json" not in before
    with pytest.raises(ValueError, match="7"):
        merge(output, tmp_path / "merged.jsonl")
    (output / ".part-00003-of-00008.jsonl.abc").write_bytes(b"what a killed process leaves")

    report = generate_corpus(loaded, source, output, part_size=3, shard=(1, 2))
    assert report.finished
    assert report.kept >= 1
    merge(output, tmp_path / "merged.jsonl")
    merge(tmp_path / "one", tmp_path / "one.jsonl")
    assert (tmp_path / "merged.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert contents(tmp_path / "one").items() <= contents(output).items()


# ---- fingerprints ----------------------------------------------------------------------------------------------------


def test_fingerprints_tell_checkpoints_apart(loaded):
    checkpoint = loaded.checkpoint
    model, bias = checkpoint.model, checkpoint.params["final_logits_bias"]
    others = [
        replace(checkpoint, params={**checkpoint.params, "final_logits_bias": bias + jnp.float32(1e-3)}),
        replace(checkpoint, params={**checkpoint.params, "final_logits_bias": bias.astype(jnp.bfloat16)}),
        replace(checkpoint, model=model.clone(dtype=jnp.bfloat16)),
        replace(checkpoint, model=model.clone(cache_dtype=jnp.bfloat16)),
    ]
    assert fingerprint(Chatbot.from_pretrained("demo").checkpoint) == fingerprint(checkpoint)
    assert len({fingerprint(checkpoint), *map(fingerprint, others)}) == 1 + len(others)


def test_prepared_bots_come_with_a_fingerprint_taken_before(loaded, bot, tmp_path, echo):
    if jax.tree.structure(bot.checkpoint.params) == jax.tree.structure(loaded.checkpoint.params):
        pytest.skip("preparing changes no form here")
    source = write(tmp_path, [{"text": "Hi!"}])
    with pytest.raises(ValueError, match="prepared"):
        generate_corpus(bot, source, tmp_path / "output")
    generate_corpus(bot, source, tmp_path / "output", mark=fingerprint(loaded.checkpoint))
    assert generate_corpus(loaded, source, tmp_path / "output").kept == 1


# ---- Ray, as far as it goes without ----------------------------------------------------------------------------------


def test_actors_for_ray_refuse_early():
    with pytest.raises(ValueError, match="pass key"):
        RayReplies(decoding={"do_sample": True, "num_beams": 1})
    with pytest.raises(ValueError, match="nothing is drawn"):
        RayReplies(seed=3)
    with pytest.raises(TypeError, match='batch_format="pyarrow"'):
        RayReplies()({"text": ["Hi!"]})


# ---- the guide -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_blocks_of_the_guide_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/corpora.md").read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    for block in blocks:
        if "import ray" not in block:  # the slow suite runs that one, where Ray is installed
            exec(compile(block, "corpora.md", "exec"), names)
    assert capsys.readouterr().out.splitlines() == ["2 2 0", "True"]
