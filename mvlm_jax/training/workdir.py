"""The directory of a run."""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mvlm_jax import config as config_lib
from mvlm_jax.errors import RunError, UserError
from mvlm_jax.files import REMOTE, plain, write_json, write_text
from mvlm_jax.lock import only_one
from mvlm_jax.stores import lease, mirror
from mvlm_jax.stores.objects import StoreError
from mvlm_jax.training.checkpoints import Checkpoints, check_path

CONFIG = "config.json"
CHECKPOINTS = mirror.CHECKPOINTS
METRICS = mirror.METRICS
EVALUATIONS = "eval"
AVERAGE = "-ema"  # behind the name of an evaluation of the moving average of the parameters
WEIGHTS = "weights.json"  # what the run started from
# Metrics with a value for each class or image, which are in the file of an evaluation alone.
DETAILS = ("class_names", "per_class", "confusion", "predictions")
ORIGIN = ("step", "source", "dataset", "task", "split", "ema")  # in the file of an evaluation, before the metrics


def check_workdir(path: str | Path, *, config: ConfigDict) -> Path:
    """The absolute path of a directory in which a run of this config may begin or go on; touches nothing.

    Raises:
      UserError: not a directory one can write to or read checkpoints from, or that of another config.
    """
    directory = mirror.local_path(path).absolute()
    check_path(directory)
    try:
        mirror.fetched(directory)
        if (directory / "model.safetensors").exists():
            raise UserError(f"workdir {directory} holds an export; give a directory of its own to the run")
        _check_writable(directory)
        _check_same_run(directory, config)
    except OSError as error:
        raise UserError(f"workdir {directory} cannot be used: {error.strerror}") from error
    return directory


def open_workdir(path: str | Path, *, config: ConfigDict, held: ExitStack | None) -> Path:
    """Makes the directory with its `config.json`, or checks that the one there is of the same run.

    Args:
      held: gets the lock that keeps another run out of the directory; None: for a process that does not write.

    Raises:
      UserError: as `check_workdir`, where nothing is touched, or one in use by another run.
    """
    directory = check_workdir(path, config=config)
    try:
        if held is not None:
            directory.mkdir(parents=True, exist_ok=True)
            held.enter_context(_only_one(directory))
            _check_same_run(directory, config)  # one that has ended since may have made it
            if not (directory / CONFIG).exists():
                write_text(directory / CONFIG, config_lib.to_json(config))
    except OSError as error:
        raise UserError(f"workdir {directory} cannot be used: {error.strerror}") from error
    return directory


@contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    copy = mirror.mirror_of(directory)
    if copy is None:
        with only_one(directory, command="mvlm train"):
            yield
        return
    with lease.only_one(copy, command="mvlm train"):
        copy.fetch(again=True)  # a run that has ended meanwhile may have left something
        with copy.kept():
            yield


def publish(directory: Path) -> None:
    """Writes what there is to the store now, where the directory is the copy of a folder in one.

    Raises:
      StoreError: it cannot be written.
    """
    copy = mirror.mirror_of(directory)
    if copy is not None:
        copy.push()


def check_shared(directory: Path, *, writes: bool, patience: float = 60.0) -> None:
    """Refuses a directory in which this process does not see what another one wrote.

    Args:
      writes: whether this process is the one that wrote.
      patience: seconds to wait for it, since a network file system shows it late.

    Raises:
      UserError: nothing of a run is there.
    """
    deadline = time.monotonic() + patience
    if not writes:
        fetch(directory, again=True)
    while not (directory / CONFIG).exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"workdir {directory} has no {CONFIG} here, though process 0 wrote one; "
                "give a directory that all hosts share, such as a mounted bucket"
            )
        time.sleep(1)
        fetch(directory, again=True)


def has_checkpoint(directory: Path) -> bool:
    with Checkpoints.for_reading(directory / CHECKPOINTS) as checkpoints:
        return checkpoints.latest_step() is not None


def read_config(directory: Path) -> ConfigDict:
    """The config of the run in a directory.

    Raises:
      UserError: there is no run, or one of a later version.
    """
    fetch(directory)
    try:
        return config_lib.from_json((directory / CONFIG).read_bytes(), source=directory / CONFIG)
    except OSError as error:
        raise UserError(f"{directory} is not the workdir of a run: no {CONFIG} in it can be read") from error


def fetch(directory: Path, *, again: bool = False) -> None:
    """Copies the run to this machine where the directory is the copy of a folder in a store, but for its checkpoints.

    Args:
      again: also where it was copied before; it may have changed since.

    Raises:
      UserError: it cannot be read.
    """
    copy = mirror.mirror_of(directory)
    try:
        if copy is not None:
            copy.fetch(again=again)
    except StoreError as error:
        raise UserError(f"{directory} cannot be read: {error.strerror}") from error


