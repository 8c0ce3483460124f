"""A heartbeat between the processes of a run: a process ends when another one is lost, instead of waiting for it.

A beat also says where its process is, from which process 0 tells what a run that stands still waits for.
"""

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import jax
from absl import logging

from mvlm_jax.training import key_value
from mvlm_jax.training.activity import STEP, Activity, Whereabouts
from mvlm_jax.training.inventory import named, told_names
from mvlm_jax.training.stall import StallReports, doing

BEAT_SECONDS = 5.0
LOST_AFTER_SECONDS = 60.0
STALLED_AFTER_SECONDS = 120.0
# For `jax.distributed.initialize`. Later than this module, whose message says more, but within two minutes.
HEARTBEAT_TIMEOUT_SECONDS = 90
DONE, FAILED = "done", "failed "


class Heartbeat:
    """While entered, reports to the other processes that this one is alive, and ends this one when another is not.

    In a run of one process it does nothing.
    """

    _entered = 0  # the same in every process; separates the keys of one run from those of the next

    def __init__(
        self,
        activity: Activity | None = None,
        *,
        names: Sequence[str] = (),
        beat_seconds: float = BEAT_SECONDS,
        lost_after_seconds: float = LOST_AFTER_SECONDS,
        stalled_after_seconds: float = STALLED_AFTER_SECONDS,
    ):
        """
        Args:
          activity: of this process; without it nothing is said of a run that stands still.
          names: of the hosts of all processes; default: those that they have told when they were connected.
          stalled_after_seconds: without progress, after which process 0 warns.
        """
        self._activity = activity
        self._names = names
        self._beat_seconds = beat_seconds
        self._lost_after_seconds = lost_after_seconds
        self._stalled_after_seconds = stalled_after_seconds
        self._over = threading.Event()

    def __enter__(self) -> "Heartbeat":
        if jax.process_count() > 1:
            Heartbeat._entered += 1
            self._names = self._names or told_names()
            self._folder = f"heartbeat/{Heartbeat._entered}"
            self._beat(0)
            self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind, error, _) -> None:
        if jax.process_count() == 1:
            return
        if isinstance(error, jax.errors.JaxRuntimeError):
            # Most likely a collective failed because a process is lost. The watch then names it and ends this process.
            logging.warning("%s; waiting to see whether a process is lost", " ".join(str(error).split())[:300])
            self._thread.join(self._lost_after_seconds + 3 * self._beat_seconds)
        self._over.set()
        self._thread.join()
        if error is None:
            key_value.put_own(self._folder, DONE)
            return
        key_value.put_own(self._folder, FAILED + (str(error) or kind.__name__))
        # At exit JAX would wait for the others for minutes, though they can no longer get there.
        atexit.register(self._end_process, getattr(error, "status", 1))

    def _beat(self, number: int) -> None:
        where = "" if self._activity is None else self._activity.whereabouts().encode()
        key_value.put_own(self._folder, f"{number} {where}")

    def _watch(self) -> None:
        lost = LostProcesses(
            me=jax.process_index(),
            count=jax.process_count(),
            lost_after_seconds=self._lost_after_seconds,
            names=self._names,
        )
        stalls = StallReports(names=self._names, after=self._stalled_after_seconds)
        number = 0
        while not self._over.wait(self._beat_seconds):
            number += 1
            try:
                self._beat(number)
                beats = key_value.read_all(self._folder)
            except jax.errors.JaxRuntimeError:
                beats = {}  # process 0, which holds the store, is gone: no beat arrives any more
            verdict = lost.verdict(beats)
            if verdict:
                print(f"mvlm: {verdict}; ending this process ({jax.process_index()})", file=sys.stderr, flush=True)
                self._end_process(1)
            if self._activity is not None and jax.process_index() == 0:
                stalled = stalls.due(_table(beats), longest_step=self._activity.longest(STEP))
                if stalled:
                    logging.warning("%s", stalled)

    def _end_process(self, status: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        if jax.process_index() == 0:
            # The store ends with this process. The others must read the reason there first.
            time.sleep(2 * self._beat_seconds)
        os._exit(status)


class LostProcesses:
    """Decides, from the beats that have arrived, which of the other processes is lost."""

    def __init__(
        self,
        *,
        me: int,
        count: int,
        lost_after_seconds: float,
        names: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ):
        self._lost_after_seconds = lost_after_seconds
        self._names = names
        self._clock = clock
        self._last: dict[int, tuple[str | None, float]] = {each: (None, clock()) for each in range(count) if each != me}

    def verdict(self, beats: Mapping[int, str]) -> str | None:
        """A message about the first process that is lost, from the latest beat of each; None where all are alive."""
        now = self._clock()
        for process, (last, since) in self._last.items():
            beat = beats.get(process, last)
            who = named(process, self._names)
            if beat is not None and beat.startswith(FAILED):
                return f"{who} has stopped: {beat.removeprefix(FAILED)}"
            if beat != last or beat == DONE:
                self._last[process] = beat, now
            elif now - since > self._lost_after_seconds:
                where = None if beat is None else _where(beat)
                seen = "" if where is None else f"; it was last seen {doing(where)}"
                return f"{who} is lost: it sent no heartbeat for {now - since:.0f} s{seen}"
        return None


def _where(beat: str) -> Whereabouts | None:
    """None in the beat of a process that does not say."""
    where = beat.partition(" ")[2]
    return None if beat.startswith((DONE, FAILED)) or not where else Whereabouts.decode(where)


def _table(beats: Mapping[int, str]) -> dict[int, Whereabouts]:
    """Empty where a process has not said yet where it is, or is done."""
    table = {process: _where(beat) for process, beat in beats.items()}
    if len(table) < jax.process_count() or None in table.values():
        return {}
    return {process: where for process, where in table.items() if where is not None}
