"""Native kernels: each held to its plain form, and refusals; skipped where they cannot be."""

import shutil
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from blenderbot_jax import native
from blenderbot_jax.attention import gather_then_divide
from blenderbot_jax.kernels import BlockedInt8Kernel, BlockedKernel, Int8Kernel, is_native, matmul, matmul_each
from blenderbot_jax.layers import LayerNorm
from blenderbot_jax.masks import ancestry_mask, cache_mask
from tests.natively import needs_native

# An eager call and a compiled one say it by different types.
REFUSED = (ValueError, jax.errors.JaxRuntimeError)
# One panel or several, whole or ragged; single rows; inner sizes that are no multiple of anything; parts of a block.
# The last three are large enough for a second thread, the last one to pack rows too.
SHAPES = [
    (1, 40, 32), (2, 7, 33), (5, 64, 100), (12, 3, 64), (13, 1281, 31), (80, 50, 96),
    (1, 1300, 700), (25, 1300, 300), (150, 1281, 64),
]  # fmt: skip


def test_the_library_is_there_wherever_it_could_be_built():
    """Its extension is optional, so a failing compiler would go unnoticed."""
    processor = Path("/proc/cpuinfo")
    if not shutil.which("c++") or not processor.exists() or "avx512_vnni" not in processor.read_text():
        pytest.skip("no compiler, or another processor")
    if not any(metadata.distributions(name="blenderbot-jax")):
        pytest.skip("the package is not installed, only its folder is here")
    assert native.available()


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def in_float32(kernel):
    return BlockedKernel.pack(kernel, natively=True)


def in_8_bits(kernel):
    return BlockedInt8Kernel.pack(Int8Kernel.pack(kernel))


@needs_native
@pytest.mark.parametrize(("rows", "inner", "features"), SHAPES)
def test_products_over_blocks_are_the_plain_ones(rows, inner, features):
    x, kernel = normal(rows, inner), normal(inner, features, seed=1) / np.sqrt(inner)
    packed = BlockedKernel.pack(jnp.asarray(kernel), natively=True)
    assert packed.blocks.shape == (-(-features // 32), inner, 32)
    np.testing.assert_allclose(jnp.asarray(x) @ packed, x.astype(np.float64) @ kernel, atol=2e-5)


@needs_native
@pytest.mark.parametrize(("rows", "inner", "features"), SHAPES)
def test_products_in_bfloat16_are_those_of_the_rounded_weights(rows, inner, features):
    x, kernel = normal(rows, inner), jnp.asarray(normal(inner, features, seed=1), jnp.bfloat16)
    packed = BlockedKernel.pack(kernel, natively=True)
    assert packed.blocks.dtype == jnp.bfloat16
    wanted = x.astype(np.float64) @ np.asarray(kernel, np.float64)
    np.testing.assert_allclose(jnp.asarray(x) @ packed, wanted, atol=2e-5 * np.sqrt(inner))
    short = jnp.asarray(x, jnp.bfloat16)
    assert (short @ packed).dtype == jnp.bfloat16
    assert matmul(short, packed, jnp.float32).dtype == jnp.float32


@needs_native
@pytest.mark.parametrize(("rows", "inner", "features"), SHAPES)
def test_products_in_8_bits_round_and_sum_as_the_plain_ones(rows, inner, features):
    x, kernel = jnp.asarray(normal(rows, inner)), Int8Kernel.pack(jnp.asarray(normal(inner, features, seed=1)))
    packed = BlockedInt8Kernel.pack(kernel)
    np.testing.assert_allclose(x @ packed, x @ kernel, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(packed._unpacked(packed.blocks, packed.scales).values, kernel.values)


@needs_native
def test_the_extremes_of_8_bits_do_not_overflow():
    values = np.full((32, 5120), -127, np.int8)
    values[1::2] = 127
    kernel = BlockedInt8Kernel.pack(Int8Kernel(jnp.asarray(values), jnp.ones(32)))
    x = jnp.asarray([[1.0] * 5120, [-1.0] * 5120, [0.0] * 5120])
    product = np.asarray(x @ kernel)
    np.testing.assert_allclose(product[0], np.where(np.arange(32) % 2, 127, -127) * 5120.0)
    np.testing.assert_array_equal(product[1], -product[0])
    np.testing.assert_array_equal(product[2], 0)


@needs_native
def test_several_kernels_share_one_call_and_others_do_not():
    x = jnp.asarray(normal(2, 3, 40))
    plain = [jnp.asarray(normal(40, size, seed=size)) for size in (8, 40, 70)]
    small = [Int8Kernel.pack(kernel) for kernel in plain]
    forms = {
        "products": [BlockedKernel.pack(kernel, natively=True) for kernel in plain],
        "products_int8": [BlockedInt8Kernel.pack(kernel) for kernel in small],
    }
    for (name, packed), kernels in zip(forms.items(), (plain, small), strict=True):
        text = jax.jit(matmul_each).lower(x, packed).as_text()
        assert text.count(f"@blenderbot_jax_{name}(") == 1
        for ours, theirs in zip(matmul_each(x, packed), matmul_each(x, kernels), strict=True):
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(ours, theirs, atol=2e-5)
    assert [product.shape[-1] for product in matmul_each(x, [*plain[:1], *small[1:]])] == [8, 40, 70]


@needs_native
@pytest.mark.parametrize("pack", [in_float32, in_8_bits])
def test_products_are_mapped_jitted_and_lowered_for_other_platforms(pack):
    x, kernel = jnp.asarray(normal(3, 4, 40)), pack(jnp.asarray(normal(40, 50, seed=1)))
    wanted = x @ kernel
    np.testing.assert_allclose(jax.vmap(lambda row: row @ kernel)(x), wanted, atol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda x, k: x @ k)(x, kernel), wanted, atol=1e-5)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), kernel)
    np.testing.assert_allclose(jax.vmap(lambda k: x @ k)(stacked)[1], wanted, atol=1e-5)
    exported = jax.export.export(jax.jit(lambda x, k: x @ k), platforms=["tpu"])(x, kernel)
    assert exported.out_avals[0].shape == (3, 4, 50)


