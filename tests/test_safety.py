"""Filters of phrases, and filters one behind the other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blenderbot_jax.safety import Finding, PhraseFilter, first_findings
from blenderbot_jax.safety.phrases import PREFIXES, SUFFIXES, words


def found(phrases, text, **options):
    [finding] = PhraseFilter(phrases, **options)([text])
    return finding and finding.reason


@pytest.mark.parametrize(
    "text",
    [
        "a rock band",
        "Rock-Band!",
        "ROCK  BAND",
        "rock\nband",
        "\uff32ock band",
        "the (rock) 'band'",
        "subrock band",
        "rock bands",
    ],
)
def test_a_phrase_is_found_in_any_dress(text):
    assert found(["rock band"], text) == "holds the phrase 'rock band'"


@pytest.mark.parametrize("text", ["rock and band", "rockband", "bedrock band", "rock bandana", "band rock", ""])
def test_other_words_are_no_phrase(text):
    assert found(["rock band"], text) is None


def test_every_beginning_and_ending_counts_but_for_what_is_allowed():
    for form in (*(prefix + "zorb" for prefix in PREFIXES), *("zorb" + suffix for suffix in SUFFIXES)):
        assert found(["zorb"], f"so {form} it is"), form
        assert found(["zorb"], f"so {form} it is", allowed=[form]) is None
    assert found(["butt"], "bread and butter") is None
    assert found(["butt"], "bread and butts")


def test_a_curly_apostrophe_is_an_apostrophe():
    assert found(["don't panic"], "Don\u2019t panic!") == 'holds the phrase "don\'t panic"'


def test_the_first_phrase_of_each_text_is_named_by_the_filter():
    findings = PhraseFilter(["tea", "milk"], name="drinks")(["Milk in your tea?", "No.", "Tea, no milk."])
    assert findings == [Finding("drinks", "holds the phrase 'milk'"), None, Finding("drinks", "holds the phrase 'tea'")]


@pytest.mark.parametrize(
    ("phrases", "error", "rule"),
    [
        ([], ValueError, "no phrase to look for"),
        (["tea", "!?"], ValueError, r"at least one letter or digit, '!\?' has none"),
        ("tea", TypeError, r"write \['tea'\]"),
    ],
)
def test_a_list_that_cannot_be_one_is_refused(phrases, error, rule):
    with pytest.raises(error, match=rule):
        PhraseFilter(phrases)


def test_a_file_has_a_phrase_a_line_and_remarks(tmp_path):
    path = tmp_path / "drinks.txt"
    path.write_text("# drinks\n\ntea\n  iced coffee \n", encoding="utf-8-sig")
    one = PhraseFilter.from_file(path)
    assert (one.phrases, one.name) == (("tea", "iced coffee"), "drinks.txt")
    assert PhraseFilter.from_file(path, name="drinks").name == "drinks"
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"drinks\.txt: the file must be UTF-8 text; byte 3 is not"):
        PhraseFilter.from_file(path)
    path.write_text("# nothing\n")
    with pytest.raises(ValueError, match=r"drinks\.txt: there is no phrase"):
        PhraseFilter.from_file(path)


@given(
    st.lists(st.sampled_from(["tea", "milk", "and", "iced", "coffee"]), max_size=8),
    st.sampled_from([" ", "-", ", ", "\n"]),
)
def test_phrases_are_found_as_a_search_over_all_places_finds_them(said, between):
    plain = next(
        (
            phrase
            for i in range(len(said))
            for n, phrase in ((1, "tea"), (2, "iced coffee"))
            if " ".join(said[i : i + n]) == phrase
        ),
        None,
    )
    assert found(["iced coffee", "tea"], between.join(said)) == (plain and f"holds the phrase {plain!r}")


@given(st.text(max_size=40))
def test_any_text_is_looked_at_and_a_phrase_of_its_own_words_is_found(text):
    if said := words(text):
        assert found([" ".join(said)], text)


def test_a_later_filter_sees_only_what_earlier_ones_let_pass():
    seen = []

    def second(texts):
        seen.extend(texts)
        return [Finding("second", "there") if "b" in text else None for text in texts]

    findings = first_findings([PhraseFilter(["tea"]), second], ["tea b", "b", "", "c"])
    assert seen == ["b", "c"]
    assert [finding and finding.filter for finding in findings] == ["phrases", "second", None, None]


def test_a_filter_that_leaves_texts_out_is_refused():
    with pytest.raises(ValueError, match="gave 1 for 2 texts"):
        first_findings([lambda texts: [None]], ["a", "b"])
