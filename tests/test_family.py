"""Every published model in both of its forms: files of full size that hold names and shapes alone, and tiny ones."""

import json
import math
from dataclasses import dataclass

import jax
import numpy as np
import pytest

from blenderbot_jax import (
    BlenderbotConfig,
    BlenderbotForConditionalGeneration,
    Checkpoint,
    Conversation,
    generate,
    parlai,
)
from blenderbot_jax.checkpoint.load import find_leaves
from blenderbot_jax.checkpoint.names import flatten, target_of
from blenderbot_jax.checkpoint.parlai_file import tensor_names
from blenderbot_jax.conversion import convert_checkpoint
from blenderbot_jax.parallel import make_mesh, shardings
from tests.checkpoint_files import published_names
from tests.parlai_files import OPTIONS_3B, OPTIONS_9B, OPTIONS_90M, TINY, write_checkpoint

# The first of ParlAI's project page, the others of the distilled models' options.
_OPTIONS_1B = {**OPTIONS_3B, "n_decoder_layers": 12}
_OPTIONS_400M = {**_OPTIONS_1B, "embedding_size": 1280, "ffn_size": 5120}


@dataclass(frozen=True)
class Member:
    """One of the published models."""

    config: BlenderbotConfig
    options: dict
    parameters: int
    """Without final_logits_bias, which is a buffer."""


FAMILY = {
    "90M": Member(BlenderbotConfig.blenderbot_small_90m(), OPTIONS_90M, 87_508_992),
    "400M-distill": Member(BlenderbotConfig.blenderbot_400m_distill(), _OPTIONS_400M, 364_802_560),
    "1B-distill": Member(BlenderbotConfig.blenderbot_1b_distill(), _OPTIONS_1B, 1_437_393_920),
    "3B": Member(BlenderbotConfig.blenderbot_3b(), OPTIONS_3B, 2_696_268_800),
    "9.4B": Member(BlenderbotConfig.blenderbot_9b(), OPTIONS_9B, 9_431_810_048),
}
members = pytest.mark.parametrize("member", FAMILY.values(), ids=FAMILY)


def shapes_of(config):
    tree = jax.eval_shape(BlenderbotForConditionalGeneration(config).init_params, jax.random.key(0))
    return {path: leaf.shape for path, leaf in flatten(tree).items()}


def write_hollow(path, shapes):
    """A safetensors file of float16 zeros that takes no room on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


@members
def test_its_hugging_face_folder_fits_at_full_size(tmp_path, member):
    shapes, names = shapes_of(member.config), published_names(member.config)
    stored = {key: shapes[path][::-1] if flipped else shapes[path] for key, (path, flipped) in names.items()}
    write_hollow(tmp_path / "model.safetensors", stored)
    member.config.save_pretrained(tmp_path)
    config = BlenderbotConfig.from_pretrained(tmp_path)
    assert config == member.config
    model = BlenderbotForConditionalGeneration(config)
    leaves = find_leaves(tmp_path, config, jax.eval_shape(model.init_params, jax.random.key(0)))
    assert {path: leaf.shape for path, leaf in leaves.items()} == shapes
    assert all(leaf.entry is not None for leaf in leaves.values())
    assert sum(math.prod(shape) for path, shape in shapes.items() if path != "final_logits_bias") == member.parameters


@members
def test_its_parlai_options_and_tensors_fit_at_full_size(member):
    described = BlenderbotConfig.from_dict(parlai.architecture(member.options, member.config.vocab_size))
    assert described == member.config
    assert type(described) is type(member.config)
    made = {}
    for key, named in tensor_names(described).items():
        if named.alias:
            assert key in ("encoder.embeddings.weight", "decoder.embeddings.weight")
            continue
        target = target_of(named.published, tied=False)
        made[target.path] = named.shape[::-1] if target.transposed else named.shape
    assert made == {path: shape for path, shape in shapes_of(member.config).items() if path != "final_logits_bias"}


@members
def test_its_architecture_talks_alike_in_both_forms(tmp_path, member):
    variant = member.options["variant"]
    small = {
        name: TINY[variant][name] for name in ("embedding_size", "ffn_size", "n_heads", "n_positions", "text_truncate")
    }
    write_checkpoint(
        tmp_path / "parlai", variant, options={**TINY[variant], **small, "delimiter": member.options["delimiter"]}
    )
    convert_checkpoint(tmp_path / "parlai", tmp_path / "folder")
    chat = Conversation().add("user", "hi").add("bot", "the hi").add("user", "hi the")
    found = []
    for form in ("parlai", "folder"):
        one = Checkpoint.from_pretrained(tmp_path / form)
        ids = [one.encode(chat).input_ids]
        out = generate(
            one.model, one.params, ids, config=one.generation_config.replace(num_beams=2, min_length=0, max_length=9)
        )
        found.append((ids, np.asarray(out.sequences).tolist(), np.asarray(out.scores).tolist()))
    assert found[0] == found[1]


def test_a_parlai_checkpoint_goes_to_the_devices_of_a_mesh_in_pieces(tmp_path):
    write_checkpoint(tmp_path / "parlai", "prelayernorm")
    whole = Checkpoint.from_pretrained(tmp_path / "parlai")
    mesh = make_mesh(data=1, fsdp=2, tensor=2, devices=jax.devices()[:4])
    split = Checkpoint.from_pretrained(tmp_path / "parlai", mesh=mesh)
    assert jax.tree.map(lambda leaf: leaf.sharding, split.params) == shardings(mesh, split.params)
    kernel = split.params["model"]["decoder"]["layers"]["1"]["fc1"]["kernel"]
    assert {piece.data.size for piece in kernel.addressable_shards} == {kernel.size // 4}
    jax.tree.map(np.testing.assert_array_equal, split.params, whole.params)
