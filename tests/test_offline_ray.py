"""RayReplies inside a Ray Data pipeline, on a cluster of this machine's own."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import pytest

import blenderbot_jax
from blenderbot_jax.chatbot import Chatbot
from blenderbot_jax.offline import RayReplies, answer_rows, prepared

ROOT = Path(blenderbot_jax.__file__).parents[1]
SECONDS = 300
DECODING = {"num_beams": 1, "max_length": 12}
ADDED = ("reply", "score", "dropped_turns", "dropped_tokens", "error")
# A process of its own, which ends with its cluster if that hangs. Two actors share a CPU: with one each, on a machine
# of two, nothing would be left for the tasks that feed them, and Ray Data would wait for ever.
START = """
import json, os, sys
import ray
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=2**28, log_to_driver=False, _temp_dir=sys.argv[1],
         runtime_env={"env_vars": {"PYTHONPATH": os.getcwd(), "HF_HUB_OFFLINE": "1"}})
"""
END = """
print(json.dumps(rows))
ray.shutdown()
"""
PIPELINE = """
from blenderbot_jax.offline import RayReplies
dataset = ray.data.read_json(sys.argv[2]).repartition(4)
dataset = dataset.map_batches(RayReplies, fn_constructor_kwargs=json.loads(sys.argv[3]), batch_format="pyarrow",
                              batch_size=3, concurrency=2, num_cpus=0.5)
rows = dataset.take_all()
"""

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is an extra: pip install 'blenderbot-jax[ray]'"
)


def on_a_cluster(body, *arguments):
    """What a piece of Python leaves as `rows`, with Ray started before it."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:  # a short path
        command = [sys.executable, "-c", START + body + END, folder, *map(str, arguments)]
        environment = {**os.environ, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            said, _ = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the cluster did not finish within {SECONDS} s")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
    assert process.returncode == 0
    return json.loads(said.splitlines()[-1])


def dataset_rows():
    texts = ("Hi!", "Do you like music?", "", "I am tired.", "No.")
    rows = [{"row": number, "text": texts[number % 5], "turns": None} for number in range(15)]
    rows[4] |= {"text": None, "turns": [{"speaker": "user", "text": "Hi!"}, {"speaker": "bot", "text": "Yes?"}]}
    return rows


@needs_ray
@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("seed", [None, 7])
def test_a_dataset_gets_the_replies_of_a_single_process(tmp_path, seed):
    rows = dataset_rows()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    decoding = DECODING | ({} if seed is None else {"do_sample": True})
    found = on_a_cluster(PIPELINE, tmp_path / "rows.jsonl", json.dumps({"decoding": decoding, "seed": seed}))
    bot = prepared(Chatbot.from_pretrained("demo").configured(**decoding))
    key = None if seed is None else jax.random.key(seed)
    wanted = answer_rows(bot, rows, key=key)
    assert sum("error" in row for row in wanted) == 3
    for row, one in zip(sorted(found, key=lambda row: row["row"]), wanted, strict=True):
        assert row["score"] == (pytest.approx(one["score"], rel=1e-4) if "score" in one else None)
        for name in ("row", "text", "turns", "reply", "dropped_turns", "dropped_tokens", "error"):
            assert row[name] == one.get(name)


@needs_ray
@pytest.mark.slow
def test_the_block_of_the_guide_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/corpora.md").read_text(encoding="utf-8"), re.DOTALL)
    [block] = [block for block in blocks if "import ray" in block]
    rows = on_a_cluster(block)
    assert [row["text"] for row in rows] == ["Hi!", "Do you like music?"]
    assert all(row["reply"] for row in rows)


@pytest.fixture(scope="module")
def pyarrow():
    return pytest.importorskip("pyarrow", reason="pyarrow comes with Ray Data")


def test_tables_keep_their_columns_and_have_one_schema_whatever_is_in_them(pyarrow):
    replies = RayReplies(decoding=DECODING | {"num_beams": 2, "num_return_sequences": 2})
    table = pyarrow.table({"id": pyarrow.array([1, 2], pyarrow.int8()), "text": ["Hi!", ""]})
    whole, refused = replies(table), replies(table.slice(1))
    assert whole.column_names == ["id", "text", *ADDED, "alternatives"]
    assert refused.schema == whole.schema
    assert whole.select(["id", "text"]).equals(table)
    [answered, empty] = whole.to_pylist()
    assert answered["alternatives"][0] == {"text": answered["reply"], "score": answered["score"]}
    assert answered["error"] is empty["reply"] is empty["alternatives"] is None
    assert "must not be empty" in empty["error"]


def test_rows_draw_by_their_numbers_which_must_be_there(pyarrow):
    replies = RayReplies(decoding=DECODING | {"do_sample": True, "temperature": 2.0}, seed=3, number="n")
    table = pyarrow.table({"n": list(range(6)), "text": ["Hi!"] * 6})
    drawn = replies(table)["reply"].to_pylist()
    assert len(set(drawn)) > 1
    assert replies(table.take([5, 2]))["reply"].to_pylist() == [drawn[5], drawn[2]]
    for column in (None, [0, 0], [0.5, 1.5], [None, 1]):
        bad = pyarrow.table({"text": ["Hi!", "Ho!"], **({} if column is None else {"n": column})})
        with pytest.raises(ValueError, match="does not number all rows"):
            replies(bad)


def test_columns_are_not_written_over(pyarrow):
    with pytest.raises(ValueError, match="columns reply, error already"):
        RayReplies(decoding=DECODING)(pyarrow.table({"text": ["Hi!"], "reply": [""], "error": [""]}))
