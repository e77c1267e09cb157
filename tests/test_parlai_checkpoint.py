"""ParlAI's checkpoints load like any other, in every form they have, and nothing in them is run or read in vain."""

import os
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from blenderbot_jax import Chatbot, Checkpoint, Conversation
from blenderbot_jax.checkpoint import CheckpointError
from blenderbot_jax.checkpoint.folder import tensor_entries, weights_in
from blenderbot_jax.checkpoint.names import flatten
from blenderbot_jax.checkpoint.parlai_file import sinusoids
from blenderbot_jax.checkpoint.tensor_file import TensorEntry
from blenderbot_jax.checkpoint.torch_file import read_torch
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.generation import GenerationConfig
from blenderbot_jax.hub import locate
from blenderbot_jax.model import BlenderbotForCausalLM, BlenderbotForConditionalGeneration, BlenderbotModel
from blenderbot_jax.tokenizer import BlenderbotSmallTokenizer, BlenderbotTokenizer, load_tokenizer
from tests.checkpoint_files import SHARED, assert_same, expected_leaves, load, refusal
from tests.fuzzing import at_most, damaged, generator, refused_or_consistent
from tests.parlai_files import (
    TINY,
    dictionary,
    published_tensors,
    sinusoidal,
    state_of,
    tiny_config,
    write_archive,
    write_checkpoint,
    write_small_files,
    write_weights,
)
from tests.torch_pickles import EMPTY_DICT, EMPTY_TUPLE, call, items, number, symbol, text

VARIANTS = ("prelayernorm", "xlm")


def leaves(variant, tensors, dtype=np.float32):
    config = tiny_config(variant)
    bias = {"final_logits_bias": np.zeros((1, config.vocab_size), np.float32)}
    return expected_leaves(config, tensors | bias, dtype)


def change_options(folder, **changes):
    write_small_files(folder, "prelayernorm", TINY["prelayernorm"] | changes)


# Every form.


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize(("dtype", "training"), [("float16", True), ("float32", False)])
def test_every_form_gives_the_same_parameters(tmp_path, variant, container, dtype, training):
    folder = tmp_path / "blender"
    tensors = write_checkpoint(folder, variant, dtype=dtype, container=container, training=training)
    assert_same(load(folder), leaves(variant, tensors))
    assert_same(load(folder / "model"), leaves(variant, tensors))
    archive = write_archive(tmp_path / "blender.tgz", folder, "blender_3B/")
    assert_same(load(archive, jnp.float16), leaves(variant, tensors, np.float16))


def test_the_state_of_training_may_stand_before_the_model(tmp_path):
    tensors = write_checkpoint(tmp_path, "xlm", training=True, first=True)
    assert_same(load(tmp_path), leaves("xlm", tensors))


def test_weights_of_another_name_are_given_by_their_path(tmp_path):
    tensors = write_checkpoint(tmp_path, "prelayernorm", name="my_model.checkpoint")
    assert_same(load(tmp_path / "my_model.checkpoint"), leaves("prelayernorm", tensors))


def test_a_published_folder_is_not_taken_for_one_of_parlai(tmp_path):
    write_checkpoint(tmp_path, "prelayernorm")
    tiny_config("prelayernorm").save_json(tmp_path / "config.json")
    assert locate(tmp_path, ()) == tmp_path


@pytest.mark.parametrize("cls", [BlenderbotModel, BlenderbotForCausalLM])
def test_the_other_models_take_their_part_of_it(tmp_path, cls):
    tensors = write_checkpoint(tmp_path, "prelayernorm")
    whole = leaves("prelayernorm", tensors)
    root = "model/" if cls is BlenderbotModel else ""
    for path, leaf in flatten(cls.from_pretrained(tmp_path)[1]).items():
        np.testing.assert_array_equal(leaf, whole[root + path], err_msg=path)


@pytest.mark.slow
def test_a_checkpoint_talks(tmp_path):
    write_checkpoint(tmp_path, "prelayernorm", training=True)
    checkpoint = Checkpoint.from_pretrained(tmp_path)
    config = checkpoint.generation_config.replace(num_beams=2, min_length=3, max_length=8)
    assert isinstance(Chatbot(checkpoint, config).reply("hello"), str)


