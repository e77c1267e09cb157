"""Readers: every format gives the dialogues it holds, and what is none is refused by file and line, or left out."""

import gzip
import json
import pickle
from itertools import count, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blenderbot_jax.data import FORMATS, BadLineError, Dialogue, read_dialogues
from blenderbot_jax.data.lines import data_files
from blenderbot_jax.data.records import to_dialogue
from blenderbot_jax.dialogue import Conversation

HELLO = '{"turns": [{"speaker": "A", "text": "Hi!"}, {"speaker": "B", "text": "Hello."}]}'
TURNS = (("A", "Hi!"), ("B", "Hello."))


def file(folder, content, name="talk.jsonl"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(folder, content, **options):
    return list(read_dialogues(file(folder, content), **options))


def refusal(folder, content, **options):
    with pytest.raises(BadLineError) as caught:
        read(folder, content, **options)
    return str(caught.value).replace(f"{folder}/", "")


# ---- formats ---------------------------------------------------------------------------------------------------------


def test_dialogues_with_personas_are_read_with_their_places(tmp_path):
    line = {
        "dialogue_id": "7",
        "topic": "greeting",
        "personas": {"A": ["i love hiking.", " "], "B": "i am tall."},
        "turns": [{"speaker": "A", "text": "Hi!", "mood": "glad"}, {"speaker": "B", "text": ""}],
    }
    [first, second] = read(tmp_path, f"{HELLO}\n{json.dumps(line)}\n")
    assert first == Dialogue(TURNS, where=f"{tmp_path}/talk.jsonl:1")
    assert second.turns == (("A", "Hi!"), ("B", ""))
    assert second.personas == {"A": ("i love hiking.",), "B": ("i am tall.",)}
    assert second.where.endswith("talk.jsonl:2")
    assert second.targets is None


def test_parlai_text_is_read_episode_by_episode(tmp_path):
    text = (
        "text:your persona: i love hiking.\\nyour persona: i am tall.\\npartner's persona: i cook.\\nHi!\\nYou there?\t"
        "labels:Hello__PIPE__hi.|Hey.\treward:1\n"
        "text:How are you?\teval_labels:Fine\\tthanks.\tlabel_candidates:a|b\tepisode_done:True\n"
        "\n"
        "text:__SILENCE__\tlabels:Good morning.\n"
        "text:Morning.\tlabels:\tepisode_done:False\n"
        "text:Well?\tlabels:Bye.\n"
    )
    [first, second] = read(tmp_path, text)
    assert first.turns == (
        ("user", "Hi!\nYou there?"),
        ("bot", "Hello|hi."),
        ("user", "How are you?"),
        ("bot", "Fine\tthanks."),
    )
    assert first.personas == {"bot": ("i love hiking.", "i am tall."), "user": ("i cook.",)}
    assert (first.targets, first.where) == ((1, 3), f"{tmp_path}/talk.jsonl:1")
    assert second.turns == (("bot", "Good morning."), ("user", "Morning."), ("user", "Well?"), ("bot", "Bye."))
    assert (second.personas, second.targets, second.where[-2:]) == ({}, (0, 3), ":4")


def test_parlai_conversations_are_read_with_the_personas_of_both(tmp_path):
    acts = [[{"id": "one", "text": "Hi!"}, {"id": "two", "text": "Hello."}], [{"id": "one", "text": "Bye."}]]
    context = [
        {"id": "context", "text": "your persona: i love hiking.\nyour persona: i am tall.\nHiking"},
        {"id": "context", "text": "your persona: i cook."},
    ]
    lines = [
        {"dialog": acts, "context": context, "metadata_path": "x"},
        {"dialog": [context, *acts]},
        {"dialog": acts, "context": context[:1]},
        {"dialogue": [{"text": "Hi!"}, {"text": "Hello."}]},
        {"dialog": [[{"id": "bot", "text": "Hi!"}, {"id": "bot", "text": "Hello."}]]},
        {"dialog": ["Hi!", "Hello."]},
        {"dialog": [[{"id": "one", "text": "__SILENCE__"}, {"id": "two", "text": "Hi!"}]]},
    ]
    logged, within, one_sided, *places, opened = read(tmp_path, "\n".join(map(json.dumps, lines)))
    assert logged.turns == (("one", "Hi!"), ("two", "Hello."), ("one", "Bye."))
    assert logged.personas == {"one": ("i love hiking.", "i am tall."), "two": ("i cook.",)}
    assert (within.turns, within.personas) == (logged.turns, logged.personas)
    assert one_sided.personas == {"two": ("i love hiking.", "i am tall.")}
    assert [talk.turns for talk in places] == [(("user", "Hi!"), ("bot", "Hello."))] * 3
    assert [text for _, text in opened.turns] == ["Hi!"]


def test_pairs_become_turns_of_user_and_bot_of_which_the_last_is_learned(tmp_path):
    lines = [
        {"context": "Hi!", "reply": "Hello.", "persona": ["i love hiking."]},
        {"context": ["Hello.", "Hi!", "Who?"], "reply": "Me."},
    ]
    [short, long] = read(tmp_path, "\n".join(map(json.dumps, lines)))
    assert short.turns == (("user", "Hi!"), ("bot", "Hello."))
    assert (short.personas, short.targets) == ({"bot": ("i love hiking.",)}, (1,))
    assert [speaker for speaker, _ in long.turns] == ["user", "bot", "user", "bot"]
    assert long.targets == (3,)
    assert [talk.turns for talk in read(tmp_path, "Hi!\tHello.\n\nBye.\tSee you!\n")] == [
        (("user", "Hi!"), ("bot", "Hello.")),
        (("user", "Bye."), ("bot", "See you!")),
    ]


def test_python_objects_are_read_as_files_are(tmp_path):
    chat = Conversation(persona=("i love hiking.",)).add("user", "Hi!").add("bot", "Hello.")
    ready = Dialogue(TURNS, where="here")
    found = list(read_dialogues([chat, ready, json.loads(HELLO), ("Hi!", "Hello."), [["Hi!"], "Hello."]]))
    assert found[0] == Dialogue((("user", "Hi!"), ("bot", "Hello.")), {"bot": ("i love hiking.",)}, "record 0")
    assert found[1] is ready
    assert found[2].turns == TURNS
    assert found[3].turns == found[4].turns == found[0].turns
    assert list(read_dialogues(ready)) == [ready]
    assert next(read_dialogues(json.loads(HELLO))).turns == TURNS
    mixed = read_dialogues(one for one in (file(tmp_path, HELLO), ("Hi!", "Hello.")))
    assert [talk.turns for talk in mixed] == [TURNS, found[3].turns]


def test_objects_are_taken_one_at_a_time():
    endless = ((f"question {number}", f"answer {number}") for number in count())
    *_, second = islice(read_dialogues(endless), 2)
    assert second.turns[0] == ("user", "question 1")
    assert next(endless)[0] == "question 2"


@pytest.mark.parametrize("form", FORMATS)
def test_a_named_format_is_not_guessed(tmp_path, form):
    lines = {
        "dialogues": HELLO,
        "conversations": '{"dialog": [["Hi!", "Hello."]], "turns": []}',
        "pairs": '{"context": "Hi!", "reply": "Hello.", "turns": []}',
        "tsv": "Hi!\tHello.",
        "parlai": "labels:Hello.\ttext:Hi!\treward:1",
    }
    [talk] = read(tmp_path, lines[form], format=form)
    assert [text for _, text in talk.turns] == ["Hi!", "Hello."]
    for other in lines.keys() - {form}:
        with pytest.raises(BadLineError):
            read(tmp_path, lines[other], format=form)


@pytest.mark.parametrize("content", ["just a line", "[" + HELLO + "]", '{"text": "Hi!"}', "a\tb\tc", b"\xff\n", "{"])
def test_a_format_that_cannot_be_told_is_refused_with_those_there_are(tmp_path, content):
    with pytest.raises(ValueError, match=r"talk.jsonl: the format cannot be told, its first line.*dialogues .*tsv"):
        read(tmp_path, content)


def test_a_bad_first_line_does_not_hide_the_format(tmp_path):
    [talk] = read(tmp_path, "{broken\n\nnonsense\n" + HELLO, skip_bad=True)
    assert talk.turns == TURNS


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n  \n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_marks_line_ends_blank_lines_and_gzip_change_nothing(tmp_path, end, mark, pack):
    for content, turns in (
        (HELLO, TURNS),
        ("Hi\u2028 you\x85!\tHello.", (("user", "Hi\u2028 you\x85!"), ("bot", "Hello."))),
    ):
        path = file(tmp_path, pack((mark + (content + end) * 2).encode()))
        found = list(read_dialogues(path))
        assert [talk.turns for talk in found] == [turns] * 2
        assert found[1].where == f"{path}:{1 + end.count(chr(10))}"


def test_files_folders_and_patterns_are_read_in_order_of_their_names(tmp_path):
    (tmp_path / "inner").mkdir()
    names = ["b.jsonl", "a.tsv.gz", "c.txt", "d.metadata", "inner/e.jsonl"]
    for name in names:
        file(tmp_path, gzip.compress(f"{name}\tHello.".encode()) if "gz" in name else f"{name}\tHello.", name)

    def first(source):
        return [talk.turns[0][1] for talk in read_dialogues(source)]

    assert first(tmp_path) == ["a.tsv.gz", "b.jsonl", "c.txt"]
    assert first(str(tmp_path / "**/*.jsonl")) == ["b.jsonl", "inner/e.jsonl"]
    assert first([tmp_path / "c.txt", str(tmp_path / "d.*")]) == ["c.txt", "d.metadata"]
    assert data_files(str(tmp_path / "[ab].*"))[0].name == "a.tsv.gz"
    assert first(file(tmp_path, "odd\tHello.", "[x].tsv")) == ["odd"]
    assert first(file(tmp_path, "", "empty.jsonl")) == []


def test_what_is_not_there_is_refused_before_anything_is_read(tmp_path):
    there = file(tmp_path, HELLO)
    with pytest.raises(FileNotFoundError, match=r"no file or folder 'nowhere\.jsonl'"):
        read_dialogues([there, "nowhere.jsonl"])
    (tmp_path / "bare").mkdir()
    with pytest.raises(FileNotFoundError, match=r"bare has no \.jsonl"):
        read_dialogues(tmp_path / "bare")
    with pytest.raises(ValueError, match="format is one of dialogues, conversations, pairs, tsv, parlai, not 'csv'"):
        read_dialogues(there, format="csv")
    with pytest.raises(ValueError, match="pass skip_bad=True"):
        read_dialogues(there, on_bad=print)


# ---- bad lines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"turns": [', "one JSON object: Expecting value at character 12"),
        ("7", "one JSON object, not a int"),
        ('{"text": "Hi!"}', '"turns" is a list of turns, not None'),
        ('{"turns": []}', "at least one, not ()"),
        ('{"turns": "Hi!"}', "a list of turns, not 'Hi!'"),
        ('{"turns": ["Hi!"]}', "a turn has a speaker and a text; this one is 'Hi!'"),
        ('{"turns": [{"speaker": "A"}]}', "a turn's text is a string, not None"),
        ('{"turns": [{"speaker": 7, "text": "Hi!"}]}', "a turn's speaker is a name, not 7"),
        ('{"turns": [["A", "Hi \\ud83d!"]]}', "half of a surrogate pair"),
        ('{"turns": [["A", "Hi!"]], "personas": ["tall"]}', "personas name each speaker's sentences"),
        ('{"turns": [["A", "Hi!"]], "personas": {"A": 7}}', "a persona is a list of sentences, not 7"),
        ('{"turns": ' + "[" * 100_000, "too deep to be a dialogue"),
        (b'{"turns": [["A", "caf\xe9"]]}', "not UTF-8 text: invalid continuation byte at byte 22"),
    ],
)
def test_a_bad_line_is_refused_by_file_and_number(tmp_path, line, reason):
    content = HELLO.encode() + b"\n\n" + (line if isinstance(line, bytes) else line.encode()) + b"\n"
    said = refusal(tmp_path, content, format="dialogues")
    assert said.startswith("talk.jsonl:3: ")
    assert reason in said


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("Hi!\tHello.\nHi!\t", "a reply is a text with something in it, not ''"),
        ("Hi!\tHello.\n\tHello.", "a context is a text or a list of texts, not ''"),
        ("Hi!\tHello.\nHi!\tHello.\tBye.", "two columns, a context and its reply; this one has 3"),
        ("text:Hi!\tlabels:Hello.\ntext:Bye.", "a text: and a labels: field; this one has text"),
        ('{"dialog": [["Hi!", "Hello."]]}\n{"dialog": [7]}', "an utterance is a text, or an object with an id"),
        ('{"dialog": [["Hi!", "Hello."]]}\n{"dialog": 7}', '"dialog" is a list of utterances'),
        ('{"context": "Hi!", "reply": "Hello."}\n{"context": 7, "reply": "Hello."}', "a context is a text or a list"),
        ('{"context": "Hi!", "reply": "Hello."}\n{"context": "Hi!", "reply": ["Hello."]}', "a reply is a text"),
    ],
)
def test_every_format_says_what_a_bad_line_lacks(tmp_path, content, reason):
    said = refusal(tmp_path, content)
    assert said.startswith("talk.jsonl:2: ")
    assert reason in said


