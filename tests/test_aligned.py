"""Copies that JAX adopts: the same numbers, whatever order they lay in, at an address that it takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blenderbot_jax import Checkpoint
from blenderbot_jax.aligned import aligned_copy
from tests.natively import needs_native

DTYPES = [np.float16, np.float32, jnp.bfloat16]


@given(
    shape=st.one_of(
        st.tuples(st.integers(0, 300), st.integers(0, 600)),
        st.lists(st.integers(1, 5), max_size=3).map(tuple),
    ),
    order=st.sampled_from(["as it is", "transposed", "every second"]),
    given_dtype=st.sampled_from(DTYPES),
    wanted=st.sampled_from([None, *DTYPES]),
)
def test_a_copy_has_the_numbers_in_order_and_begins_where_jax_adopts_it(shape, order, given_dtype, wanted):
    array = np.random.default_rng(0).standard_normal(shape).astype(given_dtype)
    source = {"as it is": array, "transposed": array.T, "every second": array[::2] if shape else array}[order]
    copy = aligned_copy(source, wanted)
    assert copy.dtype == np.dtype(wanted or given_dtype)
    assert copy.flags.c_contiguous
    assert copy.size == 0 or copy.ctypes.data % 64 == 0
    assert not np.shares_memory(copy, array)
    np.testing.assert_array_equal(copy, source.astype(copy.dtype))


@needs_native  # where it is known that CPUs adopt
def test_a_copy_is_adopted():
    copy = aligned_copy(np.ones((300, 500), np.float32).T)
    assert jax.device_put(copy).unsafe_buffer_pointer() == copy.ctypes.data


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_weights_lie_on_the_device_that_the_caller_has_chosen(quantize):
    chosen = jax.devices()[2]
    with jax.default_device(chosen):
        params = Checkpoint.from_pretrained("demo", quantize=quantize).params
    assert {device for leaf in jax.tree.leaves(params) for device in leaf.devices()} == {chosen}
