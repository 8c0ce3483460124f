"""The other processes of a run: when one of them is lost, this one ends, rather than wait for it in a collective."""

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import logging
from jax._src import distributed  # the store that the processes share has no public name

BEAT_SECONDS = 5.0
LOST_AFTER_SECONDS = 60.0
# For `jax.distributed.initialize`: later than this module, which says more, and still within two minutes.
HEARTBEAT_TIMEOUT_SECONDS = 90
DONE, FAILED = "done", "failed "


class Heartbeat:
    """While entered, tells the other processes that this one lives, and ends it once one of them does not.

    A single process has no peers, and nothing happens.
    """

    _entered = 0  # the same in every process; keeps the keys of one run apart from those of the next

    def __init__(self, *, beat_seconds: float = BEAT_SECONDS, lost_after_seconds: float = LOST_AFTER_SECONDS):
        self._beat_seconds = beat_seconds
        self._lost_after_seconds = lost_after_seconds
        self._over = threading.Event()

    def __enter__(self) -> "Heartbeat":
        if jax.process_count() > 1:
            Heartbeat._entered += 1
            self._prefix = f"mvlm_jax/peers/{Heartbeat._entered}"
            self._tell("0")
            self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind, error, _) -> None:
        if jax.process_count() == 1:
            return
        if isinstance(error, jax.errors.JaxRuntimeError):
            # Most likely a collective that a lost peer broke off; the watch will then say which one, and end this.
            logging.warning("%s; waiting to see whether a process is lost", " ".join(str(error).split())[:300])
            self._thread.join(self._lost_after_seconds + 3 * self._beat_seconds)
        self._over.set()
        self._thread.join()
        if error is None:
            self._tell(DONE)
            return
        self._tell(FAILED + (str(error) or kind.__name__))
        # JAX would wait for the peers at exit, for minutes, though they have no way to come there any more.
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
                entries = []  # process 0 holds the store: its beats stand still with those of all others
            verdict = lost.verdict({int(key.rpartition("/")[2]): value for key, value in entries})
            if verdict:
                print(f"mvlm: {verdict}; ending this process ({jax.process_index()})", file=sys.stderr, flush=True)
                self._end_process(1)

    def _end_process(self, status: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        if jax.process_index() == 0:
            # The store ends with this process; the others are to read there first why.
            time.sleep(2 * self._beat_seconds)
        os._exit(status)


def _store() -> Any:
    """What the processes share; there once `jax.distributed` is initialized, as it is with several of them."""
    return distributed.global_state.client


class LostProcesses:
    """Tells from the beats that a process has seen so far which of its peers is lost."""

    def __init__(self, *, me: int, count: int, lost_after_seconds: float, clock: Callable[[], float] = time.monotonic):
        self._lost_after_seconds = lost_after_seconds
        self._clock = clock
        self._last: dict[int, tuple[str | None, float]] = {peer: (None, clock()) for peer in range(count) if peer != me}

    def verdict(self, beats: dict[int, str]) -> str | None:
        """What has become of the first peer that is lost, by the latest beat of each process; None: all are well."""
        now = self._clock()
        for peer, (last, since) in self._last.items():
            beat = beats.get(peer, last)
            if beat is not None and beat.startswith(FAILED):
                return f"process {peer} has stopped: {beat.removeprefix(FAILED)}"
            if beat != last or beat == DONE:
                self._last[peer] = beat, now
            elif now - since > self._lost_after_seconds:
                return f"process {peer} is lost: nothing was heard of it for {now - since:.0f} s"
        return None
