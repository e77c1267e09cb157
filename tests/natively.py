"""The mark of tests that need native kernels."""

import pytest

from blenderbot_jax import native

needs_native = pytest.mark.skipif(
    not native.available(), reason="native kernels are not built here, or this processor cannot run them"
)
