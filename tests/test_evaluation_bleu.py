"""BLEU: values by hand, and NLTK's rules written a second time in exact fractions."""

import math
import sys
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blenderbot_jax.evaluation.bleu import citable_scores, corpus_bleu, sentence_bleu
from blenderbot_jax.evaluation.metrics import METRICS, text_metrics

SENTENCES = st.lists(st.sampled_from(["i", "do", "not", "dogs"]), max_size=9).map(" ".join)
REFERENCES = st.lists(SENTENCES, min_size=1, max_size=3)


def runs(items, n):
    return [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]


def plain_counts(reply, references, n):
    """Matches and n-grams of a reply: each different n-gram as often as some one reference has it, at most."""
    ours = runs(reply, n)
    shared = sum(min(ours.count(run), max(runs(one, n).count(run) for one in references)) for run in set(ours))
    return shared, len(ours)


def plain_closest(reply, references):
    """The shortest of the references whose length is nearest."""
    nearest = min(abs(len(one) - len(reply)) for one in references)
    return min(len(one) for one in references if abs(len(one) - len(reply)) == nearest)


def plain_penalty(length, reference):
    return 0.0 if length == 0 else min(1.0, math.exp(1 - reference / length))


def plain_sentence_bleu(reply, references, n):
    """`nltk.translate.bleu_score.sentence_bleu` with `SmoothingFunction(epsilon=1e-12).method1`, as ParlAI calls it."""
    ours, theirs = reply.split(" "), [one.split(" ") for one in references]
    precisions = []
    for order in range(1, n + 1):
        shared, total = plain_counts(ours, theirs, order)
        precisions.append((Fraction(shared) if shared else Fraction(1, 10**12)) / max(total, 1))
    if precisions[0] <= Fraction(1, 10**12):
        return 0.0
    mean = math.prod(float(one) ** (1 / n) for one in precisions)
    return plain_penalty(len(ours), plain_closest(ours, theirs)) * mean


@pytest.mark.parametrize(
    ("reply", "references", "n", "wanted"),
    [
        ("i love my two dogs so much", "i love my two dogs a lot", 4, (5 / 7 * 4 / 6 * 3 / 5 * 2 / 4) ** 0.25),
        ("i love my two dogs so much", "i love my two dogs a lot", 1, 5 / 7),
        ("i do not know", "i do not know", 4, 1.0),
        # Two of four words, and no pair: what does not match has precision 1e-12 / 3.
        ("dogs i cats know", "i know", 2, math.sqrt(2 / 4 * 1e-12 / 3)),
        ("i do", "i do not know", 2, math.exp(1 - 4 / 2)),
        # Of two references equally near, the shorter one.
        ("i do not", ["i do", "i do not know"], 1, 1.0),
        ("no", "yes", 4, 0.0),
        ("the the the", "cat", 1, 0.0),
        # Clipped: the reference has the word once (Papineni et al., 2002).
        ("no no no", "no way man", 1, 1 / 3),
    ],
)
def test_sentence_bleu_by_hand(reply, references, n, wanted):
    assert sentence_bleu(reply, references, n) == pytest.approx(wanted, rel=1e-12)


@given(SENTENCES, REFERENCES, st.integers(1, 4))
def test_sentence_bleu_is_nltks_with_parlais_smoothing(reply, references, n):
    assert sentence_bleu(reply, references, n) == pytest.approx(plain_sentence_bleu(reply, references, n), rel=1e-9)


def test_corpus_bleu_by_hand():
    replies, references = ["we like music", "i love my two dogs"], ["so do i", "i love my two dogs"]
    assert corpus_bleu(replies, references) == pytest.approx((5 / 8 * 4 / 6 * 3 / 4 * 2 / 2) ** 0.25)
    assert corpus_bleu(replies[:1], references[:1]) == 0
    # Four words against six: nothing but the length is wrong.
    assert corpus_bleu(["i love my two dogs"], ["i love my two dogs very much"], 2) == pytest.approx(
        math.exp(1 - 7 / 5)
    )


