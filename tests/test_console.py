"""Lines and the progress bar on stderr."""

import contextlib
import logging as standard_logging
import os
import pty
import sys
import termios

import pytest
from absl import logging

from mvlm_jax import console


@pytest.fixture(autouse=True)
def own_handlers():
    """What is set up here is gone for other tests."""
    root = standard_logging.getLogger()
    before = list(root.handlers)
    yield
    root.handlers[:] = before


@contextlib.contextmanager
def terminal():
    """stderr as a terminal of 200 columns; what was written to it is then in the list."""
    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (50, 200))
    written = []
    with os.fdopen(writer, "w") as stream, contextlib.redirect_stderr(stream):
        yield written
        print("written", file=stream, flush=True)  # the last of it: one read may give a part
        received = b""
        while not received.endswith(b"written\r\n"):
            received += os.read(reader, 100_000)
        written.append(received.decode())
    os.close(reader)


def all_lines(record):
    return True


def test_lines_are_plain_and_say_only_of_warnings_that_they_are_some(capsys):
    console.show_lines(keep=lambda record: "hidden" not in record.msg)
    console.show_lines(keep=lambda record: "hidden" not in record.msg)  # a second command in one process
    logging.info("step %d", 3)
    logging.info("hidden")
    logging.warning("slow")
    logging.error("lost")
    assert capsys.readouterr().err == "step 3\nwarning: slow\nerror: lost\n"


def test_handlers_that_libraries_have_set_up_are_replaced(capsys):
    standard_logging.getLogger().addHandler(standard_logging.StreamHandler(sys.stderr))
    console.show_lines(keep=all_lines)
    logging.info("once")
    assert capsys.readouterr().err == "once\n"


def test_prefixes_are_there_when_asked_for(capsys):
    console.show_lines(keep=all_lines)
    console.show_prefixes()
    logging.info("step 3")
    logging.warning("slow")
    [info, warning] = capsys.readouterr().err.splitlines()
    assert info.startswith("I") and "test_console.py:" in info and info.endswith("] step 3")
    assert warning.startswith("W") and warning.endswith("] slow")


def test_without_a_terminal_each_report_is_a_line(capsys):
    console.show_lines(keep=all_lines)
    with console.Progress(first=0, steps=9) as progress:
        progress.step_done()
        progress.report(1, "loss 2")
    assert capsys.readouterr().err == "step 1/9  loss 2\n"


def test_another_process_than_the_first_shows_nothing(capsys):
    console.show_lines(keep=all_lines)
    with console.Progress(first=0, steps=9, shown=False) as progress:
        progress.step_done()
        progress.report(1, "loss 2")
    assert capsys.readouterr().err == ""


def test_in_a_terminal_a_bar_stays_below_the_lines_and_is_gone_at_the_end():
    with terminal() as shown:
        console.show_lines(keep=all_lines)
        with console.Progress(first=3, steps=9) as progress:
            progress.step_done()
            progress.report(4, "loss 2")
            logging.info("evaluating step 4 ...")
        logging.info("the end")
    [written] = shown
    assert "step 3/9 |" in written and "step 4/9 |" in written and "44%, loss 2" in written
    # What a line is written over is cleared before, and drawn again below it.
    before, after = written.split("evaluating step 4 ...\r\n")
    assert before.endswith("\r") and "step 4/9 |" in after
    assert after.endswith("\rthe end\r\nwritten\r\n")
