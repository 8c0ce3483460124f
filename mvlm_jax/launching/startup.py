"""The script that every host of a TPU runs when it starts: install, mount, train, and delete the TPU at the end."""

import dataclasses
import re
import shlex

from mvlm_jax.launching import archive, buckets
from mvlm_jax.launching.job import PORT, Job

LOG = "/var/log/mvlm.log"
GRACE_SECONDS = 900  # for the last step, its checkpoint and the copy of the log


@dataclasses.dataclass(frozen=True)
class Startup:
    """
    Attributes:
      job: what is trained.
      delete: the command that deletes the TPU, given on one of its hosts.
      seconds: after so many the run is stopped, as by SIGTERM.
      keep: whether the TPU stays when the run ends.
    """

    job: Job
    delete: list[str]
    seconds: int
    keep: bool

    @property
    def folder(self) -> str:
        """The folder for the program and the logs, `gs://…`."""
        return f"{buckets.address(self.job.local_workdir)}/launch"

    @property
    def code(self) -> str:
        return f"{self.folder}/code.tar.gz"

    def log_copy(self, host: str = "0-0") -> str:
        """Where a host leaves its log; `host` is the number of its slice and its own, the first one's by default."""
        return f"{self.folder}/worker-{host}.log"

    def script(self) -> str:
        recipe = archive.RECIPE if self.job.recipe_file is not None else None
        mounts = "\n".join(f"mount_bucket {shlex.quote(name)}" for name in self.job.mounts)
        values = {
            "@LOG@": LOG,
            "@LOG_COPY@": '"$slice-$worker"'.join(map(shlex.quote, self.log_copy("\0").split("\0"))),
            "@CODE@": shlex.quote(self.code),
            "@DELETE@": "true" if self.keep else shlex.join(self.delete),
            "@SECONDS@": str(self.seconds),
            "@LAST_SECONDS@": str(self.seconds + 2 * GRACE_SECONDS),
            "@GRACE@": str(GRACE_SECONDS),
            "@PORT@": str(PORT),
            "@MOUNT@": buckets.MOUNT,
            "@MOUNT_FLAGS@": shlex.join(buckets.mount_flags()),
            "@MOUNTS@": mounts,
            "@TRAIN@": shlex.join([".venv/bin/mvlm", *self.job.train(recipe=recipe)]),
        }
        # In one pass: what a user gives may look like a placeholder.
        return re.sub("|".join(values), lambda found: values[found[0]], SCRIPT)


SCRIPT = r"""#!/usr/bin/env bash
# Written by mvlm launch.
set -uo pipefail
export HOME=/root USER=root DEBIAN_FRONTEND=noninteractive
PATH=$PATH:/snap/bin  # where Ubuntu has gcloud
exec > >(tee -a @LOG@) 2>&1

attribute() {
  curl -fsS -H 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1" 2>/dev/null
}

delete_tpu() {
  for _ in 1 2 3 4 5; do
    @DELETE@ && return
    sleep 60
  done
  echo 'THE TPU COULD NOT BE DELETED AND COSTS MONEY' >&2
}

# The first host deletes everything when it is done. The others do it later, should the first one be lost.
finish() {
  status=$?
  echo "the run ended with status $status"
  gcloud storage cp @LOG@ @LOG_COPY@
  [ "$slice-$worker" = 0-0 ] || sleep @GRACE@
  delete_tpu
  exit "$status"
}

mount_bucket() {
  mkdir -p "@MOUNT@/$1"
  mountpoint -q "@MOUNT@/$1" || gcsfuse @MOUNT_FLAGS@ "$1" "@MOUNT@/$1"
}

worker=$(attribute agent-worker-number || attribute worker-id || echo 0)
slice=$(attribute tpu-env | sed -n "s/^MEGASCALE_SLICE_ID:[ ']*\([0-9]*\).*/\1/p")
slice=${slice:-0}
trap finish EXIT
# Whatever hangs, the TPU goes.
(sleep @LAST_SECONDS@ && delete_tpu) &
set -e

mkdir -p /opt/mvlm
cd /opt/mvlm
gcloud storage cp @CODE@ code.tar.gz
tar --no-same-owner -xzf code.tar.gz

# A machine that has just started updates itself meanwhile, which locks apt.
apt() { apt-get -qq -y -o DPkg::Lock::Timeout=600 "$@"; }
if ! command -v gcsfuse >/dev/null; then
  curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg -o /usr/share/keyrings/gcsfuse.asc
  packages="https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main"
  echo "deb [signed-by=/usr/share/keyrings/gcsfuse.asc] $packages" \
    >/etc/apt/sources.list.d/gcsfuse.list
  apt update
  apt install gcsfuse
fi
@MOUNTS@

# Some images bring Python 3.10; the package needs a newer one.
if [ ! -x .venv/bin/python ]; then
  command -v pip3 >/dev/null || { apt update && apt install python3-pip python3-venv; }
  if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    python3 -m venv .venv
  else
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --seed --python=3.12 .venv
  fi
fi
.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[tpu]'

# Where JAX does not find the other hosts in the metadata, it is told.
hosts=()
if ! attribute agent-worker-number >/dev/null && endpoints=$(attribute worker-network-endpoints); then
  IFS=, read -ra endpoints <<<"$endpoints"
  if [ "${#endpoints[@]}" -gt 1 ]; then
    hosts=("--coordinator_address=${endpoints[0]##*:}:@PORT@" "--num_processes=${#endpoints[@]}" "--process_id=$worker")
  fi
fi
timeout --preserve-status --signal=TERM --kill-after=@GRACE@ @SECONDS@ @TRAIN@ "${hosts[@]}"
"""
