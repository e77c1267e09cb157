"""What a decoding step launches on an H200, counted by compiling for one that is not there."""

import os
from pathlib import Path

import pytest

from benchmarks import gpu_kernels
from benchmarks.gpu_kernels import Program, Report, measure, read_dump
from blenderbot_jax import BlenderbotConfig, GenerationConfig
from blenderbot_jax.generation.plan import compile_config

LAYERS = 12
# Launches of a step at 12 decoder layers; a change that adds some must say what for.
MOST = {"beam": 251, "greedy": 205, "sample": 218}
BATCH = {"beam": 1, "greedy": 2, "sample": 2}


@pytest.fixture(scope="module")
def target() -> Path:
    missing = gpu_kernels.available()
    path = Path(os.environ.get("BLENDERBOT_JAX_DATA", "")) / "gpu" / "h200.txtpb"
    if missing:
        pytest.skip(missing)
    if not path.is_file():
        pytest.skip("BLENDERBOT_JAX_DATA/gpu holds no h200.txtpb, the description of the GPU")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("case", ["beam", "greedy", "sample"])
def test_a_step_is_one_graph_of_few_kernels_that_copies_no_cache_and_sorts_no_vocabulary(case: str, target: Path):
    report = measure(Program(case, batch=BATCH[case]), target)
    assert report.captured
    assert report.kernels <= MOST[case]
    name, size = report.largest
    assert size < report.cache_bytes, f"{name} is as large as a cache"
    if case != "sample":
        assert report.sorts == 0


def test_other_numbers_are_the_same_program():
    model = BlenderbotConfig.blenderbot_400m_distill()
    plan, _ = compile_config(GenerationConfig.recipe(), model, 32)
    other, _ = compile_config(GenerationConfig.recipe(min_length=5, max_length=40, length_penalty=1.5), model, 20)
    assert other == plan


def test_a_dump_is_read(tmp_path: Path):
    thunks = (
        "000: kCustomKernel [] before\n001: kWhile []\ncondition:\n    002: kCustomKernel [] test grid\n  body:\n"
        "    003: kCustomKernel [] sort_1 grid\n    004: kCopy [] kCopy\n005: kCopy [] kCopy\n"
    )
    program = (
        "%body.1 (p: f32[8]) -> (f32[8]) {\n  %big = f32[64]{0} parameter(0)\n"
        "  %sum.1 = (f32[4]{0}, bf16[16]{0}) fusion(%big), kind=kLoop\n"
        "  %my_dynamic_update_slice.2 = f32[64]{0} fusion(%big)\n}\n\nENTRY %main (p: f32[8]) -> f32[8] {\n"
        "  %w = (f32[8]) while(%t), condition=%c.1, body=%body.1\n}\n"
    )
    (tmp_path / "m.jit_decode.thunk_sequence.txt").write_text(thunks)
    (tmp_path / "m.jit_decode.sm_9.0a_gpu_after_optimizations.txt").write_text(program)
    on_host = Report(
        kernels=3, copies=1, captured=False, sorts=1, largest=("sum.1 bf16[16]", 32), cache_bytes=7, temporary_bytes=9
    )
    assert read_dump(tmp_path, cache_bytes=7, temporary_bytes=9) == on_host
    after = tmp_path / "m.jit_decode.thunk_sequence_after_thunk_passes.txt"
    after.write_text("000: kCommandBuffer []\n    001: kWhile []\n")
    assert read_dump(tmp_path, cache_bytes=7, temporary_bytes=9).captured
    after.write_text(thunks)
    assert not read_dump(tmp_path, cache_bytes=7, temporary_bytes=9).captured
