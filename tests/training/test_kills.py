"""SIGKILL at random moments, writing of checkpoints included: the run always resumes, along the same trajectory.

Five moments in `make slow`; MVLM_KILLS=20 for more.
"""

import functools
import os

import pytest
from kills import finished, killed_again_and_again, started
from toy import metrics_lines

from mvlm_jax.training.checkpoints import Checkpoints

KILLS = int(os.environ.get("MVLM_KILLS", 5))


@pytest.mark.slow
def test_a_run_killed_again_and_again_is_the_run_that_never_was(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    start = functools.partial(started, kills=KILLS, compiled=tmp_path / "compiled")

    def log_size():
        path = killed / "metrics.jsonl"
        return path.stat().st_size if path.exists() else 0

    def whole_step():
        with Checkpoints.for_reading(killed / "checkpoints") as checkpoints:
            return checkpoints.latest_step() or 0

    killed_again_and_again(
        functools.partial(start, killed),
        kills=KILLS, written=log_size, whole_step=whole_step, latest_seconds=1.0, look_seconds=0.01,
    )  # fmt: skip
    finished(start(whole))
    assert metrics_lines(killed) == metrics_lines(whole)
    names = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (killed, whole)]
    assert names[0] == names[1]
