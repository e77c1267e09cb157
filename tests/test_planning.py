"""Plans: their parts against what trees hold, their peaks against what compiled programs take, and the command."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from blenderbot_jax.cli.plan import plan as command
from blenderbot_jax.generation import GenerationConfig
from blenderbot_jax.generation.decode import decode
from blenderbot_jax.generation.request import request
from blenderbot_jax.memory import decoding_memory
from blenderbot_jax.model import BlenderbotForConditionalGeneration
from blenderbot_jax.parallel import BATCH, make_mesh, shard, shardings, unsplit
from blenderbot_jax.planning import (
    SIZES,
    Layout,
    Machine,
    make_scaling,
    plan_generation,
    plan_training,
    training_flops,
)

# Wide enough that what is counted outweighs what is not.
WIDE = {"d_model": 512, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048}
WIDE |= {"encoder_attention_heads": 8, "decoder_attention_heads": 8, "vocab_size": 2048}


def wide(**changes):
    return SIZES["400m"]().replace(**{**WIDE, "dropout": 0.0, **changes})


def training_step(model, optimizer, mesh=None):
    """A plain one: Adam or Adafactor over float32 weights."""

    def loss(params, batch):
        arrays = batch["input_ids"], batch["attention_mask"]
        params = params if mesh is None else unsplit(mesh, params)
        return model.apply({"params": params}, *arrays, labels=batch["labels"]).loss

    def step(params, state, batch):
        value, gradients = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    return step


def compiled_training(config, layout, *, batch_size, source, target, dtype, optimizer):
    """The peak of one device, in bytes, as the compiler states it."""
    mesh = make_mesh(data=layout.data, fsdp=layout.fsdp, tensor=layout.tensor, devices=jax.devices()[: layout.devices])
    model = BlenderbotForConditionalGeneration(config, dtype)
    scaling = make_scaling(optimizer)
    params = jax.eval_shape(BlenderbotForConditionalGeneration(config).init_params, jax.random.key(0))
    state = jax.eval_shape(scaling.init, params)
    batch = {
        name: jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
        for name, length in (("input_ids", source), ("attention_mask", source), ("labels", target))
    }
    rows = jax.sharding.NamedSharding(mesh, BATCH)
    places = shardings(mesh, params), shardings(mesh, state), jax.tree.map(lambda _: rows, batch)
    program = jax.jit(
        training_step(model, scaling, mesh),
        in_shardings=places,
        out_shardings=(*places[:2], None),
        donate_argnums=(0, 1),
    )
    with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic is not strict
        lowered = program.lower(params, state, batch)
    return peak(lowered.compile().memory_analysis())


def peak(analysis):
    held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return held + analysis.temp_size_in_bytes


# The parts.


def test_weights_and_moments_are_counted_as_the_trees_hold_them():
    config = wide()
    layout = Layout(data=1, fsdp=2, tensor=2)
    plan = plan_training(config, layout, batch_size=4, dtype=jnp.float32)
    mesh = make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4])
    expected = jax.eval_shape(BlenderbotForConditionalGeneration(config).init_params, jax.random.key(0))
    placed = shard(mesh, jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), expected))
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(placed))
    assert plan.parts["weights"] == held
    assert plan.parts["gradients"] == held
    assert plan.parts["optimiser"] == 2 * held + 4  # and the number of the step


@pytest.mark.parametrize("size", SIZES)
def test_plans_of_the_published_sizes_count_their_parameters(size):
    published = {"90m": 87_508_992, "400m": 364_802_560, "1b": 1_437_393_920, "3b": 2_696_268_800, "9b": 9_431_810_048}
    config = SIZES[size]()
    parts = plan_training(config, dtype=jnp.float32).parts
    assert parts["weights"] == 4 * (published[size] + config.vocab_size)  # and the bias of the logits
    assert plan_generation(config, dtype=jnp.bfloat16).parts["weights"] == 2 * (published[size] + config.vocab_size)


def test_adapters_leave_little_to_gradients_and_moments():
    config = SIZES["3b"]()
    full, small = plan_training(config), plan_training(config, optimizer="lora")
    for part in ("gradients", "optimiser"):
        assert small.parts[part] < full.parts[part] / 100
    assert small.parts["weights"] == full.parts["weights"] / 2
    assert plan_training(config, optimizer="adafactor").parts["optimiser"] < full.parts["optimiser"] / 100


def test_one_device_decodes_as_the_formula_of_memory_says():
    config = SIZES["400m"]()
    plan = plan_generation(config, batch_size=8, beams=10, target=64, dtype=jnp.float32)
    known = decoding_memory(config, plan.parts["weights"], batch=8, beams=10, capacity=64, source=128)
    assert plan.total == known.total


@settings(deadline=None, max_examples=8)
@given(
    size=st.sampled_from(["400m", "3b"]),
    data=st.sampled_from([1, 2, 4]),
    fsdp=st.sampled_from([1, 2, 8]),
    tensor=st.sampled_from([1, 2, 8]),
    train=st.booleans(),
)
def test_more_devices_never_hold_more_each(size, data, fsdp, tensor, train):
    config = SIZES[size]()
    plan = partial(plan_training, config, remat=True) if train else partial(plan_generation, config)
    few, many = (plan(Layout(data, fsdp, parts), batch_size=32) for parts in (tensor, 2 * tensor))
    assert many.total <= few.total
    assert many.flops <= few.flops


def test_operations_are_those_that_the_compiler_counts():
    config = wide()
    model = BlenderbotForConditionalGeneration(config)
    params = jax.eval_shape(model.init_params, jax.random.key(0))
    ids = jax.ShapeDtypeStruct((2, 32), jnp.int32)
    batch = {"input_ids": ids, "attention_mask": ids, "labels": ids}
    optimizer = optax.sgd(1e-3)
    lowered = jax.jit(training_step(model, optimizer)).lower(params, jax.eval_shape(optimizer.init, params), batch)
    counted = (lowered.cost_analysis() or {})["flops"]
    assert training_flops(config, 2, 32, 32) == pytest.approx(counted, rel=0.1)


# The peaks. A quarter is what a compiler's order of operations moves them by.


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("rows", [4, 32])
def test_the_peak_of_training_is_near_the_compiled_one(rows, optimizer):
    options = {"batch_size": rows, "source": 128, "target": 64, "dtype": jnp.float32, "optimizer": optimizer}
    planned = plan_training(wide(), Layout(), **options)
    assert planned.total == pytest.approx(compiled_training(wide(), Layout(), **options), rel=0.25)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("layout", [Layout(fsdp=4), Layout(tensor=4), Layout(data=2, tensor=2), Layout(1, 2, 2)])
def test_the_peak_of_training_on_a_mesh_is_near_the_compiled_one(layout):
    options = {"batch_size": 32, "source": 128, "target": 64, "dtype": jnp.float32, "optimizer": "adamw"}
    planned = plan_training(wide(), layout, **options)
    assert planned.total == pytest.approx(compiled_training(wide(), layout, **options), rel=0.25)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("tensor", [1, 4])
def test_the_peak_of_decoding_is_near_the_compiled_one(tensor):
    config = wide(vocab_size=8008)
    model = BlenderbotForConditionalGeneration(config)
    mesh = make_mesh(tensor=tensor, devices=jax.devices()[:tensor])
    params = shard(mesh, model.init_params(jax.random.key(0)))
    batch = request(config, GenerationConfig.recipe(max_length=64), {"input_ids": [[5] * 128] * 8})
    program = decode.lower(model, batch.plan, params, batch.inputs, batch.task, None).compile()
    planned = plan_generation(
        config, Layout(tensor=tensor), batch_size=8, beams=10, source=128, target=64, dtype=jnp.float32
    )
    assert planned.total == pytest.approx(peak(program.memory_analysis()), rel=0.25)


# Refusals.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 3}, "a batch of 3 rows does not come out even over data=1 x fsdp=2: choose a multiple of 2"),
        ({"source": 129}, "this model knows positions for 128 tokens, so source is between 1 and that, not 129"),
        ({"dtype": jnp.int8}, "dtype is float32, bfloat16 or float16"),
        ({"optimizer": "lion"}, "optimizer is adamw, adafactor or lora, not 'lion'"),
    ],
)
def test_what_cannot_be_planned_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        plan_training(SIZES["400m"](), Layout(fsdp=2), **options)


def test_layouts_that_do_not_make_the_devices_are_refused():
    assert Layout.of(8, fsdp=2, tensor=2) == Layout(2, 2, 2)
    assert Layout.of(8) == Layout(1, 8, 1)
    with pytest.raises(ValueError, match="8 devices do not come out even over fsdp=3 x tensor=1"):
        Layout.of(8, fsdp=3)
    with pytest.raises(ValueError, match="tensor counts devices"):
        Layout(tensor=0)


def test_a_faster_machine_takes_less_time():
    plan = plan_training(SIZES["400m"](), Layout(data=2, tensor=2))
    slow, fast = plan.seconds(Machine(flops=1e12)), plan.seconds(Machine(flops=1e14))
    assert 0 < fast < slow
    assert math.isclose(plan.seconds(Machine(efficiency=0.2)), 2 * plan.seconds(Machine(efficiency=0.4)))


# The command.


def run(*arguments):
    return CliRunner().invoke(command, arguments)


def test_the_command_shows_the_parts_and_what_fits():
    result = run("--model", "9b", "--devices", "8", "--optimizer", "adafactor", "--remat")
    assert result.exit_code == 0
    for expected in ("9b, data=1 fsdp=8 tensor=1", "optimiser", "gradients", "fits: ", "of 80.0 GB", "an update"):
        assert expected in result.output
    assert "does not fit into 16.0 GB, try: more devices" in run("--model", "9b", "--device-memory", "16GB").output


def test_the_command_plans_decoding_and_reads_a_folder_s_config():
    result = run("--model", "demo", "--generate", "--devices", "2", "--tensor", "2", "--beams", "3")
    assert result.exit_code == 0
    for expected in ("demo, data=1 fsdp=1 tensor=2", "cache", "a step of decoding"):
        assert expected in result.output
    assert "gradients" not in result.output


@pytest.mark.parametrize("text", ["many", "80TB", "", "GB"])
def test_sizes_of_memory_that_are_none_are_refused(text):
    result = run("--device-memory", text)
    assert result.exit_code == 2
    assert "is no number of bytes such as 80GB or 16GiB" in result.output
