"""The metrics of a run, as JSON lines and as TensorBoard events."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mvlm_jax.files import plain, write_text
from mvlm_jax.training.workdir import AVERAGE, METRICS, writing


class MetricsLog:
    """`metrics.jsonl` reads as if the run had never been interrupted, except for the `timing` of its lines."""

    def __init__(self, directory: Path, *, resumed_step: int, writes: bool = True):
        """Drops what was logged after `resumed_step`. Every process of a run opens the log; one of them `writes`."""
        path = directory / METRICS
        lines = [line for line in read_metrics(path) if line["step"] <= resumed_step]
        self._evaluated = {(line["step"], ema) for line in lines for ema in _evaluations(line)}
        self._file = self._events = None
        if writes:
            with writing(directory):
                write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
                self._file = path.open("a")
                self._events = EventsFile(directory, purge_step=resumed_step + 1)
        self._directory = directory

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_) -> None:
        if self._file and self._events:
            with writing(self._directory):
                self._events.close()
                self._file.close()

    def has_evaluation(self, step: int, *, ema: bool = False) -> bool:
        """Whether an earlier start of the run has logged one, of the average where `ema` says so."""
        return (step, ema) in self._evaluated

    def write(self, step: int, metrics: dict[str, float | int], *, timing: dict[str, float] | None = None) -> None:
        if not (self._file and self._events):
            return
        line = {"step": step, **plain(metrics)} | ({"timing": plain(timing)} if timing else {})
        with writing(self._directory):
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
            for name, value in metrics.items():
                self._events.add_scalar(name, value, step)
            for name, value in (timing or {}).items():
                self._events.add_scalar(f"timing/{name}", value, step)
            self._events.flush()

    def write_evaluation(self, step: int, results: dict[str, dict[str, Any]], *, ema: bool = False) -> None:
        """The metrics of each `<task>-<split>` as `eval/<task>-<split>/<name>`; see `scalars`.

        Those of the average are `eval/<task>-<split>-ema/<name>`: a run may evaluate both at one step.
        """
        suffix = AVERAGE if ema else ""
        self.write(step, dict(scalars({f"eval/{name}{suffix}": metrics for name, metrics in results.items()})))


class EventsFile(EventsWriter):
    """Scalars for TensorBoard, in a new events file.

    It is written in this thread. The thread of tensorboardX's `SummaryWriter` dies on a full disk, and its queue then
    blocks the run.
    """

    def __init__(self, directory: Path, *, purge_step: int):
        """TensorBoard ignores the steps of older files from `purge_step` on."""
        super().__init__(str(directory / "events"))
        self._add(purge_step, session_log=SessionLog(status=SessionLog.START))

    def add_scalar(self, name: str, value: float | int, step: int) -> None:
        self._add(step, summary=summary.scalar(name, value))

    def _add(self, step: int, **content) -> None:
        self.write_event(Event(step=step, wall_time=time.time(), **content))


def scalars(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float | int]]:
    """(name, number) of every metric.

    An interval [value, low, high] becomes `name`, `name_low` and `name_high`, a mapping `name/key` for each key, and
    None a nan. Texts are left out: they stay in the file of the evaluation.

    Raises:
      TypeError: a metric of another type, which would have no curve.
    """
    for name, value in metrics.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from scalars(value, f"{path}/")
        elif isinstance(value, str) or (isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)):
            continue
        elif isinstance(value, list | tuple) and len(value) == 3:
            yield from ((f"{path}{suffix}", _number(part, path)) for suffix, part in zip(("", "_low", "_high"), value))
        else:
            yield path, _number(value, path)


def _number(value: Any, path: str) -> float | int:
    if value is None:
        return math.nan
    if isinstance(value, bool | int | float | np.generic | jax.Array) and np.size(value) == 1:
        number = np.asarray(value).item()
        return int(number) if isinstance(number, bool) else number
    raise TypeError(f"the metric {path} is {value!r}; it must be a number or [value, low, high]")


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, none where there is no file; a last line cut short by a crash is left out."""
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def _evaluations(line: dict[str, Any]) -> set[bool]:
    """Whether those in a line are of the average."""
    return {name.split("/")[1].endswith(AVERAGE) for name in line if name.startswith("eval/")}
