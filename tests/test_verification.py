"""Verification: a checkpoint agrees with transformers, and one that does not is found out."""

import doctest
import json
import shutil
import sys

import jax
import numpy as np
import pytest
from flax.serialization import msgpack_serialize

from blenderbot_jax import verification
from blenderbot_jax.checkpoint import CheckpointError, save_pretrained
from blenderbot_jax.checkpoint.names import unflatten
from blenderbot_jax.hub import locate
from blenderbot_jax.pretrained import Checkpoint
from blenderbot_jax.verification import UTTERANCES, Comparison, verify_checkpoint
from tests.checkpoint_files import expected_leaves, random_tensors, tree_of

TEXTS = ("Hi!", "My friends are cool but they eat too many carbs.")


@pytest.fixture
def quick(tmp_path):
    """The bundled model under a recipe of few steps."""
    folder = tmp_path / "quick"
    shutil.copytree(locate("demo", ()), folder)
    recipe = json.loads((folder / "generation_config.json").read_text()) | {"num_beams": 2, "max_length": 10}
    (folder / "generation_config.json").write_text(json.dumps(recipe | {"min_length": 3}))
    return folder


@pytest.fixture
def libraries():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")


@pytest.mark.usefixtures("libraries")
def test_the_bundled_model_agrees(quick):
    seen = []
    compared = verify_checkpoint(quick, TEXTS, on_progress=lambda *numbers: seen.append(numbers))
    assert [one.utterance for one in compared] == list(TEXTS)
    assert all(one.equal and not one.tie and one.ours == one.theirs and one.ours for one in compared)
    assert all(0 < one.difference < 1e-4 for one in compared)
    assert all(one.largest > 1 for one in compared)
    assert all(one.passes(1e-4) for one in compared)
    assert not any(one.passes(1e-9) for one in compared)
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.usefixtures("libraries")
def test_other_weights_are_found_out(quick, monkeypatch):
    whole = Checkpoint.from_pretrained.__func__

    def changed(cls, folder, **options):
        found = whole(cls, folder, **options)
        params = jax.tree.map(lambda leaf: leaf, found.params)
        params["final_logits_bias"] = params["final_logits_bias"].at[0, 300].add(30.0)
        return cls(found.model, params, found.tokenizer, found.generation_config)

    monkeypatch.setattr(Checkpoint, "from_pretrained", classmethod(changed))
    [one] = verify_checkpoint(quick, TEXTS[:1])
    assert not one.equal
    assert not one.tie
    assert one.ours != one.theirs
    assert one.difference == pytest.approx(30, abs=1e-3)
    assert not one.passes(1e-4)


@pytest.mark.usefixtures("libraries")
def test_replies_that_score_alike_are_a_tie(quick, monkeypatch):
    class Pair(verification._Pair):
        def _our_reply(self, ids):
            return [*super()._our_reply(ids)[:-2], 300, 2]

        def _score(self, ids, reply):
            assert super()._score(ids, reply) < 0
            return -1.0

    monkeypatch.setattr(verification, "_Pair", Pair)
    [one] = verify_checkpoint(quick, TEXTS[:1])
    assert (one.equal, one.tie) == (False, True)
    assert one.passes(1e-4)


@pytest.mark.usefixtures("libraries")
def test_the_score_of_a_reply_is_the_one_transformers_gives_it(quick):
    import torch
    import transformers

    pair = verification._Pair(quick, torch, transformers)
    ids = np.asarray([pair.tokenizer(TEXTS[0])["input_ids"]])
    reply = pair._their_reply(ids)
    from tests.parity.generation import rescored

    expected = rescored(pair.reference, ids, np.ones_like(ids), reply, pair.recipe)
    assert pair._score(ids, reply) == pytest.approx(expected, abs=1e-9)


def test_a_tolerance_is_a_part_of_large_logits():
    def one(difference, largest, **same):
        return Comparison("", difference, largest, "", "", **{"equal": True, "tie": False, **same})

    assert one(9e-5, 0.1).passes(1e-4)
    assert not one(2e-4, 0.1).passes(1e-4)
    assert one(2e-3, 30).passes(1e-4)
    assert not one(float("nan"), 30).passes(1e-4)
    assert not one(0, 1, equal=False).passes(1e-4)
    assert one(0, 1, equal=False, tie=True).passes(1e-4)


def test_without_torch_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"torch.*: comparing needs PyTorch and transformers: pip install torch"):
        verify_checkpoint("demo")


@pytest.mark.usefixtures("libraries")
def test_what_transformers_cannot_read_is_refused(tmp_path, tiny_config):
    tiny_config.save_json(tmp_path / "config.json")
    leaves = expected_leaves(tiny_config, random_tensors(tiny_config), np.float32)
    (tmp_path / "flax_model.msgpack").write_bytes(msgpack_serialize(unflatten(leaves)))
    with pytest.raises(CheckpointError, match=r"Flax weights, which transformers 5 does not read: convert them first"):
        verify_checkpoint(tmp_path)


@pytest.mark.usefixtures("libraries")
def test_a_decoder_alone_is_refused(tmp_path, tiny_config):
    save_pretrained(tmp_path, tiny_config, tree_of(tiny_config, "ForCausalLM"))
    with pytest.raises(CheckpointError, match="holds a decoder alone"):
        verify_checkpoint(tmp_path)


def test_nothing_to_compare_is_refused():
    with pytest.raises(ValueError, match="at least one utterance"):
        verify_checkpoint("demo", [])


def test_there_are_ten_utterances_of_our_own():
    assert len(UTTERANCES) == len(set(UTTERANCES)) == 10


@pytest.mark.usefixtures("libraries")
def test_the_example_prints_what_it_shows(quick):
    result = doctest.testmod(verification, extraglobs={"folder": quick})
    assert (result.attempted, result.failed) == (1, 0)
