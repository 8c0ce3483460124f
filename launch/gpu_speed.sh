#!/usr/bin/env bash
# Measures the training step on one GPU: our settings beside each other, then ours beside the PyTorch reference.
#
#   launch/gpu_speed.sh [RESULTS.jsonl] [flags of benchmarks/step.py ...]
#
# Rows are printed and written as they come; nothing new is begun after DEADLINE seconds (default 450).
# WHEELS=DIR installs the Python packages that are missing from a folder of wheels, for a machine without a network.
set -euo pipefail
cd "$(dirname "$0")/.."
results=${1:-runs/gpu_speed.jsonl}
shift || true
if [[ -n "${WHEELS:-}" ]]; then
  python3 -m pip install --quiet --no-index --no-deps --no-compile --target runs/site --upgrade "$WHEELS"/*.whl
  export PYTHONPATH="$PWD/runs/site${PYTHONPATH:+:$PYTHONPATH}"
fi
mkdir -p "$(dirname "$results")"
# The first variant is the default of the platform; the others change one thing.
variants=(
  default
  xla_attention:model.attention=xla
  scan:model.layer_loop=scan
  scan_xla_attention:model.layer_loop=scan,model.attention=xla
  remat_dots:model.remat=dots
)
exec python3 -u benchmarks/step.py --json="$results" --deadline="${DEADLINE:-450}" --variants "${variants[@]}" --trace "$@"