@needs_native
def test_packing_can_be_traced():
    kernel = jnp.asarray(normal(7, 40))
    for pack in (in_float32, in_8_bits):
        traced, eager = jax.jit(pack)(kernel), pack(kernel)
        np.testing.assert_array_equal(traced.blocks, eager.blocks)


@needs_native
def test_native_trees_are_told_from_others():
    kernel = jnp.ones((4, 4))
    assert is_native(({}, {"a": BlockedInt8Kernel.pack(Int8Kernel.pack(kernel))}))
    assert is_native({"a": BlockedKernel.pack(kernel, natively=True), "b": kernel})
    assert not is_native({"a": BlockedKernel.pack(kernel), "b": Int8Kernel.pack(kernel)})


@needs_native
@settings(max_examples=40, deadline=None)
@example(G=3, J=4, T=1, H=128, C=150, half=False, seed=0)  # for two threads
@given(
    G=st.integers(1, 3), J=st.integers(1, 4), T=st.integers(1, 3), H=st.sampled_from([1, 16, 24, 40, 80, 128]),
    C=st.integers(4, 40), half=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_attention_is_the_plain_one_whoever_owns_the_slots(G, J, T, H, C, half, seed):
    rng = np.random.default_rng(seed)
    N, length = 2, int(rng.integers(0, C - T + 1))
    keys, values = (jnp.asarray(normal(G, N, C * J, H, seed=seed + i), jnp.bfloat16 if half else None) for i in (1, 2))
    owners, shown = rng.integers(0, J, (G, J, C)).astype(np.int32), rng.random((G, C)) < 0.7
    shown[:, length:] = True
    q = jnp.asarray(normal(G, J, T, N, H, seed=seed))
    table = jnp.asarray(np.where(shown[:, None], owners, -1))
    found = native.attention(q.reshape(G, J, T, N * H), keys, values, table, jnp.int32(length)).reshape(q.shape)
    np.testing.assert_allclose(found, plain_attention(q, keys, values, owners, shown, length), atol=1e-5)


@jax.jit
def plain_attention(q, keys, values, owners, shown, length):
    G, J, T, N, H = q.shape
    mask = ancestry_mask(owners, cache_mask(jnp.int32(length), T, owners.shape[-1]) & shown[:, None])
    wide = keys.swapaxes(2, 3).astype(jnp.float32), values.astype(jnp.float32)
    by_time = q.transpose(0, 3, 2, 1, 4).reshape(G, N, T * J, H)
    plain = gather_then_divide(by_time, wide[:1], wide[1:], mask).reshape(G, N, T, J, H)
    return plain.transpose(0, 3, 2, 1, 4)


@needs_native
def test_a_query_that_sees_nothing_looks_at_all_places_alike():
    keys, values = jnp.asarray(normal(1, 2, 20, 8)), jnp.asarray(normal(1, 2, 20, 8, seed=1))
    found = native.attention(jnp.ones((3, 16)), keys, values, jnp.full((1, 1, 20), -1, jnp.int32), jnp.int32(20))
    np.testing.assert_allclose(found.reshape(3, 2, 8), np.broadcast_to(values[0].mean(axis=1), (3, 2, 8)), atol=1e-6)


@needs_native
def test_softmax_keeps_far_scores_apart_and_none_overflow():
    keys = jnp.asarray([-900.0, 0.0, 1.0, 880.0]).reshape(1, 1, 4, 1)
    values = jnp.eye(4)[None, None]
    for scale in (0.0, 0.01, 1.0):
        weights = jax.nn.softmax(scale * keys[0, 0, :, 0])
        rows = [
            native.attention(
                jnp.full((1, 1), scale), keys, values[..., i : i + 1], jnp.zeros((1, 1, 4), jnp.int32), jnp.int32(4)
            )
            for i in range(4)
        ]
        np.testing.assert_allclose(np.ravel(rows), weights, rtol=1e-5, atol=1e-30)


@needs_native
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("H", [17, 6000])  # the latter for two threads
def test_appending_writes_the_new_rows_and_nothing_else(dtype, H):
    G, N, J, C, T = 2, 3, 2, 5, 2
    slots, rows = jnp.asarray(normal(G, N, C * J, H), dtype), normal(G, J, T, N * H, seed=1)
    found = native.append(slots, jnp.asarray(rows), jnp.int32(2), J)
    wanted = np.array(slots).reshape(G, N, C, J, H)
    wanted[:, :, 2 : 2 + T] = rows.reshape(G, J, T, N, H).transpose(0, 3, 2, 1, 4).astype(wanted.dtype)
    np.testing.assert_array_equal(found, wanted.reshape(slots.shape))
    with pytest.raises(REFUSED, match="the cache is full"):
        jax.block_until_ready(native.append(slots, jnp.asarray(rows), jnp.int32(4), J))


@needs_native
@pytest.mark.parametrize("shape", [(1, 5), (3, 4, 1280), (80, 33), (80, 3000)])
def test_layer_norm_is_the_plain_one(shape):
    x = jnp.asarray(50 + normal(*shape))
    norm = LayerNorm(jnp.float32)
    params = {"params": {"scale": jnp.asarray(normal(shape[-1])), "bias": jnp.asarray(normal(shape[-1], seed=1))}}
    np.testing.assert_allclose(norm.apply(params, x, natively=True), norm.apply(params, x), atol=1e-4)


@needs_native
def test_what_is_no_number_stays_none():
    x = jnp.asarray(normal(3, 40)).at[1, 7].set(jnp.nan).at[2, 30].set(jnp.inf)
    kernel = jnp.asarray(normal(40, 8, seed=1))
    for packed in (in_float32(kernel), in_8_bits(kernel)):
        finite = np.isfinite(x @ packed)
        assert finite[0].all()
        assert not finite[1:].any()
    slots = jnp.asarray(normal(1, 1, 20, 8)).at[0, 0, 3].set(jnp.nan)
    found = native.attention(jnp.ones((1, 8)), slots, slots, jnp.zeros((1, 1, 20), jnp.int32), jnp.int32(20))
    assert np.isnan(found).all()


@needs_native
def test_kernels_that_do_not_fit_are_refused():
    blocks = jnp.zeros((2, 8, 32))
    for x, features in ((jnp.ones((3, 7)), 64), (jnp.ones((3, 8)), 65)):
        with pytest.raises(REFUSED, match="does not fit the rows or the result"):
            jax.block_until_ready(native.products(x, blocks, features=[features]))
    with pytest.raises(Exception, match="do not fit each other"):
        jax.block_until_ready(
            native.attention(
                jnp.ones((3, 8)), *[jnp.ones((1, 1, 4, 8))] * 2, jnp.zeros((1, 1, 5), jnp.int32), jnp.int32(1)
            )
        )


@needs_native
def test_a_machine_without_the_library_says_so(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    with pytest.raises(RuntimeError, match="prepared for kernels that are not on this machine"):
        native.layer_norm(jnp.ones((1, 4)), jnp.ones(4), jnp.ones(4), 1e-5)


@needs_native
def test_no_rows_are_no_work():
    packed = BlockedKernel.pack(jnp.ones((8, 40)), natively=True)
    assert (jnp.ones((0, 8)) @ packed).shape == (0, 40)
