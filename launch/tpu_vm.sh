#!/usr/bin/env bash
# Trains on a Cloud TPU that exists, one host or a pod alike: installs on every worker, then starts the same command on
# each of them. Run again after an interruption, it continues.
# Usage: bash launch/tpu_vm.sh NAME ZONE BUCKET [mvlm train flags …]
# BUCKET (without gs://) holds the data in data/ and gets the runs; each worker mounts it, since a workdir is a path.
set -euo pipefail
usage="usage: bash launch/tpu_vm.sh NAME ZONE BUCKET [mvlm train flags …]"
name=${1:?$usage} zone=${2:?$usage} bucket=${3:?$usage}
shift 3
[ $# -gt 0 ] || set -- --config=pretrain_4m --workdir=/mnt/mvlm/runs/pretrain_4m
cd "$(dirname "$0")/.."

on_all() { gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }

directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
archive=$directory/mvlm.tar.gz
tar --exclude=./.git --exclude='./.venv*' --exclude=./runs -czf "$archive" .
gcloud compute tpus tpu-vm scp "$archive" "$name:mvlm.tar.gz" --zone="$zone" --worker=all
on_all "mkdir -p ~/mvlm && tar -xzf ~/mvlm.tar.gz -C ~/mvlm && bash ~/mvlm/launch/worker_setup.sh $bucket"
# After --config, whose field it is.
case " $* " in *" --config.data.data_dir="*) ;; *) set -- "$@" --config.data.data_dir=/mnt/mvlm/data ;; esac
on_all "cd ~/mvlm && .venv/bin/mvlm train $(printf '%q ' "$@")"
