#!/usr/bin/env bash
# Waits in the queue for a TPU, sets it up and trains; a startup script does both, so nothing has to stay connected.
# A TPU that is taken away does not come back: its request is SUSPENDED and its machines are deleted. Delete it with
#   gcloud compute tpus queued-resources delete NAME --zone=ZONE --force
# and give this command again: the run continues from its latest checkpoint.
# Usage: RUNTIME=VERSION [SPOT=1] bash launch/tpu_queued.sh NAME ZONE TYPE BUCKET [SLICES]
#   e.g. RUNTIME=tpu-ubuntu2204-base SPOT=1 bash launch/tpu_queued.sh mvlm us-central2-b v4-32 my-bucket
# SPOT=1 asks for a TPU that is cheaper and may be taken away.
# BUCKET holds this repository in code/ (gcloud storage rsync -r -x '\.git/|\.venv[^/]*/|runs/' . gs://BUCKET/code) and
# the data in data/. The run is RECIPE (pretrain_4m), in BUCKET/runs/NAME.
set -euo pipefail
usage="usage: RUNTIME=VERSION [SPOT=1] bash launch/tpu_queued.sh NAME ZONE TYPE BUCKET [SLICES]"
name=${1:?$usage} zone=${2:?$usage} type=${3:?$usage} bucket=${4:?$usage} slices=${5:-1}
recipe=${RECIPE:-pretrain_4m}
runtime=${RUNTIME:?set RUNTIME to the software version that fits $type: gcloud compute tpus versions list --zone=$zone}

startup=$(mktemp)
trap 'rm -f "$startup"' EXIT
cat >"$startup" <<SCRIPT
#!/usr/bin/env bash
set -euo pipefail
export HOME=/root USER=root
mkdir -p /opt/mvlm
gcloud storage rsync -r gs://$bucket/code /opt/mvlm
[ -e /opt/mvlm/mvlm_jax/configs ] || ln -s ../configs /opt/mvlm/mvlm_jax/configs  # a bucket holds no links
bash /opt/mvlm/launch/worker_setup.sh $bucket
cd /opt/mvlm
exec .venv/bin/mvlm train --config=$recipe --config.data.data_dir=/mnt/mvlm/data --workdir=/mnt/mvlm/runs/$name
SCRIPT

nodes=(--node-id="$name")
# Several slices are one run: JAX finds its hosts, and the axis data goes over the slices.
[ "$slices" -eq 1 ] || nodes=(--node-count="$slices" --node-prefix="$name")
gcloud compute tpus queued-resources create "$name" --zone="$zone" "${nodes[@]}" \
  --accelerator-type="$type" --runtime-version="$runtime" ${SPOT:+--spot} \
  --metadata-from-file=startup-script="$startup"
echo "queued; state: gcloud compute tpus queued-resources describe $name --zone=$zone"
