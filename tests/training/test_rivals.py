"""Two runs in one workdir, killed and started again and again: one of them always lives, along the same trajectory.

Three kills in `make slow`; MVLM_RIVAL_KILLS=40 for more.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy import metrics_lines

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("MVLM_RIVAL_KILLS", 3))
FIELDS = {"steps": 20 * KILLS, "checkpoint.every": 3, "eval.every": 10, "log_every": 1}


def started(workdir, *special):
    return subprocess.Popen(
        [sys.executable, Path(__file__).with_name("toy.py"), workdir, json.dumps(FIELDS), *special],
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_backend_optimization_level=0"},
        stderr=subprocess.PIPE,
        text=True,
    )


def log_size(workdir):
    path = workdir / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0


def holder(workdir, rivals):
    """The one of the two that holds the lock, once it has made a step."""
    lock, size, until = workdir / ".lock", log_size(workdir), time.monotonic() + 120
    while time.monotonic() < until:
        owner = re.match(r"process (\d+) on", lock.read_text()) if lock.exists() else None
        alive = {rival.pid: rival for rival in rivals if rival.poll() is None}
        if owner and int(owner[1]) in alive and log_size(workdir) != size:
            return alive[int(owner[1])]
        assert alive, [rival.communicate()[1] for rival in rivals]
        time.sleep(0.01)
    raise AssertionError("neither run makes a step")


@pytest.mark.slow
def test_of_two_runs_in_one_workdir_one_always_lives_and_its_trajectory_is_exact(tmp_path):
    moments, workdir, refused, finished = random.Random(KILLS), tmp_path / "shared", 0, False
    for _ in range(KILLS):
        rivals = [started(workdir, "--pause", "0.05") for _ in range(2)]
        living = holder(workdir, rivals)
        [other] = [rival for rival in rivals if rival is not living]
        _, errors = other.communicate(timeout=120)
        # It leaves at once, by the name of the one that lives, which goes on.
        assert (other.returncode, living.poll() in (None, 0)) == (2, True), errors
        assert f"in use by another mvlm train (process {living.pid} on " in errors
        refused += 1
        time.sleep(moments.uniform(0, 1))
        living.kill()
        _, errors = living.communicate()
        assert living.returncode in (-signal.SIGKILL, 0), errors
        finished |= living.returncode == 0
    print(f"{refused} runs refused, {KILLS} ended" + (", the last one by itself" if finished else ""))
    for run in (workdir, tmp_path / "whole"):
        process = started(run)
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert metrics_lines(workdir) == metrics_lines(tmp_path / "whole")
    names = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (workdir, tmp_path / "whole")]
    assert names[0] == names[1]
