"""SIGKILL at random moments of a run in a store: it always resumes, along the trajectory of a run on a disk.

Three moments in gs:// in `make slow`; MVLM_KILLS=20 for more, and in s3:// too. Both are emulated on this machine.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from tiny import ROOT
from toy import metrics_lines

from mvlm_jax.stores.mirror import CHECKPOINTS, close_all, fetched
from mvlm_jax.stores.objects import Store, parse
from mvlm_jax.training.stored_steps import MARKER

KILLS = int(os.environ.get("MVLM_KILLS", 3))
SCHEMES = ("gs", "s3") if "MVLM_KILLS" in os.environ else ("gs",)
FIELDS = {"steps": 20 * KILLS, "checkpoint.every": 3, "eval.every": 10, "log_every": 1}
PAUSE = ("--pause", "0.05")  # before each step, so that on no machine the run is over before it was killed
LATEST_SECONDS = 2.0  # after a start has written something


def started(workdir, *special, compiled, environment):
    return subprocess.Popen(
        [sys.executable, ROOT / "tests" / "training" / "toy.py", workdir, json.dumps(FIELDS), *special],
        env=os.environ
        | environment
        | {
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            # Its own: who is killed may leave half an entry in it.
            "JAX_COMPILATION_CACHE_DIR": str(compiled),
        },
        stderr=subprocess.PIPE,
        text=True,
    )


def whole_steps(store):
    marks = (re.fullmatch(rf"{CHECKPOINTS}/(\d+)/{MARKER}", name) for name in store.names(CHECKPOINTS))
    return sorted(int(mark[1]) for mark in marks if mark)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_run_in_a_store_that_is_killed_again_and_again_is_the_run_on_a_disk(scheme, emulators, tmp_path):
    options = {"compiled": tmp_path / "compiled", "environment": emulators}
    workdir = f"{scheme}://bucket/killed"
    store = Store(parse(workdir))
    moments, resumed, statuses = random.Random(0), [], []
    for _ in range(KILLS):
        process, before = started(workdir, *PAUSE, **options), whole_steps(store)
        # Most moments lie in the steps and their checkpoints, the others anywhere from the start on.
        if moments.random() < 0.8:
            while whole_steps(store) == before and process.poll() is None:
                time.sleep(0.05)
            time.sleep(moments.uniform(0, LATEST_SECONDS))
        else:
            time.sleep(moments.uniform(1, 6))
        process.kill()
        _, errors = process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0), errors
        statuses.append(process.returncode)
        resumed.append(max(whole_steps(store), default=0))
    assert statuses.count(-signal.SIGKILL) > KILLS / 2
    process = started(workdir, **options)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "skipped" not in errors  # what was left half-written is never taken for a checkpoint
    assert resumed == sorted(resumed) and resumed[-1] > 0
    print("killed with checkpoints up to", resumed)

    process = started(tmp_path / "disk", **options)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert metrics_lines(fetched(workdir)) == metrics_lines(tmp_path / "disk")
    on_disk = sorted(int(path.name) for path in (tmp_path / "disk" / CHECKPOINTS).iterdir() if path.name.isdecimal())
    assert whole_steps(store) == on_disk
    assert {name.split("/")[1] for name in store.names(CHECKPOINTS)} == set(map(str, on_disk))
    assert "lock.json" not in store.names()
    close_all(failed=False)
