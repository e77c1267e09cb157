"""ParlAI's classifiers on our encoder, held to the same computation in numpy."""

import json

import numpy as np
import pytest

from blenderbot_jax import CheckpointError, SafetyClassifier
from blenderbot_jax.safety import Finding
from tests.parlai_classifiers import probabilities, tiny_options, write_classifier
from tests.parlai_files import write_archive, write_weights

TEXTS = ["hi", "the hi the", "a b c d e f", "", "hi, the. hi"]


def ids_of(classifier, text):
    return [1, *classifier.tokenizer.encode(text, add_special_tokens=False)[-classifier.max_tokens :], 2]


@pytest.mark.parametrize("reduction", ["first", "mean", "max"])
@pytest.mark.parametrize(
    ("variant", "changes"),
    [("xlm", {}), ("prelayernorm", {}), ("xlm", {"n_segments": 2, "output_scaling": 0.06, "embeddings_scale": False})],
)
def test_probabilities_are_those_of_the_plain_computation(tmp_path, variant, changes, reduction):
    options, state = write_classifier(tmp_path / "zoo", variant, reduction_type=reduction, **changes)
    classifier = SafetyClassifier.from_parlai(tmp_path / "zoo")
    wanted = [probabilities(state, options, ids_of(classifier, text)) for text in TEXTS]
    assert np.ptp(np.array(wanted)[:, 0]) > 1e-3  # texts differ
    np.testing.assert_allclose(classifier.probabilities(TEXTS), wanted, atol=1e-5)


def test_a_text_is_judged_alike_alone_and_among_others(tmp_path):
    write_classifier(tmp_path / "zoo", "xlm", reduction_type="max")
    classifier = SafetyClassifier.from_parlai(tmp_path / "zoo")
    many = classifier.probabilities([*TEXTS, *("hi " * n for n in range(40))])
    alone = [classifier.probabilities([text])[0] for text in TEXTS]
    np.testing.assert_allclose(many[: len(TEXTS)], alone, atol=1e-6)


def test_of_a_long_text_the_end_is_read(tmp_path):
    write_classifier(tmp_path / "zoo", "xlm")
    classifier = SafetyClassifier.from_parlai(tmp_path / "zoo")
    assert classifier.max_tokens == 22  # two less than the positions, for start and end
    tail = " ".join(["the"] * 22)
    found = classifier.probabilities(["hi " * 30 + tail, tail])
    np.testing.assert_array_equal(found[0], found[1])


def test_a_finding_names_class_and_probability_and_the_likelier_class_wins(tmp_path):
    write_classifier(tmp_path / "zoo", "xlm")
    classifier = SafetyClassifier.from_parlai(tmp_path / "zoo")
    scores = classifier.probabilities(TEXTS)
    wanted = [
        Finding(str(tmp_path / "zoo"), f"is __notok__ with probability {row[1]:.2f}") if row[1] > row[0] else None
        for row in scores
    ]
    assert classifier(TEXTS) == wanted


def test_a_threshold_is_of_the_first_class_which_the_reference_class_is(tmp_path):
    write_classifier(tmp_path / "zoo", "xlm", threshold=1e-9, ref_class="__notok__")
    classifier = SafetyClassifier.from_parlai(tmp_path / "zoo")
    assert classifier.classes == ("__notok__", "__ok__")
    assert all(classifier(TEXTS))
    write_classifier(tmp_path / "other", "xlm", threshold=1 - 1e-9, ref_class="__notok__")
    assert not any(SafetyClassifier.from_parlai(tmp_path / "other")(TEXTS))


def test_an_archive_is_the_folder_in_it(tmp_path):
    write_classifier(tmp_path / "zoo", "prelayernorm")
    archive = write_archive(tmp_path / "zoo.tgz", tmp_path / "zoo", "single_turn/")
    found = [SafetyClassifier.from_parlai(path).probabilities(TEXTS) for path in (archive, tmp_path / "zoo")]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"model": "transformer/generator"}, "a classifier's model is 'transformer/classifier', this one is"),
        ({"classes": None}, "classes must be two names or more, each once, not None"),
        ({"classes": ["a", "a"]}, r"classes must be two names or more, each once, not \['a', 'a'\]"),
        (
            {"reduction_type": "none", "threshold": "x"},
            "reduction_type must be first, mean, max.*threshold must be a num",
        ),
        ({"variant": "aiayn"}, "variant must be 'prelayernorm' or 'xlm', not 'aiayn'"),
        ({"classes": ["a", "b"]}, "knows no class '__notok__': say which of its classes 'a', 'b'"),
    ],
)
def test_what_is_no_such_classifier_is_refused(tmp_path, changes, rule):
    write_classifier(tmp_path / "zoo", "xlm")
    options = tiny_options("xlm") | changes
    (tmp_path / "zoo" / "model.opt").write_text(json.dumps(options))
    with pytest.raises(ValueError, match=rule):
        SafetyClassifier.from_parlai(tmp_path / "zoo")


def test_weights_that_do_not_fit_the_options_are_named(tmp_path):
    _, state = write_classifier(tmp_path / "zoo", "xlm")
    del state["transformer.layers.1.norm2.bias"]
    state["additional_linear_layer.weight"] = np.zeros((3, 24), np.float32)
    write_weights(tmp_path / "zoo" / "model", state | {"stray": np.zeros(1, np.float32)})
    with pytest.raises(CheckpointError) as caught:
        SafetyClassifier.from_parlai(tmp_path / "zoo")
    for said in ("unexpected: stray", "missing: transformer.layers.1.norm2.bias", "is [3, 24], the options"):
        assert said in str(caught.value)


def test_a_damaged_file_and_a_missing_one_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no checkpoint of ParlAI"):
        SafetyClassifier.from_parlai(tmp_path)
    write_classifier(tmp_path / "zoo", "xlm")
    path = tmp_path / "zoo" / "model"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match="model"):
        SafetyClassifier.from_parlai(tmp_path / "zoo")


def test_a_single_text_is_not_taken_for_a_list_of_letters(tmp_path):
    write_classifier(tmp_path / "zoo", "xlm")
    with pytest.raises(TypeError, match="texts are a list"):
        SafetyClassifier.from_parlai(tmp_path / "zoo")("hi")


def test_a_description_tells_weights_and_classes(tmp_path):
    write_classifier(tmp_path / "zoo", "xlm")
    write_classifier(tmp_path / "same", "xlm")
    write_classifier(tmp_path / "other", "xlm", threshold=0.9, ref_class="__notok__")
    zoo, same, other = (SafetyClassifier.from_parlai(tmp_path / name).description for name in ("zoo", "same", "other"))
    assert zoo == same != other