def test_all_bad_lines_are_counted_and_the_first_named(tmp_path):
    first, second = (
        file(tmp_path, f"{HELLO}\n{{\n{HELLO}\n{{\n", "a.jsonl"),
        file(tmp_path, HELLO + "\n{" * 5, "b.jsonl"),
    )
    taken = []
    with pytest.raises(BadLineError) as caught:
        taken.extend(iter_into(taken, read_dialogues([first, second])))
    assert [talk.where for talk in taken] == [f"{first}:1"]
    error = caught.value
    assert error.count == 7
    assert [where for where, _ in error.problems] == [
        f"{first}:2",
        f"{first}:4",
        f"{second}:2",
        f"{second}:3",
        f"{second}:4",
    ]
    assert str(error).startswith("7 lines cannot be read: ")
    assert str(error).endswith("; and 2 more. Mend them, or leave them out with skip_bad=True")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def iter_into(taken, found):
    """Put what is found into a list one by one, so that it is there when an error comes."""
    for one in found:
        taken.append(one)
    return []


def test_bad_lines_can_be_left_out_and_each_is_told_of(tmp_path):
    told = []
    content = b"{\n" + HELLO.encode() + b"\n\xff\n" + HELLO.encode()
    found = read(tmp_path, content, skip_bad=True, on_bad=told.append)
    assert [talk.where[-2:] for talk in found] == [":2", ":4"]
    assert [error.problems[0][0][-2:] for error in told] == [":1", ":3"]
    assert all(isinstance(error, BadLineError) and error.count == 1 for error in told)
    assert len(read(tmp_path, content, skip_bad=True)) == 2


