"""The converter script: a folder in, a folder out that loads at once."""

import runpy
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner

from blenderbot_jax import Checkpoint
from blenderbot_jax.hub import locate

SCRIPT = Path(__file__).parent.parent / "convert" / "from_huggingface.py"


@pytest.fixture
def convert():
    command = runpy.run_path(str(SCRIPT))["main"]
    return lambda *arguments: CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_a_converted_folder_holds_the_same_weights_settings_and_tokenizer(convert, tmp_path):
    result = convert("demo", tmp_path / "out", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.output
    assert "parameters in bfloat16" in result.output
    source, made = Checkpoint.from_pretrained("demo"), Checkpoint.from_pretrained(tmp_path / "out", dtype=jnp.bfloat16)
    assert made.model.config == source.model.config
    assert made.generation_config == source.generation_config
    assert made.tokenizer("Hello there!")["input_ids"] == source.tokenizer("Hello there!")["input_ids"]
    kept = source.params["model"]["shared"]["embedding"].astype(jnp.bfloat16)
    np.testing.assert_array_equal(made.params["model"]["shared"]["embedding"], kept)


def test_the_source_is_never_written_over(convert):
    before = {path.name: path.stat().st_mtime_ns for path in locate("demo", ()).iterdir()}
    result = convert("demo", locate("demo", ()))
    assert result.exit_code == 2
    assert "is the source itself" in result.output
    assert {path.name: path.stat().st_mtime_ns for path in locate("demo", ()).iterdir()} == before


def test_a_missing_source_is_one_clear_error(convert, tmp_path):
    result = convert(tmp_path / "none", tmp_path / "out")
    assert result.exit_code == 2
    assert "there is no folder" in result.output
    assert not (tmp_path / "out").exists()
