"""The startup script of a TPU host, run here with stand-ins for everything that it starts."""

import os
import re
import subprocess

import pytest
from tiny import ROOT

from mvlm_jax.launching.job import Job
from mvlm_jax.launching.startup import SCRIPT, Startup

ATTRIBUTES = {
    "first": {"agent-worker-number": "0"},
    "third": {"agent-worker-number": "2"},
    "second slice": {"agent-worker-number": "0", "tpu-env": "TYPE: 'v6e'\nMEGASCALE_SLICE_ID: '1'"},
    "compute": {"worker-id": "1", "worker-network-endpoints": "u:8470:10.0.0.5,u:8470:10.0.0.6"},
}
# Fails where the last word is the time after which a TPU is deleted whatever hangs; the test does not wait for it.
SLEEP = '[ "$1" -lt 5000 ] || exit 1'
CURL = 'eval "file=\\${$#}"; file=$FOLDER/attributes/${file##*/}; [ -f "$file" ] && cat "$file"'


def run_script(folder, *, host, status=0, keep=False, failing=""):
    """The commands that mattered, one a line, and the exit status of the script."""
    job = Job("mvlm", config=("--config=demo", "--config.data.data_dir=/gcs/data-1/it's"), workdir="gs://b-1/x")
    script = Startup(job=job, delete=["gcloud", "DELETE"], seconds=3600, keep=keep).script()
    for name in ("/var/log", "/opt", "/gcs/", "/usr/share/keyrings", "/etc/apt"):
        script = script.replace(name, f"{folder}{name}")
    for name in ("bin", "attributes", "var/log", "opt/mvlm/.venv/bin", "gcs"):
        (folder / name).mkdir(parents=True)
    for name, value in ATTRIBUTES[host].items():
        (folder / "attributes" / name).write_text(value)
    record = f'echo "$(basename "$0") $*" >> {folder}/record'
    bodies = dict.fromkeys(("gcloud", "gcsfuse", "tar", "mvlm"), record)
    bodies |= {"sleep": f"{SLEEP}; {record}", "curl": f"FOLDER={folder}; {CURL}", "mountpoint": "exit 1"}
    bodies["timeout"] = f'{record}; while [ "$1" != 3600 ]; do shift; done; shift; "$@"; exit {status}'
    for name, body in bodies.items():
        command = folder / ("opt/mvlm/.venv/bin" if name == "mvlm" else "bin") / name
        command.write_text(f"#!/bin/bash\n{'exit 1' if name == failing else body}\n")
        command.chmod(0o755)
    python = folder / "opt/mvlm/.venv/bin/python"
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", script],
        env={"PATH": f"{folder}/bin:{os.defpath}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return (folder / "record").read_text().replace(str(folder), "").splitlines(), done.returncode


@pytest.mark.parametrize("status", [0, 75, 2])
def test_the_tpu_is_deleted_when_the_run_ends_however_it_ends(status, tmp_path):
    commands, exit_status = run_script(tmp_path, host="first", status=status)
    assert exit_status == status
    assert [command for command in commands if command.startswith("gcsfuse")] == [
        f"gcsfuse --implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0 {name} /gcs/{name}"
        for name in ("b-1", "data-1")
    ]
    train, copy, delete = commands[-3:]
    assert (
        train
        == "mvlm train --config=demo --config.data.data_dir=/gcs/data-1/it's --workdir=/gcs/b-1/x --stopped_status=75"
    )
    assert copy == "gcloud storage cp /var/log/mvlm.log gs://b-1/x/launch/worker-0-0.log"
    assert delete == "gcloud DELETE"


def test_a_tpu_that_cannot_be_set_up_is_deleted_too(tmp_path):
    commands, exit_status = run_script(tmp_path, host="first", failing="tar")
    assert exit_status == 1
    assert commands[-1] == "gcloud DELETE" and not any(command.startswith("mvlm") for command in commands)


@pytest.mark.parametrize("host, log", [("third", "0-2"), ("second slice", "1-0")])
def test_the_other_hosts_leave_the_first_one_time_to_finish(host, log, tmp_path):
    commands, _ = run_script(tmp_path, host=host)
    assert commands[-3:] == [
        f"gcloud storage cp /var/log/mvlm.log gs://b-1/x/launch/worker-{log}.log", "sleep 900", "gcloud DELETE"
    ]  # fmt: skip


def test_the_oldest_python_that_is_good_enough_is_that_of_the_package():
    [oldest] = re.findall(r'python_requires=">=(\d+)\.(\d+)"', (ROOT / "setup.py").read_text())
    assert f"sys.version_info < ({', '.join(oldest)})" in SCRIPT


def test_a_tpu_to_be_kept_stays(tmp_path):
    commands, _ = run_script(tmp_path, host="first", keep=True)
    assert "gcloud DELETE" not in commands


def test_hosts_whose_metadata_jax_does_not_read_are_told_who_they_are(tmp_path):
    commands, _ = run_script(tmp_path, host="compute")
    [train] = [command for command in commands if command.startswith("mvlm")]
    assert train.endswith("--coordinator_address=10.0.0.5:8482 --num_processes=2 --process_id=1")
