#!/usr/bin/env bash
# The paper's comparison on Flickr8k with two published encoders on one GPU: does reconstruction with the help of the
# other modality add to contrast and matching, on all of the data and on a quarter?
#
#   launch/gpu_evidence.sh DATA_DIR IMAGE_ENCODER TEXT_ENCODER [DIRECTORY] [flags of benchmarks/ablation.py ...]
#
# DATA_DIR holds flickr8k as `mvlm prepare` writes it, the encoders are folders of DINOv2-small and MiniLM. Each finished
# run is printed and is a line of DIRECTORY/results.jsonl (default runs/gpu_evidence); tables come at the end. As many
# seeds are run as end within DEADLINE seconds of the start (default 480), each for all arms; the same command adds more.
# STEPS (default 240) is how long a run is.
# WHEELS=DIR installs the Python packages that are missing from a folder of wheels into SITE (default runs/site), for a
# machine without a network.
set -euo pipefail
if (($# < 3)); then
  echo "usage: launch/gpu_evidence.sh DATA_DIR IMAGE_ENCODER TEXT_ENCODER [DIRECTORY] [flags of benchmarks/ablation.py ...]" >&2
  exit 2
fi
data_dir=$(realpath "$1") image=$(realpath "$2") text=$(realpath "$3")
directory=$(realpath -m "${4:-runs/gpu_evidence}")
shift $(($# < 4 ? $# : 4))
# shellcheck source=launch/wheels.sh
source "$(dirname "$0")/wheels.sh"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
settings=(
  "data.data_dir=$data_dir" "init_from.image=$image" "init_from.text=$text"
  image.size=112
  "steps=${STEPS:-240}" optimizer.warmup_steps=30
  # A run is over in half a minute: what is stored on the way would cost more than a run that starts over.
  checkpoint.every=1000000
  data.prefetch=16
)
# Seeds are the outer loop of the program, so that those that end in time have all arms.
exec python3 -u benchmarks/ablation.py --directory="$directory" --config=flickr8k:published_gpu \
  "${settings[@]/#/--set=}" --arms itc_itm mlm_mim_independent maskvlm --fractions 1 0.25 --seeds 100 \
  --deadline=$((${DEADLINE:-480} - SECONDS)) "$@"