@given(st.lists(st.tuples(SENTENCES, REFERENCES), min_size=1, max_size=5), st.integers(1, 4))
def test_corpus_bleu_sums_counts_before_it_divides(pairs, n):
    replies, references = [reply.split() for reply, _ in pairs], [[one.split() for one in right] for _, right in pairs]
    matches = [
        [plain_counts(reply, right, order) for reply, right in zip(replies, references, strict=True)]
        for order in range(1, n + 1)
    ]
    totals = [[sum(column) for column in zip(*one, strict=True)] for one in matches]
    length = sum(map(len, replies))
    closest = sum(plain_closest(*pair) for pair in zip(replies, references, strict=True))
    wanted = 0.0
    if all(shared for shared, _ in totals):
        wanted = plain_penalty(length, closest) * math.prod((shared / total) ** (1 / n) for shared, total in totals)
    assert corpus_bleu(*zip(*pairs, strict=True), n) == pytest.approx(wanted)


def test_pairs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="2 replies, 1 of them"):
        corpus_bleu(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="no replies"):
        corpus_bleu([], [])
    with pytest.raises(TypeError, match="list of replies"):
        corpus_bleu("hello", ["hello"])


def test_without_sacrebleu_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'blenderbot-jax\[eval\]'"):
        citable_scores(["hi"], ["hi"])
    with pytest.raises(ModuleNotFoundError, match=r"blenderbot-jax\[eval\]"):
        text_metrics(["hi"], ["hi"], ["f1", "sacrebleu"])


def test_citable_scores_are_sacrebleus_own():
    sacrebleu = pytest.importorskip("sacrebleu")
    replies = ["The dog bit the man.", "It was not unexpected.", "Yes."]
    found = citable_scores(replies, [["The dog had bit the man."], ["It was not at all unexpected."], ["Yes, I do."]])
    streams = [["The dog had bit the man.", "It was not at all unexpected.", "Yes, I do."]]
    assert found.bleu == pytest.approx(sacrebleu.corpus_bleu(replies, streams).score)
    assert found.chrf == pytest.approx(sacrebleu.corpus_chrf(replies, streams).score)
    assert f"version:{sacrebleu.__version__}" in found.bleu_signature
    assert "nrefs:1" in found.bleu_signature
    several = citable_scores(replies, [["The dog bit the man.", "A dog bit him."], "It was not unexpected.", ["Yes."]])
    assert several.bleu == pytest.approx(100)
    assert "nrefs:var" in several.bleu_signature


def test_all_metrics_but_sacrebleu_come_by_default():
    found = text_metrics(["i do not know", "no no no no"], ["i do not know", ["yes", "no way"]])
    assert list(found) == [
        "f1", "exact_match", "bleu-4", "corpus_bleu-1", "corpus_bleu-2", "corpus_bleu-3", "corpus_bleu-4",
        "rouge-1", "rouge-2", "rouge-L", "intradistinct-1", "intradistinct-2", "interdistinct-1", "interdistinct-2",
        "repeated-1", "repeated-3", "repeating-3", "words", "reference_words",
    ]  # fmt: skip
    # Of the second reply one word in four is right, and one of two is found.
    assert found["f1"] == pytest.approx((1 + 2 / 6) / 2)
    assert found["exact_match"] == 0.5
    assert found["corpus_bleu-1"] == pytest.approx(5 / 8)
    assert found["rouge-2"] == 0.5
    assert (found["interdistinct-1"], found["intradistinct-1"]) == (5 / 8, 5 / 8)
    assert (found["repeated-1"], found["repeated-3"], found["repeating-3"]) == (3 / 8, 1 / 4, 0.5)
    assert (found["words"], found["reference_words"]) == (4, 2.5)


def test_metrics_come_by_name():
    assert set(text_metrics(["a"], ["a"], ["distinct"])) == {
        f"int{kind}distinct-{n}" for kind in ("ra", "er") for n in (1, 2)
    }
    assert text_metrics(["hi"], ["hi"], ["f1", "f1"]) == {"f1": 1.0}
    with pytest.raises(ValueError, match="no metric 'meteor': take some of f1, exact"):
        text_metrics(["a"], ["a"], ["f1", "meteor"])
    with pytest.raises(TypeError, match=r"as in \['f1'\]"):
        text_metrics(["a"], ["a"], "f1")
    assert "sacrebleu" in METRICS
