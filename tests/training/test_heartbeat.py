"""Processes of one run, over the loopback."""

import shutil
import signal
import socket
import time

import pytest
from toy import ToyTask, metrics_lines, toy_config
from toy_hosts import TIMEOUT, end, ended, started

from mvlm_jax.errors import RunError
from mvlm_jax.training.activity import INPUT, Whereabouts
from mvlm_jax.training.heartbeat import LostProcesses
from mvlm_jax.training.loop import train
from mvlm_jax.training.metrics_log import read_metrics

HOST = socket.gethostname()


def wait_for_step(workdir, processes):
    log = workdir / "metrics.jsonl"
    while not (log.exists() and log.stat().st_size > 500):
        assert all(process.poll() is None for process in processes), (workdir.parent / "0.log").read_text()
        time.sleep(0.05)


def wait_for_words(words, log, processes):
    deadline = time.monotonic() + TIMEOUT
    while words not in log.read_text():
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes), log.read_text()
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("victim, message", [(1, f"process 1 ({HOST}) is lost: it sent"), (0, "another task died")])
def test_a_dead_process_ends_the_other_one_with_a_message(tmp_path, victim, message):
    processes = started(tmp_path / "run", logs=tmp_path, fields={"steps": 100_000})
    try:
        wait_for_step(tmp_path / "run", processes)
        processes[victim].kill()
        status = processes[1 - victim].wait(timeout=TIMEOUT)
        assert status not in (0, 2)
        log = (tmp_path / f"{1 - victim}.log").read_text()
        # A connection that breaks within a collective may make Gloo abort before the heartbeat speaks.
        assert message in log or (status == -signal.SIGABRT and "gloo/transport" in log)
    finally:
        end(processes)


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_other_one_which_names_it(tmp_path):
    processes = started(tmp_path / "run", logs=tmp_path, fields={"steps": 100_000})
    try:
        wait_for_step(tmp_path / "run", processes)
        processes[1].send_signal(signal.SIGSTOP)  # its connections stay open
        assert processes[0].wait(timeout=TIMEOUT) == 1
    finally:
        end(processes)
    assert f"process 1 ({HOST}) is lost: it sent no heartbeat for " in (tmp_path / "0.log").read_text()


@pytest.mark.slow
def test_a_slow_host_is_named_and_an_input_pipeline_that_gives_nothing_too(tmp_path):
    processes = started(
        tmp_path / "run", logs=tmp_path, fields={"steps": 100_000}, slow=1, starves=1, pause=0.0, stalled_after=3.0
    )
    try:
        wait_for_words("(the batch of step 13)", tmp_path / "0.log", processes)
    finally:
        end(processes)
    log = (tmp_path / "0.log").read_text()
    assert f"hosts: {HOST} (processes 0 to 1); each: 2 x cpu, 8 examples of a batch" in log
    assert f"warning: process 1 ({HOST}) has waited " in log
    assert f"slow: process 1 ({HOST}), input 0.3" in log
    assert "slow:" not in (tmp_path / "1.log").read_text()
    timings = [line["timing"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "timing" in line]
    slowest = [timing for timing in timings if timing.get("slowest_process") == 1]
    assert len(slowest) > len(timings) / 2
    assert max(timing["host_skew"] for timing in slowest) > 0.2


@pytest.mark.slow
def test_a_step_that_does_not_end_is_told_from_an_input_pipeline_and_then_from_a_lost_process(tmp_path):
    processes = started(tmp_path / "run", logs=tmp_path, fields={"steps": 100_000}, stuck=1, stalled_after=3.0)
    try:
        wait_for_words("a collective or a device is stuck", tmp_path / "0.log", processes)
        assert "all processes entered step 6; it has not ended for " in (tmp_path / "0.log").read_text()
        processes[1].send_signal(signal.SIGSTOP)
        assert processes[0].wait(timeout=TIMEOUT) == 1
    finally:
        end(processes)
    log = (tmp_path / "0.log").read_text()
    assert f"process 1 ({HOST}) is lost: it sent no heartbeat for " in log and "; it was last seen in step 6" in log


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_with_a_checkpoint_of_the_last_step(tmp_path):
    processes = started(tmp_path / "run", logs=tmp_path, fields={"steps": 100_000}, lost_after=60.0)
    try:
        wait_for_step(tmp_path / "run", processes)
        processes[1].send_signal(signal.SIGTERM)
        assert [process.wait(timeout=TIMEOUT) for process in processes] == [0, 0], (tmp_path / "1.log").read_text()
    finally:
        end(processes)
    last = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1]
    (saved,) = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert f'{{"step": {saved},' in last


