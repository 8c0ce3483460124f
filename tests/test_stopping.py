"""The train command under a scheduler: signals to it and to its worker processes."""

import os
import signal
import subprocess
import time

import pytest
from tiny import demo_flags, started

pytestmark = pytest.mark.slow
# Nothing here depends on how many devices there are.
ON_ONE_DEVICE = "--xla_backend_optimization_level=0"


@pytest.fixture
def flags(demo_dir, tmp_path):
    fields = {"steps": 1000, "checkpoint__every": 1000, "data__workers": 2, "mesh__data": 1}
    return demo_flags(data_dir=demo_dir, workdir=tmp_path / "run", **fields)


def processes_of_group(group):
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return [row for row in rows if int(row[0]) == group and not row[1].startswith("Z")]


def left_after(group, *, seconds):
    """The processes of the group that still run then; an ended one may take a moment to be gone."""
    until = time.monotonic() + seconds
    while processes_of_group(group) and time.monotonic() < until:
        time.sleep(0.1)
    return processes_of_group(group)


def wait_for_first_step(process, workdir):
    log = workdir / "metrics.jsonl"
    while not (log.exists() and log.stat().st_size):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)


def test_a_signal_to_the_group_ends_with_status_0_and_leaves_no_process(flags, tmp_path):
    run = started(flags, XLA_FLAGS=ON_ONE_DEVICE)
    wait_for_first_step(run, tmp_path / "run")
    os.killpg(run.pid, signal.SIGTERM)
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    assert left_after(run.pid, seconds=2) == []
    (step,) = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert f"stopped after step {step} of 1000;" in errors


def test_the_workers_of_a_killed_run_end_by_themselves(flags, tmp_path):
    run = started(flags, XLA_FLAGS=ON_ONE_DEVICE)
    wait_for_first_step(run, tmp_path / "run")
    assert len(processes_of_group(run.pid)) > 2
    run.kill()
    run.wait()
    assert left_after(run.pid, seconds=30) == []
