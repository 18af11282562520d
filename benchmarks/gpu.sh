#!/usr/bin/env bash
# Tests and measurements on a CUDA device: benchmarks/gpu.sh [OUT_FOLDER [SECTION ...]]
#
# Needs no network. Packages that the machine lacks can be given as wheels, for example for Python 3.12:
#     pip download --no-deps --only-binary=:all: --python-version 3.12 -d wheels pycocotools msgspec tomlkit click
#     WHEELS=wheels benchmarks/gpu.sh
# `REFBENCH_GPU_SMALL=1` tries the script on a CPU with small networks.
set -u
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results/gpu}
shift || true
sections=${*:-clipseg sam memory deterministic grounded sam3 vlm compiled}
small=${REFBENCH_GPU_SMALL:+--small}
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error TOKENIZERS_PARALLELISM=false
export HF_HUB_DISABLE_PROGRESS_BARS=1
mkdir -p "$out"
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl || exit 1
    export PYTHONPATH="$site:${PYTHONPATH:-}"
fi
failed=0
for section in $sections; do
    began=$SECONDS
    timeout "${REFBENCH_GPU_LIMIT:-150}" "$python" -m benchmarks.gpu "$section" $small --out "$out/$section.json" \
        >"$out/$section.log" 2>&1 || { failed=1; echo "$section failed:"; tail -n 15 "$out/$section.log"; }
    echo "$section: $((SECONDS - began)) s"
done
if [ -z "$small" ]; then
    mapfile -t files < <(grep -rl --include=*.py "mark.gpu" tests)
    "$python" -m pytest -q -p no:cacheprovider -m gpu "${files[@]}" >"$out/pytest.log" 2>&1 || failed=1
    tail -n 5 "$out/pytest.log"
fi
"$python" -m benchmarks.gpu table --out "$out"
exit $failed
