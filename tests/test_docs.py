"""What the docs show runs: the examples of the docstrings and of the README."""

import doctest
import importlib
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import blenderbot_jax

ROOT = Path(__file__).parent.parent
# The modules of tokenizer and dialogue are run by their own tests, over the published vocabulary.
WITH_EXAMPLES = (
    "config", "model", "generation.config", "generation.generate", "pretrained", "chatbot", "checkpoint.names",
    "checkpoint.save",
)  # fmt: skip


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_docstring_examples_print_what_they_show(name: str, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = blenderbot_jax.Checkpoint.from_pretrained("demo")
    known = {key: value for key, value in vars(blenderbot_jax).items() if not key.startswith("_")}
    known |= {"jax": jax, "jnp": jnp, "model": checkpoint.model, "params": checkpoint.params}
    known |= {"tokenizer": checkpoint.tokenizer}
    result = doctest.testmod(importlib.import_module(f"blenderbot_jax.{name}"), extraglobs=known)
    assert result.attempted > 0
    assert result.failed == 0


def test_the_readme_examples_run(capsys):
    talking, training = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(talking, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    assert all(line.strip() for line in printed)
    names: dict[str, Any] = {}
    with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic is not strict
        exec(compile(training, "README.md", "exec"), names)
    # One small step along the gradient, judged under the same dropout.
    assert names["loss"](names["params"]) < names["value"]


def test_the_readme_names_files_that_exist():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
