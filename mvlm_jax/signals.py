"""Ctrl-C and SIGTERM while a command starts: one line, and the process is gone.

The imports alone take seconds. A KeyboardInterrupt raised in the middle of them ends in a traceback, or a library
swallows it and the command goes on.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

SAID = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

_statuses: dict[int, int] = {}  # exit status for each signal that is handled here


def leave_at_once(command: str) -> None:
    """From now on SIGINT and SIGTERM end the process, with status 130 and 143, and nothing is cleaned up."""

    def leave(number: int, _) -> None:
        with contextlib.suppress(OSError):
            os.write(2, f"{command}: {SAID[signal.Signals(number)]}\n".encode())
        _kill_children()
        os._exit(_statuses[number])

    for number in SAID:
        # What started this process may want it to ignore the signal, as a shell does of a job in the background.
        if signal.getsignal(number) != signal.SIG_IGN:
            _statuses[number] = 128 + number
            signal.signal(number, leave)


def set_status(number: int, status: int) -> None:
    """Another status for this signal, where it ends the process at once."""
    if number in _statuses:
        _statuses[number] = status


def restore() -> None:
    """Ends `leave_at_once`: Ctrl-C is a KeyboardInterrupt, so that what it breaks off can be cleaned up."""
    for number in _statuses:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _statuses.clear()


@contextlib.contextmanager
def kept_from_children(*numbers: int) -> Iterator[None]:
    """Threads that are started meanwhile, and processes that they or this thread start, do not get these signals.

    A terminal or a scheduler signals the whole group, and a process that still imports cannot ignore it.
    """
    from multiprocessing import resource_tracker

    # Started later, it would unblock the signals.
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _kill_children() -> None:
    """Workers would report that their parent has gone. The resource tracker stays: it removes their shared memory."""
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    kept = getattr(tracker and tracker._resource_tracker, "_pid", None)
    for pid in _children() - {kept}:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _children() -> set[int]:
    """Of this process; where there is no /proc, only those that multiprocessing has finished starting."""
    multiprocessing = sys.modules.get("multiprocessing")
    found = {child.pid for child in multiprocessing.active_children()} if multiprocessing else set()
    with contextlib.suppress(OSError):
        for name in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                # pid (command) state parent …; the command may hold spaces and brackets
                if int(file.read().rpartition(b")")[2].split()[1]) == os.getpid():
                    found.add(int(name))
    return found