@pytest.mark.parametrize("bad", [b"text:Who?", b"text:\xff\tlabels:Me."])
def test_an_episode_with_a_bad_line_is_left_out_whole(tmp_path, bad):
    good = b"text:Hi!\tlabels:Hello.\n"
    last = b"text:Bye.\tlabels:Bye.\tepisode_done:True\n"
    for broken in (good + bad + b"\n" + good + last, good + bad + b"\tepisode_done:True\n", bad + b"\n" + good + last):
        told = []
        found = read(tmp_path, last + broken + good + last + broken, skip_bad=True, on_bad=told.append)
        assert [len(talk.turns) for talk in found] == [2, 4]
        assert len(told) == 2


def test_a_damaged_gzip_file_gives_what_it_still_holds(tmp_path):
    lines = "".join(f'{HELLO[:-1]}, "id": {number * 7919 % 10007}}}\n' for number in range(2000))
    packed = gzip.compress(lines.encode())
    path = file(tmp_path, packed[: len(packed) // 2], "talk.jsonl.gz")
    told = []
    found = list(read_dialogues(path, skip_bad=True, on_bad=told.append))
    assert 100 < len(found) < 2000
    assert [str(error).partition(": ")[2] for error in told] == [
        "the packed file is damaged from here on: Compressed file ended before the end-of-stream marker was reached"
    ]
    assert told[0].problems[0][0] == f"{path}:{len(found) + 1}"
    with pytest.raises(BadLineError, match="the packed file is damaged"):
        list(read_dialogues(path))


def test_a_bad_object_ends_the_reading_at_once():
    found = read_dialogues({"turns": number} if number else ("Hi!", "Hello.") for number in count())
    next(found)
    with pytest.raises(BadLineError, match='record 1: "turns" is a list of turns, not 1'):
        next(found)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (7, "a mapping, a pair of context and reply, or a Dialogue, not 7"),
        ({"text": "Hi!"}, "the keys of this one: 'text'"),
        ({}, "the keys of this one: none"),
        (("Hi!", "Hello.", "Bye."), "not \\('Hi!', 'Hello.', 'Bye.'\\)"),
    ],
)
def test_objects_of_no_shape_are_refused(record, reason):
    with pytest.raises(ValueError, match=reason):
        to_dialogue(record)
    with pytest.raises(ValueError, match='"tsv" is no shape of a mapping'):
        to_dialogue({"turns": []}, form="tsv")