def test_everything_loads_together(tmp_path):
    write_checkpoint(tmp_path, "prelayernorm", training=True)
    checkpoint = Checkpoint.from_pretrained(tmp_path)
    assert checkpoint.model.config == BlenderbotConfig.from_pretrained(tmp_path) == tiny_config("prelayernorm")
    assert checkpoint.tokenizer == load_tokenizer(tmp_path) == BlenderbotTokenizer.from_pretrained(tmp_path)
    assert checkpoint.tokenizer.model_max_length == 24
    assert checkpoint.generation_config == GenerationConfig.from_pretrained(tmp_path)
    assert (checkpoint.generation_config.num_beams, checkpoint.generation_config.max_length) == (10, 24)
    hello = checkpoint.tokenizer.convert_tokens_to_ids("Ġhello")
    assert checkpoint.tokenizer.encode("hello") == [hello, 2] == [8 + 256 + 4, 2]


def test_the_90m_model_is_spoken_to_as_it_was_trained(tmp_path):
    write_checkpoint(tmp_path, "xlm")
    checkpoint = Checkpoint.from_pretrained(tmp_path)
    tokenizer = checkpoint.tokenizer
    assert tokenizer == BlenderbotSmallTokenizer.from_pretrained(tmp_path)
    assert tokenizer.mode == "parlai"
    ids = {token: i for i, token in enumerate(dictionary("xlm"))}
    assert tokenizer.encode("Hi\nthe") == [ids["hi"], ids["__newln__"], ids["the"]]
    talk = Conversation().add("user", "hi").add("bot", "the")
    assert checkpoint.encode(talk).input_ids == (ids["hi"], ids["__newln__"], ids["the"])


def test_a_folder_is_told_once_and_anew_when_it_changes(tmp_path):
    write_checkpoint(tmp_path, "prelayernorm")
    first = locate(tmp_path, ("*.bin",))
    assert locate(tmp_path, ("*.json",)) == first
    change_options(tmp_path, dropout=0.25)
    assert locate(tmp_path, ()) != first
    assert BlenderbotConfig.from_pretrained(tmp_path).dropout == 0.25
    assert weights_in(first)[1].resolve() == tmp_path / "model"


@pytest.mark.slow
def test_int8_is_made_of_it_as_of_any_other(tmp_path):
    write_checkpoint(tmp_path, "prelayernorm")
    params = Checkpoint.from_pretrained(tmp_path, quantize="int8").params
    assert params["model"]["encoder"]["layers"]["0"]["fc1"]["kernel"].values.dtype == jnp.int8


