"""Time to the first step of `mvlm train`, and other times that a user waits at the start; used by `bench.py`."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from contenders import Setup
from processes import Late, NotMeasured

from mvlm_jax import config as config_lib
from mvlm_jax.configs import demo

ROOT = Path(__file__).resolve().parents[1]


def first_step_seconds(setup: Setup, *, source: str, cache: Path, deadline: float) -> float:
    """From the start of `mvlm train` to the metrics of its first step, with compiled programs kept in `cache`.

    Args:
      source: of the images and captions.
      deadline: of `time.monotonic()`.

    Raises:
      Late: there was no step before the deadline.
      NotMeasured: the command ended without one.
    """
    config = setup.config()
    config.log_every = 1
    config.data.train = config.data.eval = source
    config.compilation_cache = str(cache)
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryFile("w+") as printed:
        workdir = Path(directory) / "run"
        command = [sys.executable, "-m", "mvlm_jax", "train", "--config=demo", f"--workdir={workdir}"]
        started = time.monotonic()
        process = subprocess.Popen(
            [*command, *_flags(config)], stdout=printed, stderr=subprocess.STDOUT, env=_environment()
        )
        try:
            while not _has_a_step(workdir / "metrics.jsonl"):
                if process.poll() is not None:
                    printed.seek(0)
                    last = (printed.read().strip().splitlines() or [""])[-1]
                    raise NotMeasured(f"mvlm train ended with status {process.returncode}: {last[:400]}")
                if time.monotonic() >= deadline:
                    raise Late
                time.sleep(0.02)
            return time.monotonic() - started
        finally:
            process.kill()
            process.wait()


def command_seconds(command: Sequence[str], *, times: int, deadline: float) -> list[float]:
    """Of a Python program that is run `times` times.

    Raises:
      Late, NotMeasured: as above.
    """
    taken = []
    for _ in range(times):
        started = time.monotonic()
        try:
            subprocess.run(
                [sys.executable, *command], check=True, capture_output=True, env=_environment(),
                timeout=max(0.01, deadline - started),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise Late from None
        except subprocess.CalledProcessError as error:
            raise NotMeasured(f"{' '.join(command)} ended with status {error.returncode}") from error
        taken.append(time.monotonic() - started)
    return taken


def _flags(config: Mapping[str, Any]) -> list[str]:
    """The fields in which a config differs from the recipe `demo`."""
    recipe = dict(config_lib.flatten(demo.get_config()))
    return [f"--config.{name}={value}" for name, value in config_lib.flatten(config) if value != recipe[name]]


def _environment() -> dict[str, str]:
    # A cache that the environment names would make the first start a warm one.
    caches = ("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(caches)}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH", "")]))}


def _has_a_step(metrics: Path) -> bool:
    with contextlib.suppress(OSError, json.JSONDecodeError, IndexError, KeyError):
        return json.loads(metrics.read_text().splitlines()[0])["step"] >= 1
    return False
