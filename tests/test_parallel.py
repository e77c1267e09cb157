"""The mesh: which parameter is split how, what devices hold, and that results stay what they are."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from blenderbot_jax import Checkpoint, GenerationConfig, generate, generate_many, prepare, quantize, save_pretrained
from blenderbot_jax.checkpoint.names import flatten
from blenderbot_jax.kernels import Int8Kernel
from blenderbot_jax.lora import LoraConfig, attach, init_lora
from blenderbot_jax.model import BlenderbotForCausalLM, BlenderbotForConditionalGeneration, BlenderbotModel
from blenderbot_jax.parallel import (
    _COMPILED,
    AXES,
    batch_sharding,
    batch_share,
    global_batch,
    make_mesh,
    mesh_of,
    partition_specs,
    shard,
    shardings,
    spread,
)
from blenderbot_jax.planning import SIZES
from tests.golden.fill import golden_params
from tests.mesh_run import batch_of, differences, loss

FC1 = "model/decoder/layers/0/fc1/kernel"


def shapes(config, cls=BlenderbotForConditionalGeneration):
    return jax.eval_shape(cls(config).init_params, jax.random.key(0))


def abstract(**sizes):
    return AbstractMesh(tuple(sizes.get(axis, 1) for axis in AXES), AXES)


def is_spec(leaf: Any) -> bool:
    return isinstance(leaf, P)


@pytest.fixture(scope="module")
def tiny(tiny_config):
    model = BlenderbotForConditionalGeneration(tiny_config)
    return model, golden_params(model)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(data=1, fsdp=2, tensor=2, devices=jax.devices()[:4])


# The mesh.


def test_data_takes_the_devices_that_are_left():
    devices = jax.devices()[:4]
    assert dict(make_mesh(fsdp=2, devices=devices).shape) == {"data": 2, "fsdp": 2, "tensor": 1}
    assert dict(make_mesh(devices=devices).shape) == {"data": 4, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"fsdp": 3}, "fsdp=3 x tensor=1 does not make 4 devices"),
        ({"data": 2}, "data=2 x fsdp=1 x tensor=1 does not make 4 devices"),
        ({"tensor": 8}, "does not make 4 devices"),
        ({"tensor": 0}, "tensor counts devices"),
        ({"data": 0}, "at least 1, or -1, not 0"),
        ({"fsdp": 2.0}, "fsdp counts devices"),
    ],
)
def test_sizes_that_do_not_fit_the_devices_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(**sizes, devices=jax.devices()[:4])


# The table.


@pytest.mark.parametrize("cls", [BlenderbotForConditionalGeneration, BlenderbotModel, BlenderbotForCausalLM])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["tiny_config", "tiny_small_config"])
def test_every_parameter_has_one_rule(request, kind, tied, cls):
    tree = shapes(request.getfixturevalue(kind).replace(tie_word_embeddings=tied), cls)
    specs = partition_specs(tree)
    assert jax.tree.structure(specs, is_leaf=is_spec) == jax.tree.structure(tree)
    for path in flatten(tree):
        assert sum(bool(pattern.fullmatch(path)) for pattern, _ in _COMPILED) == 1, path


def test_layers_are_split_as_megatron_splits_them(tiny_config):
    specs = flatten(partition_specs(shapes(tiny_config)))
    layer = "model/decoder/layers/1"
    for name in ("self_attn/q_proj", "self_attn/k_proj", "encoder_attn/v_proj", "fc1"):
        assert specs[f"{layer}/{name}/kernel"] == P("fsdp", "tensor")
        assert specs[f"{layer}/{name}/bias"] == P("tensor")
    for name in ("self_attn/out_proj", "encoder_attn/out_proj", "fc2"):
        assert specs[f"{layer}/{name}/kernel"] == P("tensor", "fsdp")
        assert specs[f"{layer}/{name}/bias"] == P()
    assert specs["model/shared/embedding"] == P("tensor", "fsdp")
    assert specs[f"{layer}/final_layer_norm/scale"] == P()


def test_kernels_in_8_bits_are_split_as_the_kernels_they_stand_for(tiny):
    specs = partition_specs(jax.eval_shape(quantize, tiny[1]))
    layer = specs["model"]["encoder"]["layers"]["0"]
    assert layer["fc1"]["kernel"] == Int8Kernel(P("tensor", "fsdp"), P("tensor"))
    assert layer["fc2"]["kernel"] == Int8Kernel(P("fsdp", "tensor"), P("fsdp"))
    assert specs["lm_head"]["kernel"] == Int8Kernel(P("tensor", "fsdp"), P("tensor"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"tensor": 8}, {"fsdp": 16, "tensor": 16}, {"fsdp": 64, "tensor": 4}])
def test_the_published_sizes_come_out_even(size, sizes):
    tree, mesh = shapes(SIZES[size]().replace(encoder_layers=1, decoder_layers=1)), abstract(**sizes)
    for leaf, spec in zip(
        jax.tree.leaves(tree), jax.tree.leaves(partition_specs(tree, mesh), is_leaf=is_spec), strict=True
    ):
        for length, names in zip(leaf.shape, spec, strict=False):
            assert length % np.prod([mesh.shape[name] for name in np.atleast_1d(names or [])], dtype=int) == 0


def test_a_vocabulary_that_does_not_come_out_even_leaves_the_split_to_the_width(tiny_config):
    tree = shapes(tiny_config.replace(vocab_size=97))
    specs = partition_specs(tree, abstract(fsdp=2, tensor=4))
    assert specs["model"]["shared"]["embedding"] == P(None, ("fsdp", "tensor"))


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 8), st.integers(1, 8))
def test_a_kernel_is_split_evenly_or_refused_by_name(rows, columns, fsdp, tensor):
    tree = {"fc2": {"kernel": jax.ShapeDtypeStruct((rows, columns), jnp.float32)}}
    if rows * columns == 1 or (rows % tensor == 0 and columns % fsdp == 0):
        found = partition_specs(tree, abstract(fsdp=fsdp, tensor=tensor))["fc2"]["kernel"]
        assert found == (P() if rows * columns == 1 else P("tensor", "fsdp"))
    else:
        with pytest.raises(ValueError, match=r"fc2/kernel .* is no multiple of (tensor|fsdp)=\d"):
            partition_specs(tree, abstract(fsdp=fsdp, tensor=tensor))


def test_a_refusal_names_parameter_rule_value_and_way_out():
    message = (
        r"fc1/kernel \[24, 40\] .* rule '.*fc1.*' says: 40 is no multiple of tensor=16; .* divides 40, such as 10$"
    )
    with pytest.raises(ValueError, match=message):
        partition_specs({"encoder": {"fc1": {"kernel": jnp.zeros((24, 40))}}}, abstract(tensor=16))


def test_what_no_rule_knows_is_refused_by_name(tiny):
    _, params = tiny
    with pytest.raises(ValueError, match=r"no rule says how model/pooler/kernel \[3, 4\] is split"):
        partition_specs({"model": {"pooler": {"kernel": jnp.zeros((3, 4))}}})
    with pytest.raises(ValueError, match=r"no rule says how .*k_proj/bias \[2, 24\] is split"):
        partition_specs(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params))


@pytest.mark.parametrize("optimizer", [optax.adamw(1e-3), optax.adafactor(1e-3), optax.adamax(1e-3)])
def test_what_optimisers_keep_is_split_as_what_they_keep_it_of(optimizer):
    # Wide enough for Adafactor to factor.
    config = SIZES["400m"]().replace(encoder_layers=1, decoder_layers=1)
    state = jax.eval_shape(optimizer.init, shapes(config))
    specs = partition_specs(state, abstract(fsdp=4, tensor=2))
    assert jax.tree.structure(specs, is_leaf=is_spec) == jax.tree.structure(state)
    for (path, leaf), spec in zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(specs, is_leaf=is_spec), strict=True
    ):
        if leaf.ndim == 2 and jax.tree_util.keystr(path, simple=True, separator="/").endswith(FC1):
            assert spec == P("fsdp", "tensor")


def test_adapters_are_whole_and_kernels_beside_them_split(tiny):
    config = LoraConfig(rank=2)
    adapters = init_lora(tiny[1], config, jax.random.key(0))
    assert set(jax.tree.leaves(partition_specs(adapters), is_leaf=is_spec)) == {P()}
    kernel = partition_specs(attach(tiny[1], adapters, config))["model"]["decoder"]["layers"]["0"]["self_attn"][
        "q_proj"
    ]
    assert kernel["kernel"].kernel == P("fsdp", "tensor")
    assert kernel["kernel"].adapter.down == P()


# Placing.


def test_every_device_holds_its_pieces_alone(tiny, mesh):
    placed = shard(mesh, tiny[1])
    jax.tree.map(np.testing.assert_array_equal, placed, tiny[1])
    assert jax.tree.map(lambda leaf: leaf.sharding, placed) == shardings(mesh, tiny[1])
    kernel = flatten(placed)[FC1]
    assert {piece.data.shape for piece in kernel.addressable_shards} == {(12, 28)}
    # Placed anew, they may lie otherwise.
    other = make_mesh(tensor=4, devices=mesh.devices.flatten())
    assert {piece.data.shape for piece in flatten(shard(other, placed))[FC1].addressable_shards} == {(24, 14)}


def test_what_was_placed_is_a_copy(tiny, mesh):
    params = jax.tree.map(jnp.copy, tiny[1])
    placed = shard(mesh, params)
    jax.block_until_ready(jax.jit(lambda tree: jax.tree.map(jnp.zeros_like, tree), donate_argnums=0)(placed))
    jax.tree.map(np.testing.assert_array_equal, params, tiny[1])


def test_rows_go_to_data_and_fsdp(mesh):
    batch = global_batch(mesh, {"labels": np.arange(8, dtype=np.int32).reshape(4, 2)})
    assert batch["labels"].sharding == batch_sharding(mesh)
    assert {piece.data.shape for piece in batch["labels"].addressable_shards} == {(2, 2)}
    assert batch_share(mesh) == (0, 1)


def test_rows_that_do_not_come_out_even_are_refused(mesh):
    with pytest.raises(ValueError, match=r"labels has 3 rows .* fsdp=2 .* multiple of 2"):
        global_batch(mesh, {"labels": np.zeros((3, 2), np.int32)})


class _Device:
    """Of a process, as a mesh of many has it."""

    def __init__(self, process_index):
        self.process_index = process_index


@pytest.mark.parametrize(
    ("shape", "processes", "share"),
    [
        ((4, 1, 1), (0, 0, 1, 1), (0, 2)),
        ((4, 1, 1), (1, 1, 0, 0), (1, 2)),
        ((1, 1, 4), (0, 0, 1, 1), (0, 1)),
        ((2, 1, 2), (1, 1, 0, 0), (1, 2)),
    ],
)
def test_processes_of_one_tensor_group_read_the_same_share(shape, processes, share):
    devices = np.array([_Device(process) for process in processes], object).reshape(shape)
    mesh: Any = type("Mesh", (), {"devices": devices, "shape": dict(zip(AXES, shape, strict=True))})
    assert batch_share(mesh) == share


def test_shares_that_overlap_in_part_are_refused():
    devices = np.array([_Device(process) for process in (0, 0, 0, 1, 1, 1)], object).reshape(3, 1, 2)
    mesh: Any = type("Mesh", (), {"devices": devices, "shape": {"data": 3, "fsdp": 1, "tensor": 2}})
    with pytest.raises(ValueError, match="overlap in part"):
        batch_share(mesh)


# Loading.


@pytest.mark.parametrize("int8", [None, "int8"])
def test_a_checkpoint_is_placed_as_it_is_read(mesh, int8):
    plain = Checkpoint.from_pretrained("demo", quantize=int8).params
    placed = Checkpoint.from_pretrained("demo", quantize=int8, mesh=mesh).params
    assert jax.tree.map(lambda leaf: leaf.sharding, placed) == shardings(mesh, plain)
    jax.tree.map(np.testing.assert_array_equal, placed, plain)


@pytest.mark.parametrize("cls", [BlenderbotModel, BlenderbotForCausalLM])
def test_every_model_is_placed_as_it_is_read(mesh, cls):
    _, placed = cls.from_pretrained("demo", mesh=mesh, dtype=jnp.bfloat16)
    _, plain = cls.from_pretrained("demo", dtype=jnp.bfloat16)
    assert jax.tree.map(lambda leaf: leaf.sharding, placed) == shardings(mesh, plain)
    jax.tree.map(np.testing.assert_array_equal, placed, plain)


def test_no_device_gets_more_than_its_piece_of_a_tensor(mesh, monkeypatch):
    monkeypatch.setattr("blenderbot_jax.checkpoint.load._place", None)  # what would place it whole
    BlenderbotForConditionalGeneration.from_pretrained("demo", mesh=mesh)


def test_a_mesh_that_does_not_fit_is_refused_before_weights_are_read(tmp_path, tiny_config, mesh, monkeypatch):
    config = tiny_config.replace(encoder_ffn_dim=41)
    model = BlenderbotForConditionalGeneration(config)
    save_pretrained(tmp_path, config, golden_params(model))
    monkeypatch.setattr("blenderbot_jax.model.base.load_params", None)
    with pytest.raises(ValueError, match="41 is no multiple of tensor=2"):
        BlenderbotForConditionalGeneration.from_pretrained(tmp_path, mesh=mesh)


# Computing.


@pytest.mark.long
@pytest.mark.parametrize("kind", ["tiny_config", pytest.param("tiny_small_config", marks=pytest.mark.slow)])
def test_loss_gradients_and_replies_are_those_of_one_device(request, kind, mesh):
    model = BlenderbotForConditionalGeneration(request.getfixturevalue(kind))
    found = differences(model, golden_params(model), mesh)
    assert found["loss"] < 1e-5
    assert found["gradients"] < 1e-5
    assert (found["greedy"], found["beams"]) == (0, 0)


def test_many_prompts_and_draws_are_those_of_one_device(tiny, mesh):
    model, params = tiny
    config = GenerationConfig(do_sample=True, max_length=8)
    prompts, key = [[5, 6, 2], [9, 2], [7, 8, 9, 2], [4, 2]], jax.random.key(0)

    def replies(params):
        made = generate_many(model, params, prompts, config=config, key=key)
        return {place: row.tolist() for places, one in made for place, row in zip(places, one.tokens, strict=True)}

    assert replies(shard(mesh, params)) == replies(params)


@pytest.mark.long
def test_weights_in_8_bits_give_the_logits_of_one_device(tiny, mesh):
    model, params = tiny
    small, batch = quantize(params), batch_of(model.config, 4)
    together = jax.jit(loss, static_argnums=0)(model, shard(mesh, small), global_batch(mesh, batch))
    np.testing.assert_allclose(together, loss(model, small, batch), rtol=1e-5)


def test_preparing_leaves_placed_parameters_in_their_form(tiny, mesh):
    model, params = tiny
    placed = shard(mesh, params)
    prepared = prepare(model.clone(dtype=jnp.bfloat16), placed)
    assert jax.tree.map(lambda leaf: leaf.sharding, prepared) == shardings(mesh, params)
    assert flatten(prepared)[FC1].dtype == jnp.bfloat16
    with pytest.raises(RuntimeError, match=r"lie whole on one device|no native kernels here"):
        prepare(model, placed, natively=True)


def test_rows_of_prompts_are_split_where_they_come_out_even(mesh):
    prompts = {"ids": np.zeros((4, 3), np.int32), "setting": np.zeros(1, np.float32)}
    even, uneven = spread(mesh, prompts, rows=4), spread(mesh, {"ids": prompts["ids"][:3]}, rows=3)
    assert even["ids"].sharding == batch_sharding(mesh)
    assert even["setting"].is_fully_replicated
    assert uneven["ids"].is_fully_replicated
    assert spread(None, prompts, rows=4) is prompts


def test_a_traced_call_sees_no_mesh(tiny, mesh):
    model, params = tiny
    seen = []
    config = GenerationConfig(max_length=6)

    def reply(params, ids):
        seen.append(mesh_of(params))
        return generate(model, params, ids, config=config).sequences

    ids = np.array([[5, 6, 2], [7, 8, 2]], np.int32)
    together = jax.jit(reply)(shard(mesh, params), global_batch(mesh, {"ids": ids})["ids"])
    assert seen == [None]
    np.testing.assert_array_equal(together, generate(model, params, ids, config=config).sequences)


@pytest.mark.long
def test_pmap_gives_the_gradient_of_the_whole_batch(tiny):
    model, params = tiny
    devices, batch = len(jax.devices()), batch_of(model.config, 8)

    def sums(params, batch):
        count = (batch["labels"] != -100).sum().astype(jnp.float32)
        return loss(model, params, batch) * count, count

    def step(params, batch):
        (total, count), gradients = jax.value_and_grad(sums, has_aux=True)(params, batch)
        total, count, gradients = jax.lax.psum((total, count, gradients), "devices")
        return total / count, jax.tree.map(lambda leaf: leaf / count, gradients)

    split = jax.tree.map(lambda rows: rows.reshape(devices, -1, rows.shape[-1]), batch)
    value, gradients = jax.pmap(step, axis_name="devices", in_axes=(None, 0))(params, split)
    wanted, whole = jax.jit(jax.value_and_grad(lambda tree: loss(model, tree, batch)))(params)
    np.testing.assert_allclose(value, np.full(devices, wanted), rtol=1e-5)
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(one[0], other, atol=1e-5 * max(float(abs(other).max()), 1e-3))


@pytest.mark.slow
def test_the_blocks_of_the_scaling_guide_run_in_order():
    page = Path(__file__).parent.parent / "docs/scaling.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        with jax.numpy_dtype_promotion("standard"):  # as a user has it
            exec(compile(block, "scaling.md", "exec"), names)
