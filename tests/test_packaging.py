"""What a user installs: the built wheel, outside the repository, with the bundled model in it."""

import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import blenderbot_jax

ROOT = Path(blenderbot_jax.__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("the tests run over an installed package, not over the repository")
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        str(ROOT),
    ]
    subprocess.run(command, check=True, cwd=out)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_module_and_the_bundled_model(wheel: Path):
    held = set(zipfile.ZipFile(wheel).namelist())
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "blenderbot_jax").rglob("*.py")}
    assert sources <= held
    names = ("config.json", "generation_config.json", "model.safetensors", "vocab.json", "merges.txt", "README.md")
    assert {f"blenderbot_jax/demo/{name}" for name in names} <= held
    assert not {name.split("/")[0] for name in held} & {"convert", "tests", "benchmarks", "examples"}


def test_the_bundled_model_is_at_most_16_mb():
    assert sum(path.stat().st_size for path in (ROOT / "blenderbot_jax" / "demo").iterdir()) <= 16e6


def test_the_wheel_talks_outside_the_repository(wheel: Path, tmp_path: Path):
    place = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(place), str(wheel)]
    subprocess.run(install, check=True)
    code = "import blenderbot_jax as b; print(b.__file__); print(b.Chatbot.from_pretrained('demo').reply('Hello!'))"
    run = [sys.executable, "-c", code]
    out = subprocess.run(run, check=True, cwd=tmp_path, env={"PYTHONPATH": str(place), "PATH": ""}, capture_output=True)
    where, said = out.stdout.decode().splitlines()
    assert Path(where).is_relative_to(place)
    assert said.strip()


def test_the_version_is_one():
    assert metadata.version("blenderbot-jax") == blenderbot_jax.__version__
