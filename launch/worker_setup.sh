#!/usr/bin/env bash
# Makes one TPU worker ready: the bucket mounted at /mnt/mvlm, the package with TPU support in .venv. Safe to repeat.
# Usage: bash launch/worker_setup.sh BUCKET
set -euo pipefail
bucket=${1:?usage: bash launch/worker_setup.sh BUCKET}
cd "$(dirname "$0")/.."

# The runtimes of Ubuntu 22.04 bring Python 3.10; the package needs a newer one.
if [ ! -x .venv/bin/python ]; then
  if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    python3 -m venv .venv
  else
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --seed --python=3.12 .venv
  fi
fi

if ! command -v gcsfuse >/dev/null; then
  release=gcsfuse-$(lsb_release -cs)
  curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/gcsfuse.asc >/dev/null
  echo "deb [signed-by=/usr/share/keyrings/gcsfuse.asc] https://packages.cloud.google.com/apt $release main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  # A machine that has just started updates itself meanwhile, which locks apt.
  sudo apt-get update -qq -o DPkg::Lock::Timeout=300
  sudo apt-get install -qq -y -o DPkg::Lock::Timeout=300 gcsfuse
fi
sudo mkdir -p /mnt/mvlm
sudo chown "$USER" /mnt/mvlm
# A rename must move whole directories (checkpoints), and another host's files must show at once.
mountpoint -q /mnt/mvlm || gcsfuse --implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0 "$bucket" /mnt/mvlm

.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[tpu]'
