"""How a run is asked to stop: SIGTERM, a preemption notice, or Ctrl-C once."""

import signal
import threading
from collections.abc import Callable
from typing import Any

import jax
from absl import logging
from jax.experimental import multihost_utils


class Interruption:
    """While entered, these signals stop the run after the step in progress.

    Ctrl-C does so from the first step on: before that there is nothing to save. With several processes, a signal to
    any of them stops all of them after the same step. A second Ctrl-C is a KeyboardInterrupt. Outside the main thread,
    which no signal reaches, nothing is handled.
    """

    def __init__(self):
        self._requested = False
        self._previous: dict[int, Any] = {}  # handlers by the number of the signal

    def __enter__(self) -> "Interruption":
        if jax.process_count() > 1:
            # JAX handles SIGTERM and notifies the other processes. With another handler they would wait for ever.
            self._handle(signal.SIGINT, self._interrupted)
        else:
            self._handle(signal.SIGTERM, self._terminated)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def step_begun(self) -> None:
        """From now on Ctrl-C waits for the end of a step."""
        self._handle(signal.SIGINT, self._interrupted)

    def requested(self, step: int) -> bool:
        """Whether to stop after this step; every process asks at every step."""
        return multihost_utils.reached_preemption_sync_point(step) if jax.process_count() > 1 else self._requested

    def _handle(self, number: int, handler: Callable[..., None]) -> None:
        if number not in self._previous and threading.current_thread() is threading.main_thread():
            self._previous[number] = signal.signal(number, handler)

    def _interrupted(self, *_) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        logging.warning("stopping after this step; Ctrl-C again stops at once, without a checkpoint")
        signal.raise_signal(signal.SIGTERM)

    def _terminated(self, *_) -> None:
        self._requested = True
