"""`blenderbot-jax explain` as its users meet it."""

import re

import numpy as np
import pytest

from blenderbot_jax.attribution import attribution
from blenderbot_jax.chatbot import Chatbot
from blenderbot_jax.checkpoint import save_pretrained
from blenderbot_jax.cli import main
from blenderbot_jax.model import BlenderbotForConditionalGeneration
from blenderbot_jax.pretrained import Checkpoint
from blenderbot_jax.scoring import token_log_probs
from blenderbot_jax.tokenizer import BlenderbotSmallTokenizer
from tests.commands import Typed
from tests.golden.fill import golden_params
from tests.test_tokenizer_small import MERGES, VOCAB

CONTEXT, REPLY = "Do you like dogs? You do?", "I love dogs."
SHOWN = ("Do", "you", "like", "dogs", "?#1", "You", "do", "?#2", "</s>")
WEIGHT = re.compile(r"(\S+) ([-+]\d+\.\d\d|\d+%)")
TYPED = Typed(main, ("explain",))
run, output, refusal = TYPED.run, TYPED.output, TYPED.refusal


def rows(text):
    """The rows of the table: token, log p, and the tokens that moved it."""
    found = re.findall(r"^  (\S.*?) +(-?\d+\.\d\d)   (.+?) *$", text, re.MULTILINE)
    return [(token, float(log_prob), WEIGHT.findall(moved)) for token, log_prob, moved in found]


@pytest.fixture(scope="module")
def demo():
    return Checkpoint.from_pretrained("demo")


@pytest.fixture(scope="module")
def batch(demo):
    context, reply = (np.array([demo.tokenizer.encode(text)]) for text in (CONTEXT, REPLY))
    return demo.model, demo.params, context, np.ones_like(context), reply


@pytest.fixture
def stubbed(monkeypatch):
    """Numbers of the right shape, where real ones would only compile programs; the list holds what was asked."""
    asked = []

    def weights(*batch, method):
        del method
        asked.append(batch)
        return np.ones((1, batch[4].shape[1], batch[2].shape[1]))

    monkeypatch.setattr("blenderbot_jax.cli.explain.token_log_probs", lambda *batch: -np.ones(batch[4].shape))
    monkeypatch.setattr("blenderbot_jax.cli.explain.attribution", weights)
    return asked


@pytest.fixture(scope="module")
def shown():
    return output(CONTEXT, REPLY, "--top", len(SHOWN))


def test_every_token_has_its_log_probability_and_the_whole_their_sum(batch, shown):
    log_probs = np.asarray(token_log_probs(*batch))[0]
    *tokens, whole = rows(shown)
    assert [token for token, _, _ in tokens] == ["I", "love", "dogs", ".", "</s>"]
    np.testing.assert_allclose([log_prob for _, log_prob, _ in tokens], log_probs, atol=0.0051)
    assert whole[0] == "in all"
    assert whole[1] == pytest.approx(log_probs.sum(), abs=0.0051)


def test_every_token_has_what_moved_it_strongest_first(batch, shown):
    weights = np.asarray(attribution(*batch))[0]
    wanted = [*weights, weights.sum(axis=0)]
    for (_, _, moved), values in zip(rows(shown), wanted, strict=True):
        sizes = [abs(float(weight)) for _, weight in moved]
        assert sizes == sorted(sizes, reverse=True)
        by_name = {name: float(weight) for name, weight in moved}
        np.testing.assert_allclose([by_name[name] for name in SHOWN], values, atol=0.0051)


def test_attention_is_shown_in_shares_and_as_many_as_asked_for(batch, tmp_path):
    shown = output(CONTEXT, REPLY, "--method", "cross_attention", "--top", 2)
    weights = np.asarray(attribution(*batch, method="cross_attention"))[0]
    for (_, _, looked), values in zip(rows(shown), [*weights, weights.mean(axis=0)], strict=True):
        assert [name for name, _ in looked] == [SHOWN[place] for place in np.argsort(-values)[:2]]
        assert [share for _, share in looked] == [f"{value:.0%}" for value in sorted(values, reverse=True)[:2]]


def test_without_a_reply_the_models_own_is_explained(demo, stubbed):
    own = Chatbot(demo, demo.generation_config).reply(CONTEXT)
    tokens = [demo.tokenizer.decode([token]).strip() for token in demo.tokenizer.encode(own)]
    assert [token for token, _, _ in rows(output(CONTEXT))] == [*tokens, "in all"]


def test_a_picture_is_drawn_of_all_weights(shown, tmp_path):
    pytest.importorskip("matplotlib", reason="pictures are drawn with matplotlib")
    path = tmp_path / "moved.png"
    assert output(CONTEXT, REPLY, "--plot", path).splitlines()[-1] == f"drawn in {path}"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_90m_model_reads_and_ends_as_it_was_trained(tiny_small_config, tmp_path, stubbed):
    config = tiny_small_config.replace(vocab_size=len(VOCAB))
    tokenizer = BlenderbotSmallTokenizer(VOCAB, MERGES, mode="parlai")
    params = golden_params(BlenderbotForConditionalGeneration(config))
    save_pretrained(tmp_path, config, params, tokenizer=tokenizer)
    shown = output("Hi, act!", "hi adapt", "--model", tmp_path)
    [(_, _, context, _, reply)] = stubbed
    assert context[0].tolist() == tokenizer.encode("Hi, act!")
    assert reply[0].tolist() == [*tokenizer.encode("hi adapt"), tokenizer.eos_token_id]
    assert rows(shown)[-2][0] == "__end__"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "Missing argument 'CONTEXT'"),
        ((" ", REPLY), "must not be empty"),
        ((CONTEXT, " "), "the REPLY is empty: leave it out"),
        ((CONTEXT, "dogs " * 200), r"the REPLY has 201 tokens, but this model knows positions for 128"),
        ((CONTEXT, REPLY, "--method", "lime"), "'lime' is not one of"),
        ((CONTEXT, REPLY, "--top", 0), "--top"),
        ((CONTEXT, REPLY, "--plot", "moved.xyz"), "the ending of a picture says its format"),
        ((CONTEXT, REPLY, "--model", "no such folder"), "no such folder"),
        ((CONTEXT, REPLY, "--beams", 3), "No such option"),
    ],
)
def test_wrong_input_is_refused_in_one_line(arguments, says):
    line = refusal(*arguments)
    assert line.startswith("Error: ")
    assert says in line


def test_a_missing_matplotlib_is_told_in_one_line(monkeypatch):
    def missing(path):
        raise ModuleNotFoundError("pip install 'blenderbot-jax[plot]'")

    monkeypatch.setattr("blenderbot_jax.cli.explain.check_picture", missing)
    assert "blenderbot-jax[plot]" in refusal(CONTEXT, REPLY, "--plot", "moved.png")


def test_what_did_not_fit_is_told(stubbed):
    result = run("dogs " * 200, REPLY)
    assert result.exit_code == 0
    assert len(stubbed[0][2][0]) == 128
    assert "the first 73 tokens of the context did not fit" in result.stderr


def test_help_shows_examples_and_every_option_says_what_it_does():
    assert re.search(r"Examples:\n\s+blenderbot-jax explain ", output("--help"))
    assert all(
        option.param_type_name == "argument" or option.help for option in main.get_command(None, "explain").params
    )
