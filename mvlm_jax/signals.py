"""Ctrl-C and SIGTERM while a command starts: they end the process at once, with one line.

The imports alone take seconds. A KeyboardInterrupt raised in the middle of them ends in a traceback, or a library
swallows it and the command goes on.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

MESSAGES = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

_statuses: dict[int, int] = {}  # exit status for each signal that is handled here


def leave_at_once(command: str) -> None:
    """From now on SIGINT and SIGTERM end the process without any cleaning up, with status 130 and 143."""

    def leave(number: int, _) -> None:
        with contextlib.suppress(OSError):
            os.write(2, f"{command}: {MESSAGES[signal.Signals(number)]}\n".encode())
        _kill_children()
        os._exit(_statuses[number])

    for number in MESSAGES:
        # The parent process may want the signal to be ignored, as a shell does for a job in the background.
        if signal.getsignal(number) != signal.SIG_IGN:
            _statuses[number] = 128 + number
            signal.signal(number, leave)


def set_status(number: int, status: int) -> None:
    """Sets another exit status for a signal that ends the process at once."""
    if number in _statuses:
        _statuses[number] = status


def restore() -> None:
    """Ends `leave_at_once`: Ctrl-C raises KeyboardInterrupt again, so that an interrupted command can clean up."""
    for number in _statuses:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _statuses.clear()


@contextlib.contextmanager
def kept_from_children(*numbers: int) -> Iterator[None]:
    """Blocks these signals for threads started in the block, and for processes that they or this thread start.

    A terminal or a scheduler signals the whole process group, and a process that is still importing cannot ignore it.
    """
    from multiprocessing import resource_tracker

    # If it were started in the block, it would unblock the signals.
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _kill_children() -> None:
    """Workers would report that their parent is gone. The resource tracker lives on: it removes their shared memory."""
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    kept = getattr(tracker and tracker._resource_tracker, "_pid", None)
    for pid in _children() - {kept}:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _children() -> set[int]:
    """Child processes. Where there is no /proc, only those that multiprocessing has finished starting."""
    multiprocessing = sys.modules.get("multiprocessing")
    children = {child.pid for child in multiprocessing.active_children()} if multiprocessing else set()
    with contextlib.suppress(OSError):
        for name in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                # pid (command) state parent …; the command may hold spaces and brackets
                if int(file.read().rpartition(b")")[2].split()[1]) == os.getpid():
                    children.add(int(name))
    return children
