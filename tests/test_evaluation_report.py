"""evaluate: the bundled model on a few dialogues, against the same figures had one by one."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from blenderbot_jax import Chatbot, Conversation, Packing
from blenderbot_jax.data import Dialogue, Example, corpus_examples
from blenderbot_jax.evaluation.likelihood import Likelihood
from blenderbot_jax.evaluation.metrics import text_metrics
from blenderbot_jax.evaluation.report import Scores, evaluate
from blenderbot_jax.scoring import token_log_probs

TALK = (
    Dialogue((("A", "Hi!"), ("B", "Hello there."), ("A", "Do you like music?"), ("B", "I do, very much."))),
    Dialogue((("A", "I have a dog."), ("B", "What is its name?")), {"B": ("i love animals.",)}),
)
SMALL = (Dialogue((("A", "Good morning!"), ("B", "Good morning. How are you?"))),)


@pytest.fixture(scope="module")
def bot():
    # One width: few programs.
    bot = Chatbot.from_pretrained("demo").configured(num_beams=1, max_length=10)
    return replace(bot, packing=Packing(widths=(64,)))


@pytest.fixture(scope="module")
def corpora(bot):
    limits = {"max_source": 128, "max_target": 128}
    named = {"talk": TALK, "small": SMALL}
    return {name: tuple(corpus_examples(talks, bot.checkpoint.tokenizer, **limits)) for name, talks in named.items()}


@pytest.fixture(scope="module")
def report(bot, corpora):
    return evaluate(bot, corpora, batch_size=4)


def test_answers_are_those_of_the_chatbot_beside_the_turns_that_were_said(bot, report):
    said = [chat for talk in (*TALK, *SMALL) for chat in conversations(talk)]
    assert [one.reference for one in report.answers] == [reference for _, reference in said]
    assert [one.reply for one in report.answers] == bot.replies([chat for chat, _ in said])
    assert [one.corpus for one in report.answers] == ["talk"] * 4 + ["small"]
    assert report.answers[3].prompt == "your persona: i love animals.   I have a dog."
    assert all(1 <= one.tokens <= 9 for one in report.answers)


def conversations(talk):
    """Every turn from the second on with what its speaker heard and is."""
    for place, (speaker, text) in enumerate(talk.turns[1:], 1):
        chat = Conversation(persona=talk.personas.get(speaker, ()))
        for name, earlier in talk.turns[:place]:
            chat = chat.add("bot" if name == speaker else "user", earlier)
        yield chat, text


def test_likelihood_is_of_the_turns_that_were_said(bot, corpora, report):
    model, params = bot.checkpoint.model, bot.checkpoint.params
    for name, examples in corpora.items():
        nats = 0.0
        for one in examples:
            # Padded, so that one program serves all.
            ids = np.pad(np.array([one.input_ids]), ((0, 0), (0, 32 - len(one.input_ids))))
            labels = np.pad(np.array([one.labels]), ((0, 0), (0, 16 - len(one.labels))), constant_values=-100)
            mask = (np.arange(32) < len(one.input_ids))[None].astype(np.int32)
            nats -= float(token_log_probs(model, params, ids, mask, labels).sum())
        found = report.by_corpus[name].likelihood
        assert found.nats == pytest.approx(nats, rel=1e-5)
        assert (found.tokens, found.examples) == (sum(len(one.labels) for one in examples), len(examples))


def test_the_whole_weighs_every_example_the_same(report):
    parts = [scores.likelihood for scores in report.by_corpus.values()]
    assert report.in_all.likelihood == sum(parts, Likelihood())
    replies, references = zip(*((one.reply, one.reference) for one in report.answers), strict=True)
    wanted = text_metrics(replies, references)
    assert report.in_all.metrics == {**wanted, "reply_tokens": np.mean([one.tokens for one in report.answers])}
    [small] = [one for one in report.answers if one.corpus == "small"]
    assert report.by_corpus["small"].metrics["f1"] == text_metrics([small.reply], [small.reference], ["f1"])["f1"]


def test_json_holds_all_figures_and_how_replies_were_decoded(bot, report):
    read = json.loads(report.to_json())
    assert set(read["by_corpus"]) == {"talk", "small"}
    assert read["in_all"]["examples"] == 5
    assert read["in_all"]["perplexity"] == pytest.approx(report.in_all.likelihood.perplexity)
    assert read["in_all"]["f1"] == report.in_all.metrics["f1"]
    assert read["generation"]["max_length"] == 10
    assert "answers" not in read


def test_json_knows_no_infinity():
    assert Scores(Likelihood(1e6, 0, 10, 1)).to_dict()["perplexity"] is None


def test_without_metrics_nothing_is_generated(bot, corpora, monkeypatch):
    monkeypatch.setattr(Chatbot, "prepared", lambda *_: pytest.fail("weights were packed for decoding"))
    stages = []
    report = evaluate(bot.checkpoint, corpora["talk"], metrics=(), on_progress=lambda *told: stages.append(told))
    assert report.answers == ()
    assert report.in_all.metrics == {}
    assert report.to_dict()["generation"] == {}
    assert list(report.by_corpus) == ["examples"]
    assert {stage for stage, _ in stages} == {"likelihood"}
    assert sum(count for _, count in stages) == 4


def test_progress_counts_every_example_once_a_stage(bot, corpora):
    done = {"likelihood": 0, "replies": 0}

    def told(stage, count):
        done[stage] += count

    evaluate(bot, corpora, metrics=["f1"], batch_size=4, on_progress=told)
    assert done == {"likelihood": 5, "replies": 5}


def test_draws_are_those_of_the_key(bot, corpora):
    drawing = bot.configured(do_sample=True)

    def drawn(seed):
        found = evaluate(drawing, corpora["talk"], metrics=["f1"], key=jax.random.key(seed))
        return [one.reply for one in found.answers]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"examples": []}, ValueError, "no examples in examples"),
        ({"examples": {}}, ValueError, "no examples in any corpus"),
        ({"examples": {"a": [Example((5, 2), (6, 2))], "b": []}}, ValueError, "no examples in b"),
        ({"metrics": ["nope"]}, ValueError, "no metric 'nope'"),
        ({"key": jax.random.key(0)}, ValueError, "nothing is drawn"),
        ({"examples": [Example((5000, 2), (6, 2))]}, ValueError, "5000"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(bot, corpora, changes, error, says):
    with pytest.raises(error, match=says):
        evaluate(bot, **{"examples": corpora["small"], **changes})


def test_a_missing_sacrebleu_is_told_before_any_work(bot, corpora, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    told = []
    with pytest.raises(ModuleNotFoundError, match=r"blenderbot-jax\[eval\]"):
        evaluate(bot, corpora, metrics=["sacrebleu"], on_progress=lambda *one: told.append(one))
    assert told == []


def test_sacrebleus_signatures_stand_in_the_report(bot, corpora):
    pytest.importorskip("sacrebleu")
    report = evaluate(bot, corpora["small"], metrics=["sacrebleu"])
    assert set(report.in_all.metrics) == {"sacrebleu", "chrf"}
    assert "nrefs:1" in json.loads(report.to_json())["signatures"]["sacrebleu"]


@pytest.mark.slow
def test_the_blocks_of_the_guide_run_in_order(tmp_path, monkeypatch, capsys):
    page = Path(__file__).parent.parent / "docs" / "evaluation.md"
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        with jax.numpy_dtype_promotion("standard"):  # as a user has it
            exec(compile(block, page.name, "exec"), names)
    assert capsys.readouterr().out
    assert names["report"].in_all.likelihood.examples == 3
    assert (tmp_path / "report.json").exists()
