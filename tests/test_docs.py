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
PACKAGE = Path(blenderbot_jax.__file__).parent
# Their examples show the published vocabularies, or need torch, so their own tests run them.
ELSEWHERE = {"dialogue", "verification", *(f"tokenizer.{path.stem}" for path in (PACKAGE / "tokenizer").glob("*.py"))}
WITH_EXAMPLES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
}


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(WITH_EXAMPLES - ELSEWHERE))
def test_docstring_examples_print_what_they_show(name: str, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = blenderbot_jax.Checkpoint.from_pretrained("demo")
    known = {key: value for key, value in vars(blenderbot_jax).items() if not key.startswith("_")}
    known |= {"jax": jax, "jnp": jnp, "model": checkpoint.model, "params": checkpoint.params}
    known |= {"tokenizer": checkpoint.tokenizer}
    # optax's own arithmetic is not strict.
    with jax.numpy_dtype_promotion("standard" if name.startswith("training") else "strict"):
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


def test_the_blocks_of_the_guide_to_safety_run_in_order(capsys):
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs/safety.md").read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, "safety.md", "exec"), names)
    refusal, blocked, shouted = capsys.readouterr().out.splitlines()
    assert refusal == blenderbot_jax.chatbot.REFUSAL
    assert blocked == "user Do you go to casinos? holds the phrase 'casino'"
    assert shouted == "No need to shout."


@pytest.mark.slow
def test_the_blocks_of_the_research_guide_run_in_order(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/research.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        with jax.numpy_dtype_promotion("standard"):  # as a user has it
            exec(compile(block, "research.md", "exec"), names)
    devices = len(jax.devices())
    printed = capsys.readouterr().out
    for expected in ("(4, 1, 12)", "(2, 4, 1, 12)", f"({devices}, 1, 12)", "('tpu',) True"):
        assert expected in printed
    chosen = names["tokenizer"].batch_decode(names["out"].sequences[:, 0], skip_special_tokens=True)
    assert {text.strip() for text in chosen} <= {"Yes, I do.", "No, not at all."}
    assert any(abs(leaf).max() > 0 for leaf in jax.tree.leaves(names["gradients"]))


@pytest.mark.slow
def test_the_blocks_of_the_guide_to_fine_tuning_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/finetuning.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        with jax.numpy_dtype_promotion("standard"):  # as a user has it
            exec(compile(block, "finetuning.md", "exec"), names)
    assert int(names["state"].step) == 2
    assert names["out"].sequences.shape == (3, 1, 16)


def test_the_readme_names_files_that_exist():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