@pytest.mark.parametrize("delimiter", [None, "\n", "  ", " EOU "])
def test_turns_are_joined_as_in_training(tmp_path, delimiter):
    options = TINY["prelayernorm"] | {"delimiter": delimiter}
    write_checkpoint(tmp_path, "prelayernorm")
    write_small_files(tmp_path, "prelayernorm", options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint = Checkpoint.from_pretrained(tmp_path)
    # What a 9.4B model's options leave out is a newline.
    joint = checkpoint.tokenizer.encode(delimiter or "\n", add_special_tokens=False)
    hello = checkpoint.tokenizer.convert_tokens_to_ids("Ġhello")
    talk = Conversation().add("user", "hello").add("bot", "hello")
    assert checkpoint.encode(talk).input_ids == (hello, *joint, hello, 2)


def test_another_delimiter_than_a_newline_is_told_of_the_90m_model(tmp_path):
    write_small_files(tmp_path, "xlm", TINY["xlm"] | {"delimiter": "  "})
    with pytest.warns(UserWarning, match=r"by '  ' in training; Conversation joins them by '\\n'"):
        BlenderbotConfig.from_pretrained(tmp_path)


def test_the_usual_delimiter_of_the_90m_model_is_no_matter(tmp_path):
    write_checkpoint(tmp_path, "xlm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BlenderbotConfig.from_pretrained(tmp_path)


# What is read.


def test_only_the_weights_are_read_of_a_file_with_the_state_of_training(tmp_path, monkeypatch):
    read, taken = TensorEntry.read, []
    monkeypatch.setattr(TensorEntry, "read", lambda entry: taken.append(entry) or read(entry))
    for container in ("zip", "legacy"):
        folder = tmp_path / container
        write_checkpoint(folder, "prelayernorm", container=container, training=True)
        taken.clear()
        load(folder)
        whole = sum(array.nbytes for array in published_tensors("prelayernorm").values())
        assert sum(entry.nbytes for entry in taken) == whole
        assert (folder / "model").stat().st_size > 3 * whole


def test_a_file_of_weights_with_holes_for_the_optimizer_takes_no_time(tmp_path):
    # Were it read, 8 GB would come into memory.
    tensors = published_tensors("xlm")
    write_small_files(tmp_path, "xlm")
    assembly = write_weights(tmp_path / "model", state_of(tensors), container="legacy", training=True)
    size = (tmp_path / "model").stat().st_size
    last = assembly[sorted(assembly)[-1]]
    data = (tmp_path / "model").read_bytes()
    huge = 2**33
    begin = size - last.nbytes - 8
    key = sorted(assembly)[-1]
    old, new = number(last.size), number(huge // last.itemsize)
    named = text(key) + text("cpu") + old
    assert data.count(named) == 1
    data = data[:begin].replace(named, text(key) + text("cpu") + new) + (huge // last.itemsize).to_bytes(8, "little")
    (tmp_path / "model").write_bytes(data)
    os.truncate(tmp_path / "model", len(data) + huge)
    assert_same(load(tmp_path), leaves("xlm", tensors))


def test_aliases_are_compared_and_may_be_missing(tmp_path):
    tensors = published_tensors("prelayernorm")
    state = state_of(tensors)
    write_small_files(tmp_path, "prelayernorm")
    aliases = ("START", "encoder.embeddings.weight", "decoder.embeddings.weight")
    lean = {key: array for key, array in state.items() if key not in aliases}
    write_weights(tmp_path / "model", lean)
    assert_same(load(tmp_path), leaves("prelayernorm", tensors))
    copied = state | {"decoder.embeddings.weight": tensors[SHARED].copy()}
    write_weights(tmp_path / "model", copied)
    assert_same(load(tmp_path), leaves("prelayernorm", tensors))
    copied["decoder.embeddings.weight"][3, 3] += 1
    write_weights(tmp_path / "model", copied)
    assert "model.decoder.embed_tokens.weight should be another name of model/shared/embedding" in refusal(tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_missing_table_of_sinusoidal_positions_is_computed(tmp_path, dtype):
    tensors = published_tensors("prelayernorm", dtype)
    state = {key: array for key, array in state_of(tensors).items() if "position_embeddings" not in key}
    write_small_files(tmp_path, "prelayernorm")
    write_weights(tmp_path / "model", state)
    assert_same(load(tmp_path), leaves("prelayernorm", tensors))


def test_sinusoids_are_those_of_parlai():
    np.testing.assert_array_equal(sinusoids(128, 64), sinusoidal(128, 64))


def test_a_missing_table_of_learned_positions_is_an_error(tmp_path):
    state = {key: array for key, array in state_of(published_tensors("xlm")).items() if "position_emb" not in key}
    write_small_files(tmp_path, "xlm")
    write_weights(tmp_path / "model", state)
    assert "missing: encoder.position_embeddings.weight, decoder.position_embeddings.weight" in refusal(tmp_path)


# What does not fit.


def test_every_misfit_is_named_in_parlais_words(tmp_path):
    state = state_of(published_tensors("prelayernorm"))
    del state["decoder.layers.1.norm3.weight"]
    state["encoder.segment_embeddings.weight"] = state["encoder.layers.0.norm1.weight"]
    state["encoder.layers.0.ffn.lin1.weight"] = np.zeros((40, 23), np.float16)
    write_small_files(tmp_path, "prelayernorm")
    write_weights(tmp_path / "model", state)
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / 'model'} does not hold what model.opt says:")
    assert "unexpected: encoder.segment_embeddings.weight" in message
    assert "missing: decoder.layers.1.norm3.weight" in message
    assert "encoder.layers.0.ffn.lin1.weight is [40, 23], the options and the dictionary say [40, 24]" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_positions": 32}, r"encoder\.position_embeddings\.weight is \[24, 24\], .* say \[32, 24\]"),
        ({"ffn_size": 44}, r"ffn\.lin2\.weight is \[24, 40\], .* say \[24, 44\]"),
        ({"n_decoder_layers": 3}, r"missing: decoder\.layers\.2\.self_attention\.q_lin\.weight"),
        ({"n_encoder_layers": 0, "n_layers": 2}, r"missing: encoder\.layers\.1\.attention\.q_lin\.weight"),
        ({"n_decoder_layers": 1}, r"unexpected: decoder\.layers\.1\.self_attention"),
        ({"fp16": False}, r"embeddings\.weight is \[272, 24\], .* say \[269, 24\]"),
    ],
)
def test_options_that_contradict_the_weights_are_refused(tmp_path, changes, message):
    write_checkpoint(tmp_path, "prelayernorm", options=TINY["prelayernorm"] | changes)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_weights_of_another_type_are_refused(tmp_path):
    state = state_of(published_tensors("prelayernorm"))
    state["encoder.layers.0.norm1.bias"] = np.zeros(24, np.int64)
    write_small_files(tmp_path, "prelayernorm")
    write_weights(tmp_path / "model", state)
    assert "model.encoder.layers.0.self_attn_layer_norm.bias holds int64" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["model", "model.opt", "model.dict", "model.dict-vocab.json", "model.dict-merges.txt"])
def test_a_missing_file_is_named(tmp_path, name):
    write_checkpoint(tmp_path, "prelayernorm")
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        load(tmp_path)


def test_a_plain_state_dict_is_not_what_parlai_writes(tmp_path):
    write_small_files(tmp_path, "prelayernorm")
    write_weights(tmp_path / "model", {}, more={"model": number(1)})
    assert "must hold a state dict, holds 1" in refusal(tmp_path)
    (tmp_path / "model").unlink()
    write_weights(tmp_path / "model", state_of(published_tensors("prelayernorm")))
    content = (tmp_path / "model").read_bytes().replace(text("model"), text("mudel"))
    (tmp_path / "model").write_bytes(content)
    assert "must hold a state dict under 'model', holds 'mudel'" in refusal(tmp_path)


# What would run code.

BOMBS = (
    "os.system",
    "posix.system",
    "builtins.eval",
    "builtins.getattr",
    "subprocess.Popen",
    "functools.partial",
    "runpy.run_path",
)


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_a_pickle_that_would_run_code_is_refused_wherever_it_says_so(tmp_path, name, container):
    write_small_files(tmp_path, "prelayernorm")
    state = state_of(published_tensors("prelayernorm"))
    bomb = call(name, text(f"touch {tmp_path / 'ran'}"))
    for more in ({"optimizer": bomb}, {"model": bomb}, {"lr_scheduler": EMPTY_DICT + items(best=bomb)}):
        write_weights(tmp_path / "model", state, container=container, more=more)
        message = refusal(tmp_path)
        assert f"refers to {name!r}, which a state dict has no use for; nothing was executed" in message
    assert not (tmp_path / "ran").exists()


def test_objects_of_training_are_no_weights(tmp_path):
    write_small_files(tmp_path, "prelayernorm")
    scaler = symbol("parlai.utils.fp16.DynamicLossScaler") + EMPTY_TUPLE + b"\x81"
    state = state_of(published_tensors("prelayernorm"))
    write_weights(tmp_path / "model", state, more={"model": EMPTY_DICT + items(**{"embeddings.weight": scaler})})
    assert "entry 'embeddings.weight' must be a tensor" in refusal(tmp_path)


def test_a_file_that_is_a_state_dict_may_hold_no_objects_of_training(tmp_path):
    write_checkpoint(tmp_path, "prelayernorm", training=True)
    with pytest.raises(CheckpointError, match=r"refers to 'numpy|refers to 'parlai|a key must be a string"):
        read_torch(tmp_path / "model")


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("count", [150, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_weights_are_refused_or_read_as_they_say(tmp_path, container, count):
    path = tmp_path / "model"
    tensors = {key: array for key, array in state_of(published_tensors("xlm")).items() if array.size < 100}
    write_weights(path, tensors, container=container, training=True)
    whole, refused = path.read_bytes(), 0
    for seed in range(count):
        rng = generator(f"parlai {container}", seed)
        path.write_bytes(damaged(whole, whole, rng))
        with at_most(5):
            refused += refused_or_consistent(lambda file: read_torch(file, "model"), path)
    assert count // 8 < refused < count


def test_truncated_weights_are_refused(tmp_path):
    write_checkpoint(tmp_path, "xlm", container="legacy")
    whole = (tmp_path / "model").read_bytes()
    for length in (0, 10, 500, len(whole) // 2, len(whole) - 1):
        (tmp_path / "model").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=str(tmp_path / "model")):
            tensor_entries(locate(tmp_path, ("*.bin",)))


def test_options_of_another_architecture_are_refused_before_anything_is_read(tmp_path):
    write_small_files(tmp_path, "prelayernorm", TINY["prelayernorm"] | {"variant": "bart"})
    (tmp_path / "model").write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{tmp_path / 'model.opt'} describes a model that is not supported: variant"):
        BlenderbotForConditionalGeneration.from_pretrained(tmp_path)
