"""The metrics of a run as JSON lines, and on their way to its trackers."""

import json
import math
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mvlm_jax.files import plain, write_text
from mvlm_jax.training.tracker import Examples, Tracker
from mvlm_jax.training.workdir import AVERAGE, METRICS, writing


class MetricsLog:
    """`metrics.jsonl` reads as if the run had never been interrupted, except for `time` and `timing` of its lines."""

    def __init__(self, directory: Path, *, resumed_step: int, writes: bool = True):
        """Drops what was logged after `resumed_step`. Every process of a run opens the log; one of them `writes`."""
        path = directory / METRICS
        lines = [line for line in read_metrics(path) if line["step"] <= resumed_step]
        self._evaluated = {(line["step"], ema) for line in lines for ema in _evaluations(line)}
        self._file = None
        if writes:
            with writing(directory):
                write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
                self._file = path.open("a")
        self._directory = directory
        self._trackers: Tracker | None = None
        self._losses: Collection[str] = ()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_) -> None:
        if self._file:
            with writing(self._directory):
                self._file.close()

    def track(self, trackers: Tracker, *, losses: Collection[str]) -> None:
        """From now on they get the values too, by the names of `grouped`; `losses` are what the loss is made of."""
        self._trackers, self._losses = trackers, losses

    def has_evaluation(self, step: int, *, ema: bool = False) -> bool:
        """Whether an earlier start of the run has logged one, of the average where `ema` says so."""
        return (step, ema) in self._evaluated

    def write(self, step: int, metrics: dict[str, float | int], *, timing: dict[str, float] | None = None) -> None:
        """A line: `step`, `time` in seconds since 1970, the metrics, and `timing`."""
        if not self._file:
            return
        line = {"step": step, "time": round(time.time(), 3), **plain(metrics)}
        line |= {"timing": plain(timing)} if timing else {}
        with writing(self._directory):
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
        if self._trackers is not None:
            rates = {f"throughput/{name}": value for name, value in (timing or {}).items()}
            self._trackers.log(step, grouped(metrics, losses=self._losses) | rates)

    def write_evaluation(self, step: int, results: dict[str, dict[str, Any]], *, ema: bool = False) -> None:
        """The metrics of each `<task>-<split>` as `eval/<task>-<split>/<name>`; see `scalars`.

        Those of the average are `eval/<task>-<split>-ema/<name>`: a run may evaluate both at one step.
        """
        suffix = AVERAGE if ema else ""
        self.write(step, dict(scalars({f"eval/{name}{suffix}": metrics for name, metrics in results.items()})))

    def show(self, step: int, examples: Examples) -> None:
        """For the trackers alone."""
        if self._trackers is not None:
            self._trackers.show(step, examples)


def grouped(metrics: Mapping[str, float | int], *, losses: Collection[str] = ()) -> dict[str, float | int]:
    """The metrics as trackers name them, `<group>/<name>`: they draw the curves of a group beside each other."""
    named = {"loss": "loss/total", "grad_norm": "gradient/norm", "skipped_updates": "gradient/skipped_updates"}

    def name_of(metric: str) -> str:
        group, _, name = metric.partition("/")
        if name:
            return f"rate/{name}" if group == "learning_rate" else metric
        return f"loss/{metric}" if metric in losses else named.get(metric, f"train/{metric}")

    return {name_of(metric): value for metric, value in metrics.items()}


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