def test_targets_are_places_of_turns():
    assert Dialogue(TURNS, targets=[1]).targets == (1,)
    for places in ([2], [-1], ["1"]):
        with pytest.raises(ValueError, match="targets are places of the 2 turns"):
            Dialogue(TURNS, targets=places)


# ---- round trips -----------------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
# ParlAI spells tabs and line breaks with a backslash, and bars by name: texts that hold these do not come back.
PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\\_\r"), max_size=20).filter(str.strip)
NAMES = st.text("ABC", min_size=1, max_size=2)
LINES = st.lists(TEXTS.filter(str.strip).map(str.strip), max_size=3).map(tuple)
DIALOGUES = st.builds(
    Dialogue,
    st.lists(st.tuples(NAMES, TEXTS), min_size=1, max_size=5).map(tuple),
    st.dictionaries(NAMES, LINES, max_size=2),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("talk")


def same(found, written):
    return [(talk.turns, dict(talk.personas)) for talk in found] == [
        (talk.turns, dict(talk.personas)) for talk in written
    ]


@settings(deadline=None)
@given(written=st.lists(DIALOGUES, max_size=4), ascii_only=st.booleans(), pack=st.booleans())
def test_dialogues_come_back_from_jsonl_as_they_were_written(folder, written, ascii_only, pack):
    records = [
        {"turns": [{"speaker": name, "text": text} for name, text in talk.turns], "personas": talk.personas}
        for talk in written
    ]
    content = "".join(json.dumps(record, ensure_ascii=ascii_only) + "\n" for record in records).encode()
    path = file(folder, gzip.compress(content) if pack else content)
    assert same(read_dialogues(path), written)
    assert same(read_dialogues(records), written)


def escaped(text):
    return text.replace("\t", "\\t").replace("\n", "\\n").replace("|", "__PIPE__")


@settings(deadline=None)
@given(
    written=st.lists(
        st.tuples(
            st.lists(PLAIN.map(str.strip).filter(lambda line: "\n" not in line), max_size=2),
            st.lists(st.tuples(PLAIN, PLAIN), min_size=1, max_size=3),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_episodes_come_back_from_parlai_text_as_they_were_written(folder, written):
    lines = []
    for persona, exchanges in written:
        front = "".join(f"your persona: {line}\n" for line in persona)
        for number, (said, reply) in enumerate(exchanges):
            done = "\tepisode_done:True" * (number + 1 == len(exchanges))
            lines.append(f"text:{escaped(front * (number == 0) + said)}\tlabels:{escaped(reply)}{done}\n")
    found = list(read_dialogues(file(folder, "".join(lines)), format="parlai"))
    assert [talk.turns for talk in found] == [
        tuple(turn for said, reply in exchanges for turn in (("user", said), ("bot", reply)))
        for _, exchanges in written
    ]
    assert [talk.personas.get("bot", ()) for talk in found] == [tuple(dict.fromkeys(persona)) for persona, _ in written]


@settings(deadline=None)
@given(content=st.binary(max_size=200) | st.text('{}[]":,\tturnsxl\n\\', max_size=200).map(str.encode))
def test_whatever_a_file_holds_it_is_read_or_refused_as_a_value(folder, content):
    path = file(folder, content)
    for form in FORMATS:
        told = []
        found = list(read_dialogues(path, format=form, skip_bad=True, on_bad=told.append))
        assert len(found) + len(told) <= content.count(b"\n") + 1
