"""The console command `mvlm`, also `python -m mvlm_jax`: what a process of its own needs beside the command."""

import io
import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import Any

from mvlm_jax import allocator, cli, signals

COMPUTING = ("train", "evaluate")  # commands with programs that ask for much memory, again and again


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. A signal while it starts, or a reader of its output that has gone, ends it without a traceback.

    Returns the exit status: that of the command; 141 where the reader of its output has gone, as of any command that
    SIGPIPE ends; 1 where the output cannot be written.
    """
    if argv is None and sys.argv[1:2] and sys.argv[1] in COMPUTING:
        allocator.restart_with_huge_pages()
    argv = list(sys.argv[1:] if argv is None else argv)
    signals.leave_at_once(" ".join(["mvlm", *argv[:1]]))
    sys.unraisablehook = _report
    # Silences the resource tracker's warning about shared memory of workers that were killed.
    sys.warnoptions.append("ignore:resource_tracker:UserWarning")
    try:
        status = cli.main(argv)
        if sys.stdout:
            sys.stdout.flush()
        return status
    except OSError:
        failure = _output_failure()
        if failure is None:
            raise
        if isinstance(failure, BrokenPipeError):
            return 128 + signal.SIGPIPE
        print(f"mvlm: the output cannot be written: {failure.strerror}", file=sys.stderr)
        return 1


def _output_failure() -> OSError | None:
    """What writing to stdout or stderr fails with; from then on their output goes nowhere, without an error."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            if _reader_has_gone(stream):
                raise BrokenPipeError
            stream.write("")
            stream.flush()
        except OSError as error:
            # Else the interpreter fails at what is left in the buffer when it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            return error
    return None


def _reader_has_gone(stream: io.TextIOBase) -> bool:
    """Also where nothing is left in a buffer, whose writing would tell."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):
        return False  # not backed by a file descriptor
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _report(unraisable: Any) -> None:
    """As the interpreter reports it, but for what TensorStore calls when reading a checkpoint has failed.

    The first part that cannot be read ends the reading and its event loop; each part that is read later then fails to
    tell the loop that it is done.
    """
    called = unraisable.exc_traceback.tb_frame.f_code.co_name if unraisable.exc_traceback else ""
    if called != "call_soon_threadsafe" or str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
    sys.exit(main())
