#!/usr/bin/env bash
# Flickr8k from scratch with the small model on one GPU: prepare, train, evaluate.
# Usage: bash launch/flickr8k_gpu.sh FLICKR8K [STEPS] [WORKDIR]
# FLICKR8K is the directory of the published files; choose STEPS so that training takes the minutes you have.
set -euo pipefail
cd "$(dirname "$0")/.."
source_dir=${1:?usage: bash launch/flickr8k_gpu.sh FLICKR8K [STEPS] [WORKDIR]}
steps=${2:-2343}
workdir=${3:-runs/flickr8k-small}
data_dir=$(dirname "$workdir")/data

python3 -m mvlm_jax prepare --dataset=flickr8k --source="$source_dir" --data_dir="$data_dir"
python3 -m mvlm_jax train --config=flickr8k:small --workdir="$workdir" \
  --config.data.data_dir="$data_dir" --config.steps="$steps"
cat "$workdir"/eval/*.json
