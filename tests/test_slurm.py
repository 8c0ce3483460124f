"""The batch script of a SLURM cluster, with stand-ins for the cluster that only record their command lines."""

import os
import subprocess

import pytest
from tiny import ROOT


@pytest.mark.parametrize("of_the_run, of_the_job, queued_again", [(0, 0, False), (75, 0, True), (1, 1, False)])
def test_a_run_that_is_stopped_is_queued_again(tmp_path, of_the_run, of_the_job, queued_again):
    for name, status in (("srun", of_the_run), ("scontrol", 0)):
        command = tmp_path / name
        command.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path / "record"}\nexit {status}\n')
        command.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "7",
    }
    job = subprocess.run(["bash", ROOT / "launch" / "slurm.sh", "--config=demo"], env=environment)
    assert job.returncode == of_the_job
    run, *then = (tmp_path / "record").read_text().splitlines()
    assert run == "srun --kill-on-bad-exit=0 .venv/bin/mvlm train --stopped_status=75 --config=demo"
    assert then == (["scontrol requeue 7"] if queued_again else [])
