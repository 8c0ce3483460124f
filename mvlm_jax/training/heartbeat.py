"""A heartbeat between the processes of a run: a process ends when another one is lost, instead of waiting for it."""

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import logging
from jax._src import distributed  # the key-value store that the processes share has no public API

BEAT_SECONDS = 5.0
LOST_AFTER_SECONDS = 60.0
# For `jax.distributed.initialize`. Later than this module, whose message says more, but within two minutes.
HEARTBEAT_TIMEOUT_SECONDS = 90
DONE, FAILED = "done", "failed "


class Heartbeat:
    """While entered, reports to the other processes that this one is alive, and ends this one when another is not.

    In a run of one process it does nothing.
    """

    _entered = 0  # the same in every process; separates the keys of one run from those of the next

    def __init__(self, *, beat_seconds: float = BEAT_SECONDS, lost_after_seconds: float = LOST_AFTER_SECONDS):
        self._beat_seconds = beat_seconds
        self._lost_after_seconds = lost_after_seconds
        self._over = threading.Event()

    def __enter__(self) -> "Heartbeat":
        if jax.process_count() > 1:
            Heartbeat._entered += 1
            self._prefix = f"mvlm_jax/heartbeat/{Heartbeat._entered}"
            self._tell("0")
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
            self._tell(DONE)
            return
        self._tell(FAILED + (str(error) or kind.__name__))
        # At exit JAX would wait for the others for minutes, though they can no longer get there.
        atexit.register(self._end_process, getattr(error, "status", 1))

    def _tell(self, value: str) -> None:
        _store().key_value_set(f"{self._prefix}/{jax.process_index()}", value, True)

    def _watch(self) -> None:
        lost = LostProcesses(
            me=jax.process_index(), count=jax.process_count(), lost_after_seconds=self._lost_after_seconds
        )
        beat = 0
        while not self._over.wait(self._beat_seconds):
            beat += 1
            try:
                self._tell(str(beat))
                entries = _store().key_value_dir_get(self._prefix)
            except jax.errors.JaxRuntimeError:
                entries = []  # process 0, which holds the store, is gone: no beat arrives any more
            verdict = lost.verdict({int(key.rpartition("/")[2]): value for key, value in entries})
            if verdict:
                print(f"mvlm: {verdict}; ending this process ({jax.process_index()})", file=sys.stderr, flush=True)
                self._end_process(1)

    def _end_process(self, status: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        if jax.process_index() == 0:
            # The store ends with this process. The others must read the reason there first.
            time.sleep(2 * self._beat_seconds)
        os._exit(status)


def _store() -> Any:
    """The store that the processes share. It exists where `jax.distributed` is initialized."""
    return distributed.global_state.client


class LostProcesses:
    """Decides, from the beats that have arrived, which of the other processes is lost."""

    def __init__(self, *, me: int, count: int, lost_after_seconds: float, clock: Callable[[], float] = time.monotonic):
        self._lost_after_seconds = lost_after_seconds
        self._clock = clock
        self._last: dict[int, tuple[str | None, float]] = {each: (None, clock()) for each in range(count) if each != me}

    def verdict(self, beats: dict[int, str]) -> str | None:
        """A message about the first process that is lost, from the latest beat of each; None where all are alive."""
        now = self._clock()
        for process, (last, since) in self._last.items():
            beat = beats.get(process, last)
            if beat is not None and beat.startswith(FAILED):
                return f"process {process} has stopped: {beat.removeprefix(FAILED)}"
            if beat != last or beat == DONE:
                self._last[process] = beat, now
            elif now - since > self._lost_after_seconds:
                return f"process {process} is lost: it sent no heartbeat for {now - since:.0f} s"
        return None
