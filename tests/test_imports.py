"""Imports run one way through the package: a module may only import what stands above it in this list."""

import ast
from pathlib import Path

import blenderbot_jax

ORDER = [
    "files", "parlai", "hub", "absent", "config", "masks", "cache", "checks", "aligned", "native", "kernels", "dense",
    "attention", "layers", "transformer", "outputs", "checkpoint", "lora", "quantize", "memory", "processes",
    "parallel", "model", "planning", "preparation", "ensemble", "generation", "warm", "scoring", "attribution",
    "tokenizer", "dialogue", "long_conversations", "presentable", "pretrained", "conversion", "parlai_conversion",
    "verification", "safety", "responses", "chatbot", "data", "evaluation",
    "training", "offline", "run_exported", "export", "plotting", "cli",
]  # fmt: skip
PACKAGE = Path(blenderbot_jax.__file__).parent
NO_RUN_TIME = {"torch", "transformers", "tensorflow", "pytest", "hypothesis"}


def modules() -> dict[str, list[Path]]:
    """The package's parts, each a file or a folder of files."""
    return {
        name: [PACKAGE / f"{name}.py"] if (PACKAGE / f"{name}.py").exists() else sorted((PACKAGE / name).glob("*.py"))
        for name in ORDER
    }


def imported(path: Path) -> set[str]:
    """Full names of what a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            found.add(node.module or "")
    return found


def test_the_list_names_every_module():
    there = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir()}
    assert there - {"__init__", "__main__", "__pycache__", "py", "demo"} == set(ORDER)


def test_imports_run_one_way():
    for part, paths in modules().items():
        allowed = set(ORDER[: ORDER.index(part) + 1])
        for path in paths:
            own = {name.split(".")[1] for name in imported(path) if name.startswith("blenderbot_jax.")}
            assert own <= allowed, f"{path.relative_to(PACKAGE)} imports {own - allowed} from below it"


def test_decoding_knows_no_model():
    for path in modules()["generation"]:
        names = imported(path)
        assert not names & {
            "blenderbot_jax.layers",
            "blenderbot_jax.transformer",
            "blenderbot_jax.model",
            "flax",
            "flax.linen",
        }, path.name


def test_only_the_modules_of_the_model_know_linen():
    for part, paths in modules().items():
        for path in paths:
            assert part in ("layers", "transformer", "model") or not any(
                name.startswith("flax") for name in imported(path)
            ), path.name


def test_nothing_of_torch_or_transformers_is_imported():
    for paths in modules().values():
        for path in paths:
            assert not {name.split(".")[0] for name in imported(path)} & NO_RUN_TIME, path.name


def test_no_private_jax_is_imported():
    for paths in modules().values():
        for path in paths:
            assert not any(name.startswith(("jax._src", "jax.interpreters", "jax.core")) for name in imported(path))
