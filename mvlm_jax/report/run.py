"""What a run has left in its directory, read for a report."""

import dataclasses
import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mvlm_jax.training import workdir as workdir_lib
from mvlm_jax.training.checkpoints import Checkpoints
from mvlm_jax.training.environment import ENVIRONMENT
from mvlm_jax.training.metrics_log import read_metrics

Point = tuple[int, float]  # a step, and a value
EVENTS = "*tfevents*"
START_IN_FIRST = 8  # records of an events file among which the start is


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as its directory shows it."""

    directory: Path
    config: ConfigDict
    lines: list[dict[str, Any]]  # of the log: training and evaluation
    evaluations: dict[str, dict[str, Any]]  # the content of each file of eval/, by its stem
    checkpoints: list[int]  # steps that are kept
    events: list[int]  # the step after which each start went on that left an events file
    environment: dict[str, Any]  # empty: not recorded
    weights: dict[str, Any] | None  # what the run started from
    unreadable: list[str]  # files that were left out, with the reason
    label: str = ""  # beside other runs; empty: the directory's name

    @property
    def name(self) -> str:
        return self.label or self.directory.name

    @property
    def training(self) -> list[dict[str, Any]]:
        """The lines of training."""
        return [line for line in self.lines if not _is_evaluation(line)]

    @property
    def evaluation(self) -> list[dict[str, Any]]:
        """The lines of evaluations."""
        return [line for line in self.lines if _is_evaluation(line)]

    @property
    def last_step(self) -> int:
        """The last one that the log or a checkpoint knows of."""
        return max([0, *(line["step"] for line in self.lines), *self.checkpoints])

    @property
    def starts(self) -> list[int]:
        """The step after which each start of the run went on, 0 for the first; events files may be of an older program
        than environment.json, or be gone."""
        recorded = [start["step"] for start in self.recorded_starts if isinstance(start.get("step"), int)]
        return recorded if len(recorded) >= len(self.events) else self.events

    @property
    def commands(self) -> list[str]:
        """Those that started the run, as far as they are recorded."""
        return [start["command"] for start in self.recorded_starts if isinstance(start.get("command"), str)]

    @property
    def recorded_starts(self) -> list[dict[str, Any]]:
        """What each start of the run recorded of itself; empty where nothing is."""
        starts = self.environment.get("starts")
        return [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []

    @property
    def is_finished(self) -> bool:
        return self.last_step >= self.config.steps


def read_run(directory: Path, *, config: ConfigDict | None = None) -> Run:
    """
    Args:
      config: that of the run, in which what a report may choose is changed; None: as it is there.

    Raises:
      UserError: there is no run, or one of a later version.
    """
    workdir_lib.fetch(directory)
    unreadable: list[str] = []
    evaluations = {
        file.stem: content
        for file in sorted((directory / workdir_lib.EVALUATIONS).glob("*.json"))
        if (content := _read(file, unreadable)) is not None
    }
    with Checkpoints.for_reading(directory / workdir_lib.CHECKPOINTS) as checkpoints:
        steps = checkpoints.steps()
    return Run(
        directory=directory,
        config=workdir_lib.read_config(directory) if config is None else config,
        lines=[line for line in read_metrics(directory / workdir_lib.METRICS) if isinstance(line.get("step"), int)],
        evaluations=evaluations,
        checkpoints=steps,
        events=event_starts(directory),
        environment=_read(directory / ENVIRONMENT, unreadable) or {},
        weights=_read(directory / workdir_lib.WEIGHTS, unreadable),
        unreadable=unreadable,
    )


def event_starts(directory: Path) -> list[int]:
    """The step after which each start of a run went on, in order of time.

    Each start makes an events file, whose first records say from which step on the older files are void.
    """
    found = []
    for file in sorted(directory.glob(EVENTS), key=lambda file: file.stat().st_mtime):
        for event in _events(file):
            if event.session_log.status == SessionLog.START:
                found.append(max(0, event.step - 1))
                break
    return found


def series(lines: list[dict[str, Any]]) -> dict[str, list[Point]]:
    """(step, value) of each number in the lines, by name; what lies within `timing` goes by its own name."""
    found: dict[str, list[Point]] = {}
    for line in lines:
        for name, value in _numbers(line):
            found.setdefault(name, []).append((line["step"], value))
    return found


def _is_evaluation(line: Mapping[str, Any]) -> bool:
    return any(name.startswith("eval/") for name in line)


def _numbers(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in line.items():
        if name in ("step", "time"):
            continue
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif isinstance(value, int | float) and math.isfinite(value):
            yield name, float(value)


def _events(file: Path) -> Iterator[Event]:
    """The first records of an events file: each has its length, a checksum of it, the content and its checksum."""
    try:
        with file.open("rb") as records:
            for _ in range(START_IN_FIRST):
                head = records.read(12)
                if len(head) < 12:
                    return
                content = records.read(struct.unpack("<Q", head[:8])[0] & 0xFFFFFF)
                records.read(4)
                yield Event.FromString(content)
    except Exception:  # a file that was cut short or is damaged: the library's errors have no common type
        return


def _read(file: Path, unreadable: list[str]) -> dict[str, Any] | None:
    """None where there is no file, or none that can be read, which is noted."""
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        unreadable.append(f"{file.parent.name}/{file.name}: {' '.join(str(error).split())}")
        return None
    if not isinstance(content, dict):
        unreadable.append(f"{file.parent.name}/{file.name}: a JSON object is needed")
        return None
    return content