class Evaluation(NamedTuple):
    """What an evaluation has left in a workdir."""

    name: str  # `<task>-<split>`, as in the log
    source: str  # URI; empty in files of an earlier version
    metrics: dict[str, Any]
    ema: bool = False  # whether it is of the moving average of the parameters


def with_origin(
    results: Mapping[str, Mapping[str, Any]], *, step: int, source: str, ema: bool = False
) -> dict[str, dict[str, Any]]:
    """The metrics of each `<task>-<split>`, as JSON can hold them, with what they were taken of before them."""
    origin = {"step": step, "source": _absolute(source), "dataset": dataset_of(source)}
    of_average = {"ema": True} if ema else {}
    return {
        name: origin | {"task": name.partition("-")[0], "split": name.partition("-")[2]} | of_average | plain(metrics)
        for name, metrics in results.items()
    }


def write_evaluations(
    directory: Path, results: Mapping[str, Mapping[str, Any]], *, step: int, source: str, ema: bool = False
) -> None:
    """`eval/<task>-<dataset>-<split>.json` for the metrics of each `<task>-<split>`; `-ema` for those of the average.

    A file is replaced only by a later evaluation on the same source.

    Raises:
      RunError: there is no room for them.
    """
    with writing(directory):
        for name, values in with_origin(results, step=step, source=source, ema=ema).items():
            stem = evaluation_stem(name, source) + (AVERAGE if ema else "")
            write_json(directory / EVALUATIONS / f"{stem}.json", values)


def read_evaluations(directory: Path, *, step: int) -> dict[str, Evaluation]:
    """Those whose file is of that step, by its stem; what else lies there as JSON is left alone."""
    files = {path.stem: json.loads(path.read_text()) for path in sorted((directory / EVALUATIONS).glob("*.json"))}
    return {
        stem: Evaluation(
            name=f"{values['task']}-{values['split']}" if {"task", "split"} <= set(values) else stem,
            source=values.get("source", ""),
            metrics={name: value for name, value in values.items() if name not in ORIGIN},
            ema=values.get("ema") is True,
        )
        for stem, values in files.items()
        if isinstance(values, dict) and values.get("step") == step
    }


def evaluation_stem(name: str, source: str) -> str:
    """The file name, without its suffix, of the results `<task>-<split>` on a source: another one for each source.

    What is not simply `tfds:<dataset>:<split>` has a hash of the URI in its name.
    """
    task, _, split = name.partition("-")
    dataset = dataset_of(source)
    if source == f"tfds:{dataset}:{split}" and re.fullmatch(r"[a-z0-9_]+:[a-z0-9_]+", f"{dataset}:{split}"):
        return f"{task}-{dataset}-{split}"
    digest = hashlib.blake2b(_absolute(source).encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    labels = dict.fromkeys((dataset, _label(split)))  # a file that is called as its split is named once
    return "-".join([task, *filter(None, labels), digest])


def dataset_of(source: str) -> str:
    """A short name of the data behind a URI or a folder; not one that no other data has."""
    parts = re.fullmatch(r"(\w+:)?([^?]*).*", source, re.DOTALL)
    assert parts  # the pattern matches any text
    scheme, path = parts.groups()
    path = re.sub(r":[^:/\[]*(\[[^\]/]*\])?$", "", path)  # the split
    return _label(path if scheme == "tfds:" else Path(path).stem)


def _absolute(source: str) -> str:
    """The URI, or the path of a folder, as it is called from any directory."""
    if source.startswith("tfds:"):
        return source
    scheme = re.match(r"(\w+:)?", source)
    assert scheme  # the pattern matches any text
    if REMOTE.match(source[scheme.end() :]):
        return source
    return scheme[0] + os.path.join(os.getcwd(), os.path.expanduser(source[scheme.end() :]))


def _label(text: str) -> str:
    return re.sub(r"[^\w.]+", "_", text, flags=re.ASCII).strip("._")[:40]


def _check_writable(directory: Path) -> None:
    nearest = next(parent for parent in (directory, *directory.parents) if parent.exists())
    if not nearest.is_dir():
        raise UserError(f"workdir {directory} cannot be used: {nearest} is a file; give the path of a directory")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"workdir {directory} cannot be used: {nearest} is not writable; give a writable directory")


def _check_same_run(directory: Path, config: ConfigDict) -> None:
    if not (directory / CONFIG).exists():
        return
    changed = config_lib.differences(read_config(directory), config, changeable=config_lib.CHANGEABLE_ON_RESUME)
    if changed:
        raise UserError(
            f"workdir {directory} is the workdir of another config: {changed}; "
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
