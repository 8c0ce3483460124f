#!/usr/bin/env bash
# Measures the training step on one GPU: our settings beside each other, then ours beside the PyTorch reference.
#
#   launch/gpu_speed.sh [RESULTS.jsonl] [flags of benchmarks/step.py ...]
#
# Rows are printed and written as they come; nothing new is begun after DEADLINE seconds (default 450).
# WHEELS=DIR installs the Python packages that are missing from a folder of wheels into SITE (default runs/site), for a
# machine without a network.
set -euo pipefail
results=$(realpath -m "${1:-runs/gpu_speed.jsonl}")
shift || true
# shellcheck source=launch/wheels.sh
source "$(dirname "$0")/wheels.sh"
mkdir -p "$(dirname "$results")"
# The first variant is the default of the platform; each of the others changes what its name says.
variants=(
  default
  xla_attention:model.attention=xla
  scan:model.layer_loop=scan
  'scan_xla_attention:model.layer_loop=scan,model.attention=xla'
  remat_inputs:model.remat=inputs
  remat_dots:model.remat=dots
  remat_full:model.remat=full
)
# The compiler takes longest of all; the variants compile at the same time, and are measured one after the other.
exec python3 -u benchmarks/step.py --json="$results" --deadline="${DEADLINE:-450}" --variants "${variants[@]}" \
  --compile_together --trace "$@"
