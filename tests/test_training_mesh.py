"""Training over several devices comes to what it comes to on one."""

import jax
import numpy as np
import pytest

from blenderbot_jax import BlenderbotForConditionalGeneration
from blenderbot_jax.parallel import make_mesh, shard
from blenderbot_jax.training import fit
from tests.training_batches import TINY, RandomData, batch


@pytest.fixture(scope="module")
def model(tiny_config):
    # Every width comes out even over the axes, and dropout is on: its masks do not depend on the mesh.
    sizes = {"vocab_size": 96, "d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    return BlenderbotForConditionalGeneration(tiny_config.replace(**sizes, **heads))


@pytest.mark.long
def test_fit_over_a_mesh_equals_one_device_and_is_resumed_on_another_mesh(model, tmp_path):
    params = model.init_params(jax.random.key(0))
    config = TINY.replace(optimizer="adamw", steps=4, weight_decay=0.01, average=0.5)
    with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic is not strict
        alone = fit(model, params, RandomData(), config, valid=[batch(50)])
        mesh = make_mesh(data=1, fsdp=2, tensor=2)
        placed = shard(mesh, params)
        split = fit(model, placed, RandomData(), config, valid=[batch(50)], mesh=mesh, folder=tmp_path)
        other = make_mesh(data=2, fsdp=2, tensor=1)
        again = fit(
            model,
            shard(other, params),
            RandomData(),
            config,
            valid=[batch(50)],
            mesh=other,
            folder=tmp_path,
            resume=True,
        )
    kernel = split.weights["model"]["decoder"]["layers"]["0"]["fc1"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (16, 32)
    for found in (split, again):
        assert found.step == 4
        difference = jax.tree.map(
            lambda a, b: float(abs(np.asarray(a) - np.asarray(b)).max()), alone.weights, found.weights
        )
        assert max(jax.tree.leaves(difference)) < 2e-5
    np.testing.assert_allclose(split.best, alone.best, rtol=1e-5)
