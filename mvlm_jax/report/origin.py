"""Where a run came from: commit, versions, hardware, command, and what it cost, as far as that was recorded."""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mvlm_jax.report.page import short
from mvlm_jax.report.run import Run
from mvlm_jax.stores.mirror import mirror_of

NOT_RECORDED = "not recorded"
PAUSE = 3600.0  # seconds between two lines of the log above which a run is taken to have rested


class Fact(NamedTuple):
    name: str
    value: str


def origin(run: Run) -> list[Fact]:
    """Of the last start, with what differed in earlier ones."""
    recorded = run.recorded_starts
    last = recorded[-1] if recorded else run.environment

    def of(name: str) -> str:
        values = list(dict.fromkeys(_text(start[name]) for start in recorded or [last] if start.get(name)))
        return " → ".join(values) or NOT_RECORDED

    devices = f"{last['devices']} x {last['device_kind']}" if {"devices", "device_kind"} <= set(last) else NOT_RECORDED
    facts = [
        Fact("Commit", of("commit")),
        Fact("mvlm-jax", of("version")),
        Fact("Python", of("python")),
        Fact("Packages", _pairs(last.get("packages", last.get("versions")))),
        Fact("Devices", devices),
        Fact("Mesh", _pairs(last.get("mesh"))),
        Fact("Host", _host(last)),
        Fact("Command", of("command")),
        Fact("Started", _started(recorded)),
    ]
    if run.weights is not None:
        facts.append(Fact("Started from", _weights(run.weights)))
    elif not any(run.config.init_from.values()):
        facts.append(Fact("Started from", "random weights"))
    return facts


def cost(run: Run) -> list[Fact]:
    """Time and memory, as far as the log tells."""
    step_seconds = _step_seconds(run)
    times = [line["time"] for line in run.lines if isinstance(line.get("time"), int | float)]
    pauses = sum(after - before for before, after in zip(times, times[1:]) if after - before > PAUSE)
    wall = times[-1] - times[0] - pauses if len(times) > 1 else None
    devices = run.recorded_starts[-1].get("devices") if run.recorded_starts else None
    examples = f"{run.last_step * run.config.batch_size:,} ({run.last_step:,} steps of {run.config.batch_size:,})"
    facts = [
        Fact("Examples seen", examples),
        Fact("Steps alone", duration(step_seconds) if step_seconds else NOT_RECORDED),
        Fact("First to last line of the log", NOT_RECORDED if wall is None else duration(wall)),
        Fact("Device hours", NOT_RECORDED if not devices or not step_seconds else short(devices * step_seconds / 3600)),
        Fact("On the disk", NOT_RECORDED if mirror_of(run.directory) else size(_bytes_in(run.directory))),
    ]
    if pauses:
        facts.insert(3, Fact("Left out of it", f"pauses of an hour and more, {duration(pauses)} in all"))
    return facts


def duration(seconds: int | float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def size(count: int | float) -> str:
    """Of so many bytes."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _step_seconds(run: Run) -> int | float:
    """Of all steps that are in the log, without compilation, evaluations and pauses."""
    seconds, before = 0.0, 0
    for line in run.training:
        each = line["timing"].get("seconds_per_step") if isinstance(line.get("timing"), Mapping) else None
        if isinstance(each, int | float):
            seconds += each * (line["step"] - before)
        before = line["step"]
    return seconds


def _bytes_in(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else short(value)


def _pairs(named: Any) -> str:
    """Such as versions: each name with its value."""
    if not isinstance(named, Mapping) or not named:
        return NOT_RECORDED
    return ", ".join(f"{name} {value}" for name, value in named.items())


def _host(start: Mapping[str, Any]) -> str:
    parts = [str(start[name]) for name in ("platform",) if start.get(name)]
    parts += [f"{start['host_cpus']} CPUs"] if start.get("host_cpus") else []
    parts += [f"{start['processes']} processes"] if start.get("processes", 1) > 1 else []
    return ", ".join(parts) or NOT_RECORDED


def _started(recorded: Sequence[Mapping[str, Any]]) -> str:
    times = [start["time"] for start in recorded if isinstance(start.get("time"), int | float)]
    if not times:
        return NOT_RECORDED
    said = [f"{datetime.datetime.fromtimestamp(time, datetime.UTC):%Y-%m-%d %H:%M} UTC" for time in times]
    return said[0] + (f"; {len(said)} starts, the last {said[-1]}" if len(said) > 1 else "")


def _weights(report: Mapping[str, Any]) -> str:
    loaded = report.get("loaded")
    parts = [
        f"{one.get('encoder', 'model')}: {one.get('source', NOT_RECORDED)}"
        + (f", commit {one['revision']}" if one.get("revision") else "")
        for one in (loaded if isinstance(loaded, list) else [])
        if isinstance(one, Mapping)
    ]
    return "; ".join(parts) or "weights.json, whose content is not known here"
