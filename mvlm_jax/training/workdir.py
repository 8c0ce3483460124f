"""The directory of a run."""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mvlm_jax import config as config_lib
from mvlm_jax.errors import RunError, UserError

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
EVALUATIONS = "eval"
WEIGHTS = "weights.json"  # what the run started from


def open_workdir(path: str | Path, *, config: ConfigDict, write: bool = True) -> Path:
    """Makes the directory with its `config.json`, or checks that the one there is of the same run.

    `write=False` is for the processes of a run that do not write.

    Raises:
      UserError: not a directory one can write to, or that of another config, which stays untouched.
    """
    if "://" in str(path):
        raise UserError(f"workdir {path} is not a local path; mount the bucket and give the path of the mount")
    directory = Path(path).absolute()
    _check_writable(directory)
    try:
        if (directory / CONFIG).exists():
            _check_same_run(directory / CONFIG, config)
        elif write:
            directory.mkdir(parents=True, exist_ok=True)
            write_text(directory / CONFIG, config_lib.to_json(config))
    except OSError as error:
        raise UserError(f"workdir {directory} cannot be used: {error.strerror}") from error
    return directory


def check_shared(directory: Path, *, patience: float = 60.0) -> None:
    """Refuses a directory in which this process does not see what another one wrote.

    Args:
      patience: seconds to wait for it, since a network file system shows it late.

    Raises:
      UserError: nothing of a run is there.
    """
    deadline = time.monotonic() + patience
    while not (directory / CONFIG).exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"workdir {directory} has no {CONFIG} here, though process 0 wrote one; "
                "give a directory that all hosts share, such as a mounted bucket"
            )
        time.sleep(1)


def read_config(directory: Path) -> ConfigDict:
    """The config of the run in a directory.

    Raises:
      UserError: there is no run, or one of another version.
    """
    try:
        return config_lib.from_json((directory / CONFIG).read_text())
    except OSError as error:
        raise UserError(f"{directory} is not the workdir of a run: no {CONFIG} in it can be read") from error


def write_evaluations(directory: Path, results: Mapping[str, Mapping[str, Any]], *, step: int) -> None:
    """`eval/<stem>.json` for each stem.

    Raises:
      RunError: there is no room for them.
    """
    with writing(directory):
        for stem, metrics in results.items():
            write_json(directory / EVALUATIONS / f"{stem}.json", {"step": step, **metrics})


def read_evaluations(directory: Path, *, step: int) -> dict[str, dict[str, Any]]:
    """The metrics of each stem whose file is of that step; what else lies there as JSON is left alone."""
    files = {path.stem: json.loads(path.read_text()) for path in sorted((directory / EVALUATIONS).glob("*.json"))}
    return {
        stem: {name: value for name, value in metrics.items() if name != "step"}
        for stem, metrics in files.items()
        if isinstance(metrics, dict) and metrics.get("step") == step
    }


def _check_writable(directory: Path) -> None:
    nearest = next(parent for parent in (directory, *directory.parents) if parent.exists())
    if not nearest.is_dir():
        raise UserError(f"workdir {directory} cannot be used: {nearest} is a file; give the path of a directory")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"workdir {directory} cannot be used: {nearest} is not writable; give a writable directory")


def _check_same_run(path: Path, config: ConfigDict) -> None:
    changed = config_lib.differences(read_config(path.parent), config, changeable=config_lib.CHANGEABLE_ON_RESUME)
    if changed:
        raise UserError(
            f"workdir {path.parent} is the workdir of another config: {changed}; "
            "give the same values to continue it, or another workdir"
        )


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Around what a run writes while it goes on: a failing disk ends it in one line."""
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror} ({error.filename})" if error.filename else error.strerror or str(error)
        raise RunError(
            f"workdir {directory} cannot be written to any more: {reason}; "
            "once that is mended, the same command continues from the last checkpoint"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Replaces a file in one move: a reader, or a crash, sees the old content or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: Any) -> None:
    """Indented and in one move, see `write_text`; the directory is made. What is not finite becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(plain(values), indent=2, allow_nan=False) + "\n")


def plain(values: Any) -> Any:
    """Python values that JSON can hold, from nested ones of NumPy or JAX."""
    if isinstance(values, dict):
        return {str(name): plain(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [plain(value) for value in values]
    if isinstance(values, np.generic) or hasattr(values, "tolist"):
        return plain(np.asarray(values).tolist())
    if isinstance(values, float) and not math.isfinite(values):
        return None
    return values
