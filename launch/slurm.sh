#!/usr/bin/env bash
# Trains on GPUs of a SLURM cluster, one process for each GPU; JAX finds the other processes by SLURM's variables.
# Usage: sbatch [--nodes=N --gpus-per-node=G --ntasks-per-node=G] launch/slurm.sh [mvlm train flags …]
# Submit from the repository's root, on a file system that all nodes share, with .venv made by
#   python3 -m venv .venv && .venv/bin/pip install --constraint constraints.txt --editable '.[gpu]'
#SBATCH --job-name=mvlm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@300
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit with sbatch}"
[ $# -gt 0 ] || set -- --config=pretrain_4m --workdir=runs/pretrain_4m --config.data.data_dir=runs/data
# One that fails tells the others. srun must not end them: a run that is stopped, by the time limit say, leaves with 75
# from one process after the other, and is queued again; the same command continues it.
status=0
srun --kill-on-bad-exit=0 .venv/bin/mvlm train --stopped_status=75 "$@" || status=$?
[ "$status" -ne 75 ] || exec scontrol requeue "${SLURM_JOB_ID:?}"
exit "$status"
