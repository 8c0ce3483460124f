"""SIGKILL at random moments, writing of checkpoints included: the run always resumes, along the same trajectory.

Five moments in `make slow`; MVLM_KILLS=20 for more.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy import metrics_lines

from mvlm_jax.training.checkpoints import Checkpoints

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("MVLM_KILLS", 5))
FIELDS = {"steps": 20 * KILLS, "checkpoint.every": 3, "eval.every": 10, "log_every": 1}
LATEST_SECONDS = 1.0  # after a start has begun to log
PAUSE = ("--pause", "0.05")  # before each step, so that on no machine the run is over before it was killed


def started(workdir, *special):
    return subprocess.Popen(
        [sys.executable, Path(__file__).with_name("toy.py"), workdir, json.dumps(FIELDS), *special],
        env=os.environ
        | {
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            # Its own: who is killed may leave half an entry in it.
            "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "compiled"),
        },
        stderr=subprocess.PIPE,
        text=True,
    )


def log_size(workdir):
    path = workdir / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0


@pytest.mark.slow
def test_a_run_killed_again_and_again_is_the_run_that_never_was(tmp_path):
    moments, resumed, statuses = random.Random(0), [], []
    for _ in range(KILLS):
        process, size = started(tmp_path / "killed", *PAUSE), log_size(tmp_path / "killed")
        # Most moments lie in the steps and their checkpoints, the others anywhere from the start on.
        if moments.random() < 0.8:
            while log_size(tmp_path / "killed") <= size and process.poll() is None:
                time.sleep(0.01)
            time.sleep(moments.uniform(0, LATEST_SECONDS))
        else:
            time.sleep(moments.uniform(1, 6))
        process.kill()
        _, errors = process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0), errors
        statuses.append(process.returncode)
        with Checkpoints.for_reading(tmp_path / "killed" / "checkpoints") as checkpoints:
            resumed.append(checkpoints.latest_step() or 0)
    assert statuses.count(-signal.SIGKILL) > KILLS / 2
    process = started(tmp_path / "killed")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "skipped" not in errors  # what was left half-written is never taken for a checkpoint
    assert resumed == sorted(resumed) and resumed[-1] > 0
    print("killed with checkpoints up to", resumed)

    process = started(tmp_path / "whole")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert metrics_lines(tmp_path / "killed") == metrics_lines(tmp_path / "whole")
    names = [sorted(path.name for path in (tmp_path / run / "checkpoints").iterdir()) for run in ("killed", "whole")]
    assert names[0] == names[1]
