"""What keeps the processes of a run from going on: an input pipeline, a process at other work, or a step itself."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mvlm_jax.training.activity import (
    CHECKPOINT,
    COMPILE,
    DISPATCH,
    EVALUATION,
    GATHER,
    INPUT,
    START,
    STEP,
    WORK,
    Whereabouts,
)
from mvlm_jax.training.inventory import named

NAMED = 4  # processes in a message; the others are counted
PATIENT = 10  # times as long may take what all processes do at once and what is no step: a checkpoint, an evaluation

_DOING = {
    START: "starting",
    COMPILE: "compiling the training step",
    INPUT: "waiting for the batch of step {step}",
    DISPATCH: "in step {step}",
    STEP: "in step {step}",
    WORK: "at work of its own after step {step}",
    GATHER: "reading the times of the other hosts after step {step}",
    CHECKPOINT: "saving the checkpoint of step {step}",
    EVALUATION: "evaluating step {step}",
}


class Stall(NamedTuple):
    seconds: float  # that nothing has gone on for
    message: str


def doing(where: Whereabouts) -> str:
    return _DOING[where.phase].format(step=where.step)


def find_stall(table: Mapping[int, Whereabouts], *, names: Sequence[str], after: float) -> Stall | None:
    """What the processes wait for; None where none has waited for `after` seconds.

    Where some wait for a step that others have not entered, the others are the reason. Where all have entered it, no
    process is: the step itself does not end.
    """
    waiting = {p: where for p, where in table.items() if where.phase in (DISPATCH, STEP) and where.seconds >= after}
    if waiting:
        step = min(where.step for where in waiting.values())
        seconds = min(where.seconds for where in waiting.values())
        behind = {p: where for p, where in table.items() if where.entered < step}
        if not behind:
            message = f"all processes entered step {step}; it has not ended for {seconds:.0f} s"
            return Stall(seconds, f"{message}: a collective or a device is stuck")
        return Stall(seconds, f"{_described(behind, names, count=len(table))}; {_others(waiting)} for step {step}")
    starved = {p: where for p, where in table.items() if where.phase == INPUT and where.seconds >= after}
    if starved:
        return Stall(min(where.seconds for where in starved.values()), _described(starved, names, count=len(table)))
    seconds = min((where.seconds for where in table.values()), default=0.0)
    if seconds >= PATIENT * after:
        return Stall(seconds, _described(table, names, count=len(table)))
    return None


class StallReports:
    """Decides when a stall is reported: once, and then each time that it has become twice as long."""

    def __init__(self, *, names: Sequence[str], after: float):
        self._names = names
        self._after = after
        self._next = 0.0

    def due(self, table: Mapping[int, Whereabouts], *, longest_step: float) -> str | None:
        """The message to be shown now.

        Args:
          longest_step: seconds of the longest step so far; a run whose steps take minutes is not stuck in each.
        """
        stall = find_stall(table, names=self._names, after=max(self._after, 3 * longest_step))
        if stall is None:
            self._next = 0.0
        elif stall.seconds >= self._next:
            self._next = 2 * stall.seconds
            return stall.message
        return None


def _described(table: Mapping[int, Whereabouts], names: Sequence[str], *, count: int) -> str:
    """A clause for each thing that these of `count` processes do."""
    alike: dict[str, list[int]] = {}
    for process, where in sorted(table.items()):
        alike.setdefault(doing(where), []).append(process)
    clauses = []
    for what, processes in alike.items():
        seconds = min(table[process].seconds for process in processes)
        one = len(processes) == 1
        who = "all processes" if len(processes) == count else _list([named(process, names) for process in processes])
        if table[processes[0]].phase == INPUT:
            pipeline = f"{'its' if one else 'their'} input pipeline{'' if one else 's'}"
            did = f"waited {seconds:.0f} s for {pipeline} (the batch of step {table[processes[0]].step})"
        else:
            did = f"been {what} for {seconds:.0f} s"
        clauses.append(f"{who} {'has' if one else 'have'} {did}")
    return "; ".join(clauses)


def _list(words: Sequence[str]) -> str:
    shown = list(words[:NAMED])
    if len(words) > NAMED:
        shown.append(f"{len(words) - NAMED} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _others(waiting: Mapping[int, Whereabouts]) -> str:
    return "1 process waits" if len(waiting) == 1 else f"{len(waiting)} processes wait"
