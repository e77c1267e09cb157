"""Strict JAX, several CPU devices, and the small models the tests share."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: no test may reach the network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: on tiny models its threads do nothing but wait in turns

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from blenderbot_jax.config import BlenderbotConfig, BlenderbotSmallConfig

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Rank promotion stays allowed: biases [F] and norm scales [D] are added to [..., F] as they are.

_TINY = {
    "vocab_size": 96,
    "max_position_embeddings": 24,
    "d_model": 24,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 56,
    "scale_embedding": True,
}


def _is_quick(config: pytest.Config) -> bool:
    # Compiling is most of the quick suite's time, a third of it optimisation; the slow suite runs what users run.
    return "not slow" in config.option.markexpr


def pytest_configure(config: pytest.Config) -> None:
    """Compile fast, and keep programs between runs, beside pytest's own cache; `--cache-clear` forgets them."""
    jax.config.update("jax_disable_most_optimizations", _is_quick(config))
    if _is_quick(config) and jax.__version_info__[:2] == (0, 10):
        # This release's own older way to make loops compiles in half the time; later ones no longer have it.
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false".strip()
    if hasattr(config, "cache"):
        jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("jax")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # hundreds of small programs


@pytest.fixture(scope="module", autouse=True)
def programs_end_with_their_file() -> Iterator[None]:
    """Forget compiled programs: one has dozens of pieces of memory, and Linux lets a process have 65,530."""
    yield
    jax.clear_caches()


@pytest.fixture
def optimised(pytestconfig: pytest.Config) -> Iterator[None]:
    """Programs compiled as users compile them."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", _is_quick(pytestconfig))


@pytest.fixture
def ordinary_promotion() -> Iterator[None]:
    """dtypes promoted as a user has it: optax's own arithmetic is not strict."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="session")
def tiny_config() -> BlenderbotConfig:
    """The pre-norm architecture, its two sides different in depth, heads and feed-forward width."""
    return BlenderbotConfig(**_TINY)


@pytest.fixture(scope="session")
def tiny_small_config() -> BlenderbotSmallConfig:
    """The post-norm architecture, likewise."""
    return BlenderbotSmallConfig(**_TINY)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The published tokenizers and dialogues."""
    folder = os.environ.get("BLENDERBOT_JAX_DATA")
    if not folder:
        pytest.skip("BLENDERBOT_JAX_DATA names no folder of published tokenizers and dialogues")
    return Path(folder)
