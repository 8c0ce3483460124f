"""SIGKILL at random moments of a run of the toy task."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tiny import ROOT

PAUSE = ("--pause", "0.05")  # before each step, so that on no machine the run is over before it was killed


def fields(*, kills: int) -> dict[str, int]:
    """Of the config of a run that is long enough for so many kills."""
    return {"steps": 20 * kills, "checkpoint.every": 3, "eval.every": 10, "log_every": 1}


def started(
    workdir: Path | str, *special: str, kills: int, compiled: Path, environment: Mapping[str, str] = {}
) -> subprocess.Popen:
    """
    Args:
      compiled: its own cache of compiled programs: who is killed may leave half an entry in it.
    """
    variables = {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
    }
    return subprocess.Popen(
        [sys.executable, ROOT / "tests" / "training" / "toy.py", workdir, json.dumps(fields(kills=kills)), *special],
        env=os.environ | dict(environment) | variables,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen) -> str:
    """What it has written to standard error."""
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return errors


def killed_again_and_again(
    start: Callable[..., subprocess.Popen],
    *,
    kills: int,
    written: Callable[[], Any],
    whole_step: Callable[[], int],
    latest_seconds: float,
    look_seconds: float,
) -> None:
    """Kills a run so often, then lets it end.

    Args:
      written: grows when a start has written something.
      whole_step: of the last whole checkpoint, 0 where there is none.
      latest_seconds: after a start has written something, until which it is killed.
      look_seconds: between two looks at what is written.
    """
    moments, resumed, statuses = random.Random(0), [], []
    for _ in range(kills):
        process, before = start(*PAUSE), written()
        # Most moments lie in the steps and their checkpoints, the others anywhere from the start on.
        if moments.random() < 0.8:
            while not written() > before and process.poll() is None:
                time.sleep(look_seconds)
            time.sleep(moments.uniform(0, latest_seconds))
        else:
            time.sleep(moments.uniform(1, 6))
        process.kill()
        _, errors = process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0), errors
        statuses.append(process.returncode)
        resumed.append(whole_step())
    assert statuses.count(-signal.SIGKILL) > kills / 2
    # What was left half-written is never taken for a checkpoint.
    assert "skipped" not in finished(start())
    assert resumed == sorted(resumed) and resumed[-1] > 0
    print("killed with checkpoints up to", resumed)
