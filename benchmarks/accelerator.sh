#!/usr/bin/env bash
# Tests and measurements on the accelerator JAX finds, in one call of under eight minutes; it downloads nothing.
#   bash benchmarks/accelerator.sh [FOLDER] [OPTIONS of benchmarks.gpu_report]
#   bash benchmarks/accelerator.sh /tmp/out --shape tiny --device cpu --rounds 1      (to try the script on a CPU)
# Results go to FOLDER (benchmarks/results): devices.txt, tests.txt, gpu.json, gpu.md.
set -euo pipefail
cd "$(dirname "$0")/.."
out=benchmarks/results
if [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; then
    out=$1
    shift
fi
mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
# Autotuning is most of compiling on a GPU; its results are kept beside the programs.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-${TMPDIR:-/tmp}/blenderbot_jax_programs}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 XLA_PYTHON_CLIENT_PREALLOCATE=false
python=${PYTHON:-python3}
"$python" -c 'import jax; print(jax.__version__, jax.devices())' | tee "$out/devices.txt"
# Those that decode, against what is recorded and against transformers where it is installed.
timeout "${TEST_SECONDS:-130}" "$python" -m pytest -q -x tests/test_beam.py tests/test_generate.py tests/test_cache.py \
    tests/test_golden_replies.py tests/parity/test_generation.py 2>&1 | tail -25 | tee "$out/tests.txt" || true
"$python" -m benchmarks.gpu_report --out "$out" --seconds "${BENCHMARK_SECONDS:-300}" "$@"
