"""What a process is doing, and how long it has spent on what."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

START = "start"  # until the first batch is read
COMPILE = "compile"  # the first call of the training step
INPUT = "input"  # waits for the batch of a step
DISPATCH = "dispatch"  # calls the program of a step; on some platforms this waits for the step itself
STEP = "step"  # waits for a step to end on the devices
WORK = "work"  # everything else: copies batches to the devices, logs
GATHER = "gather"  # process 0 reads the times of the others
CHECKPOINT = "checkpoint"
EVALUATION = "evaluation"
PHASES = (START, COMPILE, INPUT, DISPATCH, STEP, WORK, GATHER, CHECKPOINT, EVALUATION)


class Whereabouts(NamedTuple):
    """What a process was doing at some moment."""

    phase: str
    step: int  # that the phase is about
    entered: int  # the last step whose program the process has called
    seconds: float  # since the phase began

    def encode(self) -> str:
        return f"{self.phase} {self.step} {self.entered} {self.seconds:.1f}"

    @classmethod
    def decode(cls, text: str) -> "Whereabouts":
        phase, step, entered, seconds = text.split()
        return cls(phase, int(step), int(entered), float(seconds))


class Activity:
    """The main thread enters phases; other threads may ask where it is."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._entered = 0
        self._now = (START, 0, clock())  # replaced as a whole: another thread reads it
        self._spent = dict.fromkeys(PHASES, 0.0)
        self._longest = dict.fromkeys(PHASES, 0.0)

    @contextlib.contextmanager
    def phase(self, name: str, step: int) -> Iterator[None]:
        """Outside such a block the process is at work on its own."""
        if name == DISPATCH:
            self._entered = step
        self._enter(name, step)
        try:
            yield
        finally:
            if name == COMPILE:
                self._entered = step
            self._enter(WORK, step)

    def whereabouts(self) -> Whereabouts:
        phase, step, since = self._now
        return Whereabouts(phase, step, self._entered, self._clock() - since)

    def longest(self, phase: str) -> float:
        """Seconds of the longest stay in a phase that has ended."""
        return self._longest[phase]

    def take(self) -> dict[str, float]:
        """Seconds in each phase since the last call."""
        phase, step, _ = self._now
        self._enter(phase, step)
        spent, self._spent = self._spent, dict.fromkeys(PHASES, 0.0)
        return spent

    def _enter(self, name: str, step: int) -> None:
        phase, _, since = self._now
        now = self._clock()
        self._spent[phase] += now - since
        self._longest[phase] = max(self._longest[phase], now - since)
        self._now = (name, step, now)
