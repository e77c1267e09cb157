#!/usr/bin/env bash
# Tests and benchmarks on the accelerator JAX finds, in one call; results go to the folder given (benchmarks/results).
#   bash benchmarks/accelerator.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results}
mkdir -p "$out"
export PYTHONPATH=$PWD HF_HUB_OFFLINE=1
python3 -c 'import jax; print(jax.devices())' | tee "$out/devices.txt"
python3 -m pytest -q tests/test_model.py tests/test_cache.py tests/test_generate.py tests/test_golden.py \
    tests/test_golden_replies.py tests/test_ensemble.py tests/test_scoring.py tests/test_attribution.py tests/parity 2>&1 | tee "$out/tests.txt" || true
python3 benchmarks/reply_time.py --model demo 2>&1 | tee "$out/reply_time.md"
