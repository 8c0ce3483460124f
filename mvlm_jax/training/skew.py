"""Which host is slower than the others: what each spends on input and on its own work in a step.

The devices of all hosts end a step together, so the time of a step is the same on every host and names none. What
differs is how much of it a host waits for the devices: the slow one waits least.
"""

import json
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax

from mvlm_jax.training import key_value
from mvlm_jax.training.activity import DISPATCH, GATHER, INPUT, STEP, WORK, Activity
from mvlm_jax.training.inventory import named

PATIENCE_SECONDS = 0.05  # of process 0 for the newest times of the others
SLOWER = 0.05  # part of a step by which a host that is named spends longer than the others
NOISE_SECONDS = 0.001


class HostTimes(NamedTuple):
    """Of a host, in seconds a step."""

    input: float  # waiting for batches
    work: float  # copying batches to the devices, starting steps, logging
    devices: float  # waiting for the devices

    @property
    def own(self) -> float:
        return self.input + self.work


class Report(NamedTuple):
    step: int  # the last one of those that were timed
    times: HostTimes

    @classmethod
    def decode(cls, fields: Sequence) -> "Report":
        step, times = fields
        return cls(step, HostTimes(*times))


class Skew(NamedTuple):
    """
    Attributes:
      process: whose own time is the longest.
      slowest: its times.
      others: the median of each time over the other hosts.
    """

    process: int
    slowest: HostTimes
    others: HostTimes

    @property
    def seconds(self) -> float:
        return self.slowest.own - self.others.own

    @property
    def delays(self) -> bool:
        """Whether the others wait for this host. One whose own time is hidden behind its devices delays nobody."""
        least = max(SLOWER * sum(self.slowest), NOISE_SECONDS)
        return self.seconds >= least and self.slowest.devices < self.others.devices / 2

    def timing(self) -> dict[str, float | int]:
        """As the log has it."""
        return {"host_skew": self.seconds, "slowest_process": self.process}

    def words(self, names: Sequence[str]) -> str:
        """Empty where nobody is delayed."""
        if not self.delays:
            return ""
        return (
            f"slow: {named(self.process, names)}, input {self.slowest.input:.3f} s and own work "
            f"{self.slowest.work:.3f} s a step (the others, median: {self.others.input:.3f} and {self.others.work:.3f})"
        )


def skew_of(times: Sequence[HostTimes]) -> Skew:
    """Of the times of at least two processes."""
    slowest = max(range(len(times)), key=lambda process: times[process].own)
    others = [each for process, each in enumerate(times) if process != slowest]
    return Skew(slowest, times[slowest], HostTimes(*(statistics.median(column) for column in zip(*others))))


class SkewMeter:
    """Gathers the times of all hosts at the steps that are logged. With one process it does nothing.

    A slow host comes late to its report. Process 0 does not wait for it, and takes the times of the report before.
    """

    _made = 0  # the same in every process; separates the keys of one run from those of the next

    def __init__(self, activity: Activity):
        SkewMeter._made += 1
        self._folder = f"skew/{SkewMeter._made}"
        self._activity = activity
        self._since: int | None = None
        self._reports: list[Report] = []  # the last two

    def restart(self, step: int) -> None:
        """Leaves out what came before."""
        self._activity.take()
        self._since = step

    def report(self, step: int) -> Skew | None:
        """All processes must call it. None in all but process 0, and before every process has reported."""
        if jax.process_count() == 1:
            return None
        since, spent, self._since = self._since, self._activity.take(), step
        if since is None or since == step:
            return None
        parts = (spent[INPUT], spent[WORK] + spent[DISPATCH], spent[STEP])
        own = HostTimes(*(seconds / (step - since) for seconds in parts))
        self._reports = [*self._reports[-1:], Report(step, own)]
        try:
            if jax.process_index():
                key_value.put_own(self._folder, json.dumps(self._reports))
                return None
            with self._activity.phase(GATHER, step):
                return self._together()
        except jax.errors.JaxRuntimeError:
            return None  # the heartbeat says what is the matter

    def _together(self) -> Skew | None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            texts = key_value.read_all(self._folder)
            others = [[Report.decode(report) for report in json.loads(text)] for _, text in sorted(texts.items())]
            all_reports = [self._reports, *others]
            newest = all(reports[-1].step == self._reports[-1].step for reports in all_reports)
            if newest and len(all_reports) == jax.process_count() or time.monotonic() > deadline:
                break
            time.sleep(0.002)
        return newest_skew(all_reports) if len(all_reports) == jax.process_count() else None


def newest_skew(reports: Sequence[Sequence[Report]]) -> Skew | None:
    """Of the newest step that each process has reported; None where there is none."""
    times = [{report.step: report.times for report in each} for each in reports]
    common = set.intersection(*map(set, times))
    return skew_of([each[max(common)] for each in times]) if common else None
