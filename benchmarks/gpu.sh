#!/usr/bin/env bash
# Tests and measurements on a CUDA device: benchmarks/gpu.sh [OUT_FOLDER [OPTION or SECTION ...]]
#
# Needs no network. Packages that the machine lacks can be given as wheels, for example for Python 3.12:
#     pip download --no-deps --only-binary=:all: --python-version 3.12 -d wheels pycocotools msgspec tomlkit click hatchling pluggy pathspec trove-classifiers
#     WHEELS=wheels benchmarks/gpu.sh
# `benchmarks/gpu.sh /tmp/small --small` tries the script on a CPU with small networks.
set -u
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results/gpu}
shift || true
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error TOKENIZERS_PARALLELISM=false
export HF_HUB_DISABLE_PROGRESS_BARS=1 CUBLAS_WORKSPACE_CONFIG=:4096:8
mkdir -p "$out"
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl || exit 1
    export PYTHONPATH="$site:${PYTHONPATH:-}"
fi
# Without its compiled kernels, refbench encodes masks slowly.
"$python" hatch_build.py >/dev/null || exit 1
failed=0
"$python" -m benchmarks.gpu --out "$out" "$@" 2>"$out/errors.log" || failed=1
if [ -z "${NO_TESTS:-}" ]; then
    mapfile -t files < <(grep -rl --include=*.py "mark.gpu" tests)
    "$python" -m pytest -q -p no:cacheprovider -m gpu "${files[@]}" || failed=1
fi
exit $failed
