"""Commands as processes: signals while they start, and output that nobody reads."""

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from tiny import ROOT, demo_flags, prepare_shapes, started

from mvlm_jax import signals
from mvlm_jax.__main__ import _report, main

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(autouse=True)
def own_process(monkeypatch):
    """What `main` changes in its process is changed back."""
    before = {number: signal.getsignal(number) for number in signals.MESSAGES}
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(sys, "warnoptions", list(sys.warnoptions))
    yield
    signals.restore()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_nothing_slow_is_imported_before_signals_are_taken_or_for_the_list_of_commands():
    slow = "{'jax', 'orbax', 'absl', 'ml_collections', 'numpy'} & set(sys.modules)"
    code = f"import sys, mvlm_jax.__main__ as program; program.main(['--help']); assert not {slow}, {slow}"
    subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=True)


@pytest.mark.parametrize("number, status, message", [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_signal_at_the_start_ends_the_process_and_its_children_with_one_line(number, status, message):
    code = (
        "import os, signal, subprocess, sys; from mvlm_jax import signals; signals.leave_at_once('mvlm train')\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "try:\n"
        f"    signal.raise_signal(signal.{number})\n"
        "except BaseException:\n"
        "    pass\n"
    )
    run = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (status, f"mvlm train: {message}\n")
    child, until = int(run.stdout), time.monotonic() + 10
    while alive(child) and time.monotonic() < until:
        time.sleep(0.01)
    assert not alive(child)


def test_signals_stay_kept_from_children_where_the_resource_tracker_has_not_run_yet():
    code = (
        "import multiprocessing, signal; from mvlm_jax import signals\n"
        "with signals.kept_from_children(signal.SIGINT, signal.SIGTERM):\n"
        "    multiprocessing.get_context('spawn').Lock()\n"  # starts the tracker where nothing has
        "    assert {signal.SIGINT, signal.SIGTERM} <= signal.pthread_sigmask(signal.SIG_BLOCK, ())\n"
        "assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())\n"
    )
    subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=True)


def alive(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def closed_pipe(*, buffered):
    reading, writing = os.pipe()
    os.close(reading)
    return io.TextIOWrapper(os.fdopen(writing, "wb", -1 if buffered else 0), write_through=not buffered)


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize(
    "argv", [["--help"], *([command, "--help"] for command in ("train", "evaluate", "prepare", "weights", "compile"))]
)
def test_a_reader_that_has_gone_ends_a_command_in_silence(argv, buffered, monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdout", closed_pipe(buffered=buffered))
    assert main(argv) == 141
    sys.stdout.close()  # what is left in the buffer goes nowhere, without an error
    assert capfd.readouterr().err == ""


def test_output_that_cannot_be_written_is_one_line(monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdout", open("/dev/full", "w"))
    assert main(["--help"]) == 1
    sys.stdout.close()
    assert capfd.readouterr().err == "mvlm: the output cannot be written: No space left on device\n"


def test_an_error_that_is_not_of_the_output_is_raised(monkeypatch):
    def fail(argv):
        raise BrokenPipeError("of a worker process")

    monkeypatch.setattr("mvlm_jax.cli.main", fail)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with pytest.raises(BrokenPipeError, match="of a worker process"):
        main(["train"])


def test_what_a_broken_off_reading_calls_late_is_not_reported(monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "__unraisablehook__", reported.append)
    loop = asyncio.new_event_loop()
    loop.close()
    with pytest.raises(RuntimeError) as raised:
        loop.call_soon_threadsafe(print)
    from_library = SimpleNamespace(exc_value=raised.value, exc_traceback=raised.tb.tb_next)  # no Python code calls it
    other = SimpleNamespace(exc_value=raised.value, exc_traceback=raised.tb)
    for unraisable in (from_library, other):
        _report(unraisable)
    assert reported == [other]


@pytest.mark.slow
@pytest.mark.parametrize("number, status, message", [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_run_that_is_interrupted_while_it_starts_says_so_in_one_line(tmp_path, number, status, message):
    prepare_shapes(tmp_path / "data")
    flags = demo_flags(data_dir=tmp_path / "data", workdir=tmp_path / "run", steps=1000)
    for delay in (0, 0.3):
        run = started(flags)
        # Python itself catches SIGINT from its start on, so SIGTERM tells; it is the last one to be taken.
        while not catches(run.pid, signal.SIGTERM):
            assert run.poll() is None, run.stderr.read()
            time.sleep(0.001)
        time.sleep(delay)
        os.killpg(run.pid, getattr(signal, number))
        _, errors = run.communicate(timeout=120)
        assert (run.returncode, errors) == (status, f"mvlm train: {message}\n")


@pytest.mark.slow
def test_ctrl_c_while_worker_processes_start_ends_them_all_with_one_line(tmp_path):
    prepare_shapes(tmp_path / "data")
    flags = demo_flags(data_dir=tmp_path / "data", workdir=tmp_path / "run", steps=1000, data__workers=2)
    run = started([*flags, "--log_prefix"])
    while len(processes(run.pid)) < 3:  # the run, the resource tracker, a worker
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=120)
    lines = [line for line in errors.splitlines() if not re.match(r"[IW]\d{4} ", line)]
    assert (run.returncode, lines) == (130, ["mvlm train: interrupted"])
    until = time.monotonic() + 10
    while processes(run.pid) and time.monotonic() < until:
        time.sleep(0.01)
    assert processes(run.pid) == []


def catches(pid, number):
    """Whether the process has a handler for the signal."""
    caught = re.search(r"^SigCgt:\s*(\w+)$", open(f"/proc/{pid}/status").read(), re.MULTILINE)
    return caught and int(caught[1], 16) >> (number - 1) & 1


def processes(wanted):
    """Those of a group."""
    return [pid for pid in os.listdir("/proc") if pid.isdecimal() and group(pid) == wanted]


def group(pid):
    try:
        state, _, group = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[:3]
        return 0 if state == "Z" else int(group)
    except FileNotFoundError:
        return 0
