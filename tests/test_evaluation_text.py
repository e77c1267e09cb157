"""Metrics of a text against references: values by hand, and rules written a second time, as plainly as they go."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blenderbot_jax.evaluation.text import exact_match, f1, normalized, rouge_l, rouge_n, words

TEXTS = st.text(alphabet=string.printable + "éß’", max_size=40)
# Few words, so that texts share some.
SENTENCES = st.lists(st.sampled_from(["i", "do", "not", "dogs", "like"]), max_size=7).map(" ".join)


def plainly_normalized(text):
    """ParlAI's rule letter by letter; its two patterns agree with this on texts whose marks are all ASCII."""
    spaced = "".join(" " if letter in string.punctuation else letter for letter in text.lower())
    return " ".join(word for word in spaced.split() if word not in ("a", "an", "the"))


def plain_overlap(reply, reference):
    """Words of a reply that can be crossed out of the reference, one for one."""
    left, shared = reference.split(), 0
    for word in reply.split():
        if word in left:
            left.remove(word)
            shared += 1
    return shared


def subsequences(items):
    """All of them, as tuples."""
    if not items:
        return {()}
    rest = subsequences(items[1:])
    return rest | {(items[0], *one) for one in rest}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The cat's on a MAT, isn't it?", "cat s on mat isn t it"),
        ("An apple; the end.", "apple end"),
        ("A", ""),
        ("anthem, lathe, banana", "anthem lathe banana"),
        ("  two\twords\n", "two words"),
        ("under_score & co.", "under score co"),
        ('well-known <b>tags</b> `[x]` \\ ^ ~ {y} | "q"', "well known b tags b x y q"),
        ("$5 + 3% = #1 @home!", "5 3 1 home"),
        # Only ASCII marks are punctuation to ParlAI, though a curly apostrophe ends the article before it.
        ("Don’t… a’b", "don’t… ’b"),
        ("ÉTÉ", "été"),
    ],
)
def test_texts_are_normalised_as_parlai_does(text, wanted):
    assert normalized(text) == wanted
    assert words(text) == wanted.split()


@given(st.text(alphabet=string.printable, max_size=60))
def test_normalising_is_punctuation_to_spaces_then_articles_out(text):
    assert normalized(text) == plainly_normalized(text)


@given(TEXTS)
def test_normalising_twice_is_once(text):
    assert normalized(normalized(text)) == normalized(text)


@pytest.mark.parametrize(
    ("reply", "references", "wanted"),
    [
        ("I love dogs", "i love dogs!", 1.0),
        ("I love the dogs!", ["i love cats", "We all love dogs."], 2 / 3),
        ("no no no", "no", 0.5),  # one of three words is right, and all of one is found
        ("yes", "no", 0.0),
        ("", "no", 0.0),
        ("the", "a", 0.0),  # nothing is left of either
        ("i do", ["no", "i do not", "you do"], 4 / 5),
    ],
)
def test_f1_by_hand(reply, references, wanted):
    assert f1(reply, references) == pytest.approx(wanted)


@given(SENTENCES, SENTENCES)
def test_f1_is_the_harmonic_mean_of_precision_and_recall_of_crossed_out_words(reply, reference):
    shared = plain_overlap(reply, reference)
    wanted = 0.0
    if shared:
        precision, recall = shared / len(reply.split()), shared / len(reference.split())
        wanted = 2 * precision * recall / (precision + recall)
        assert rouge_n(reply, reference, 1, statistic="precision") == pytest.approx(precision)
        assert rouge_n(reply, reference, 1, statistic="recall") == pytest.approx(recall)
    assert f1(reply, reference) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("reply", "references", "wanted"),
    [("Yes, I do!", "yes i do", 1.0), ("Yes.", ["no", "The yes"], 1.0), ("Yes.", "Yes no", 0.0), ("", "a", 1.0)],
)
def test_exact_match_is_of_normalised_texts(reply, references, wanted):
    assert exact_match(reply, references) == wanted


@pytest.mark.parametrize(
    ("n", "reply", "references", "statistic", "wanted"),
    [
        (2, "i love my two dogs", "i love dogs", "f1", 2 / 6),
        (2, "i love my two dogs", "i love dogs", "precision", 1 / 4),
        (2, "i love my two dogs", "i love dogs", "recall", 1 / 2),
        (2, "dogs", "dogs", "f1", 0.0),  # a single word has no pairs
        (1, "i do", ["x", "i do not"], "recall", 2 / 3),
    ],
)
def test_rouge_n_by_hand(n, reply, references, statistic, wanted):
    assert rouge_n(reply, references, n, statistic=statistic) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("reply", "references", "statistic", "wanted"),
    [
        ("i love my two dogs", "i love dogs", "f1", 6 / 8),
        ("dogs love i", "i love dogs", "f1", 2 / 6),  # only one word at a time is in order
        ("i love my two dogs", "i love dogs", "recall", 1.0),
        ("police killed the gunman", "police kill the gunman", "f1", 2 / 3),  # Lin (2004), without the article
        ("", "i", "f1", 0.0),
    ],
)
def test_rouge_l_by_hand(reply, references, statistic, wanted):
    assert rouge_l(reply, references, statistic=statistic) == pytest.approx(wanted)


@given(SENTENCES, SENTENCES)
def test_rouge_l_is_of_the_longest_sequence_in_both(reply, reference):
    common = max(map(len, subsequences(tuple(reply.split())) & subsequences(tuple(reference.split()))))
    wanted = 2 * common / (len(reply.split()) + len(reference.split())) if common else 0.0
    assert rouge_l(reply, reference) == pytest.approx(wanted)


@given(SENTENCES, st.lists(SENTENCES, min_size=1, max_size=4))
def test_of_several_references_the_best_counts(reply, references):
    for score in (f1, exact_match, rouge_l, lambda one, right: rouge_n(one, right, 2)):
        assert score(reply, references) == max(score(reply, one) for one in references)


def test_no_references_are_refused():
    for score in (f1, exact_match, rouge_l):
        with pytest.raises(ValueError, match="at least one reference"):
            score("hi", [])
