"""Rows of corpora: read from files of every kind, and as conversations."""

import gzip
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blenderbot_jax.dialogue import Conversation
from blenderbot_jax.offline import conversation, survey
from blenderbot_jax.offline.rows import dump, parse
from tests.corpora import ROWS, write


@settings(max_examples=50, deadline=None)
@given(ROWS)
def test_a_row_is_read_as_it_was_written(rows):
    assert [parse(dump(row).removesuffix(b"\n"), "jsonl") for row in rows] == rows


def test_half_a_surrogate_pair_is_written_as_an_escape():
    row = parse(rb'{"text": "\ud800"}', "jsonl")
    assert dump(row) == rb'{"text": "\ud800"}' + b"\n"


@settings(max_examples=50, deadline=None)
@given(ROWS, st.integers(1, 13), st.sets(st.integers(0, 12)), st.booleans(), st.data())
def test_parts_hold_all_rows_once_in_order_however_files_are_cut(tmp_path_factory, rows, size, cuts, windows, data):
    folder = tmp_path_factory.mktemp("rows")
    lines = [dump(row) for row in rows]
    whole = survey(write(folder, rows, "whole.jsonl"), part_size=size)
    edges = [0, *sorted(cut for cut in cuts if cut < len(rows)), len(rows)]
    files = []
    for number, (start, end) in enumerate(pairwise(edges)):
        text = b"\xef\xbb\xbf" * data.draw(st.booleans()) + b"".join(lines[start:end])
        text = text.replace(b"\n", b"\r\n\n") if windows else text.removesuffix(b"\n")
        files.append(folder / f"{number}.jsonl")
        files[-1].write_bytes(text)
    found = survey(files, part_size=size)
    assert found.digest == whole.digest == survey(files, part_size=size + 1).digest
    assert [part.digest for part in found.parts] == [part.digest for part in whole.parts]
    assert found.rows == len(rows)
    some = [part for part in found.parts if data.draw(st.booleans())]
    wanted = [(part, rows[part.first : part.first + part.rows]) for part in some]
    assert list(found.read(some)) == wanted


def test_every_line_of_a_text_is_a_row(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes("Hi!\r\n\n one\u2028line \nlast".encode())
    found = survey(path, part_size=10)
    [(_, rows)] = found.read(found.parts)
    assert rows == [{"text": "Hi!"}, {"text": ""}, {"text": " one\u2028line "}, {"text": "last"}]


def test_packed_files_hold_the_same_rows(tmp_path):
    plain = write(tmp_path, [{"text": text} for text in ("Hi!", "Yes.", "Do you like music?")])
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert survey(packed, part_size=3).parts == survey(plain, part_size=3).parts
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(ValueError, match="no whole gzip file"):
        survey(packed)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"[1]", "a row is a JSON object, not list"),
        (b'{"text": ', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"text": "\xff"}', "not UTF-8 text: invalid start byte at byte 10"),
    ],
)
def test_a_line_that_is_no_row_is_kept_with_the_reason(line, says):
    row = parse(line, "jsonl")
    assert row["line"] == line.decode("utf-8", "replace")
    assert says in row["error"]


def test_patterns_stand_for_the_files_they_match_in_order(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c.txt"):
        write(tmp_path, [{"text": name}], name)
    literal = write(tmp_path, [{"text": "literal"}], "[x]*.jsonl")
    assert [path.name for path in survey(tmp_path / "?.jsonl").sources] == ["a.jsonl", "b.jsonl"]
    assert survey([literal, tmp_path / "b.jsonl"]).sources == (literal, tmp_path / "b.jsonl")


@pytest.mark.parametrize(
    ("names", "options", "says"),
    [
        ([], {}, "no files were given"),
        (["absent.jsonl"], {}, "there is no file"),
        (["*.absent"], {}, "no file matches"),
        ([""], {}, "is a folder"),
        (["empty.jsonl"], {}, "no rows in"),
        (["rows.csv"], {}, "ending of 'rows.csv' does not say"),
        (["rows.jsonl", "rows.txt"], {}, "have one format"),
        (["rows.jsonl"], {"part_size": 0}, "part_size"),
        (["rows.jsonl"], {"format": "csv"}, "the format is one of jsonl, text"),
    ],
)
def test_what_cannot_be_surveyed_is_refused(tmp_path, names, options, says):
    for name in ("rows.jsonl", "rows.txt", "rows.csv"):
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(says)):
        survey([tmp_path / name for name in names], **options)


# ---- what a row says -------------------------------------------------------------------------------------------------

SKI = ("i ski.",)
ASKED = Conversation().add("user", "Hi!")
TALK = Conversation().add("bot", "Hi!").add("user", "Yes?")


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"text": "Hi!", "more": 1, "turns": None}, ASKED),
        ({"turns": ["Hi!"]}, ASKED),
        ({"turns": ["Hi!", "Yes?"]}, TALK),
        ({"context": [{"speaker": "bot", "text": "Hi!"}, {"speaker": "user", "text": "Yes?"}]}, TALK),
        ({"turns": [["A", "Hi!"], ["B", "Yes?"]]}, TALK),
        ({"turns": [{"text": "Hi!"}, ["B", "Yes?"]]}, TALK),
        ({"turns": [["bot", "Hi!"]]}, ASKED),
        ({"text": "Hi!", "persona": "i ski."}, replace(ASKED, persona=SKI)),
        ({"text": "Hi!", "persona": ["i ski.", "i hike."]}, replace(ASKED, persona=(*SKI, "i hike."))),
        ({"text": "Hi!", "persona": [" "]}, ASKED),
        ({"context": "Hi!"}, ASKED),
        ({"text": "Hi!", "personas": {"user": ["i hike."], "bot": ["i ski."]}}, replace(ASKED, persona=SKI)),
        ({"text": "Hi!", "personas": {"A": None, "B": "i ski."}}, replace(ASKED, persona=SKI)),
        ({"turns": [["A", "Hi!"], ["B", "Yes?"]], "personas": {"A": SKI, "B": "no"}}, replace(TALK, persona=SKI)),
        ({"turns": [["bot", "Hi!"]], "personas": {"user": SKI, "bot": "no"}}, replace(ASKED, persona=SKI)),
        ({"turns": [["A", "Hi!"]], "personas": {"A": ["no"]}}, ASKED),
    ],
)
def test_a_conversation_is_read_from_a_row(row, wanted):
    assert conversation(row) == wanted


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({}, "none of them"),
        ({"text": None}, "none of them"),
        ({"text": "Hi!", "turns": ["Hi!"]}, "text and turns"),
        ({"text": " "}, "must not be empty"),
        ({"text": 7}, "a turn is a string, not int"),
        ({"turns": "Hi!"}, "a list of turns, not str"),
        ({"turns": {}}, "a list of turns, not dict"),
        ({"context": []}, "context is empty"),
        ({"turns": [7]}, "a turn is a text, an object"),
        ({"turns": [["a", "b", "c"]]}, "a turn is a text, an object"),
        ({"text": "Hi!", "persona": 7}, "a persona is a list of sentences, not 7"),
        ({"text": "Hi!", "persona": [7]}, "a persona sentence is a string, not 7"),
        ({"text": "Hi!", "persona": "a", "personas": {}}, "persona and personas"),
        ({"text": "Hi!", "personas": ["a"]}, "personas are an object"),
        ({"text": "Hi!", "personas": {"A": ["a"], "B": ["b"]}}, "which of them answers"),
    ],
)
def test_a_row_that_says_nothing_clear_is_refused(row, says):
    with pytest.raises((ValueError, TypeError), match=says):
        conversation(row)