@pytest.mark.slow
@pytest.mark.parametrize("failing", [1, 0])
def test_a_process_that_fails_ends_the_other_one_which_says_why(tmp_path, failing):
    processes = started(tmp_path / "run", logs=tmp_path, fields={"steps": 100_000}, fails=failing, lost_after=60.0)
    assert ended(processes, timeout=TIMEOUT) == [1, 1]
    logs = [(tmp_path / f"{index}.log").read_text() for index in range(2)]
    assert "mvlm train: no batch any more" in logs[failing]
    assert f"mvlm: process {failing} ({HOST}) has stopped: no batch any more" in logs[1 - failing]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """With checkpoints of the steps 3 and 6."""
    workdir = tmp_path_factory.mktemp("trained")
    train(ToyTask(), config=toy_config(steps=6), workdir=workdir)
    return workdir


@pytest.mark.slow
def test_a_checkpoint_to_start_from_that_one_process_lacks_ends_both_in_one_line(trained, tmp_path):
    starts = [str(trained / "checkpoints"), str(tmp_path / "none")]
    processes = started(tmp_path / "run", logs=tmp_path, fields={"steps": 6}, start=starts)
    assert ended(processes, timeout=TIMEOUT) == [2, 2]
    assert "mvlm train: process 1: there is no none" in (tmp_path / "0.log").read_text()
    assert "mvlm train: there is no none" in (tmp_path / "1.log").read_text()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_that_would_start_from_different_steps_are_refused(trained, tmp_path):
    shutil.copytree(trained / "checkpoints" / "3", tmp_path / "older" / "3")
    starts = [str(trained / "checkpoints"), str(tmp_path / "older")]
    processes = started(tmp_path / "run", logs=tmp_path, fields={"steps": 6}, start=starts)
    assert ended(processes, timeout=TIMEOUT) == [2, 2]
    for index in range(2):
        log = (tmp_path / f"{index}.log").read_text()
        assert "mvlm train: process 1 has another set of start weights than process 0" in log
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_parameters_over_the_devices_of_two_processes_train_the_run_of_one(trained, tmp_path):
    fields = {"steps": 6, "checkpoint.every": 3, "mesh.data": 1, "mesh.tensor": 4}
    assert ended(started(tmp_path / "run", logs=tmp_path, fields=fields, pause=0.0), timeout=TIMEOUT) == [0, 0]
    by_two, by_one = (
        [line["loss"] for line in metrics_lines(run) if "loss" in line] for run in (tmp_path / "run", trained)
    )
    assert len(by_one) == 6
    assert by_two == pytest.approx(by_one, rel=1e-5)


def test_a_beat_that_stands_still_is_a_lost_process():
    now = [0.0]
    lost = LostProcesses(me=0, count=3, lost_after_seconds=10.0, clock=lambda: now[0])
    assert lost.verdict({0: "1", 1: "1", 2: "1"}) is None
    now[0] = 9.0
    assert lost.verdict({0: "1", 1: "2", 2: "1"}) is None
    now[0] = 11.0
    assert lost.verdict({0: "1", 1: "2", 2: "1"}) == "process 2 is lost: it sent no heartbeat for 11 s"


def test_a_process_that_never_came_is_lost_and_one_that_is_done_is_not():
    now = [0.0]
    lost = LostProcesses(me=0, count=2, lost_after_seconds=10.0, clock=lambda: now[0])
    now[0] = 11.0
    assert lost.verdict({}) == "process 1 is lost: it sent no heartbeat for 11 s"
    assert lost.verdict({1: "done"}) is None
    now[0] = 100.0
    assert lost.verdict({1: "done"}) is None


def test_a_process_that_failed_says_why():
    lost = LostProcesses(me=0, count=2, lost_after_seconds=10.0)
    assert lost.verdict({1: f"failed {RunError('no room')}"}) == "process 1 has stopped: no room"


def test_a_lost_process_is_named_with_its_host_and_what_it_did_last():
    now = [0.0]
    lost = LostProcesses(me=0, count=2, lost_after_seconds=10.0, names=["a", "b"], clock=lambda: now[0])
    beat = f"7 {Whereabouts(INPUT, 13, 12, 4.0).encode()}"
    assert lost.verdict({1: beat}) is None
    now[0] = 11.0
    assert lost.verdict({1: beat}) == (
        "process 1 (b) is lost: it sent no heartbeat for 11 s; it was last seen waiting for the batch of step 13"
    )
