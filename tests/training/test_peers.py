"""Processes of one run, over the loopback."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mvlm_jax.errors import RunError
from mvlm_jax.training.peers import LostPeers

ROOT = Path(__file__).parents[2]
PROCESS = """
import sys, time
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
index, port, workdir, lost_after = int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index, heartbeat_timeout_seconds=90)
import mvlm_jax.training.loop as loop
from mvlm_jax.training.peers import Peers
from toy import ToyTask, toy_config

loop.Peers = lambda: Peers(beat_seconds=0.5, lost_after_seconds=lost_after)

class Part(ToyTask):
    def train_batches(self, start_step):
        for batch in super().train_batches(start_step):
            time.sleep(0.05)
            yield {name: rows[index * 8 : index * 8 + 8] for name, rows in batch.items()}

loop.train(Part(), config=toy_config(steps=int(sys.argv[5]), **{"checkpoint.every": 1000}), workdir=workdir)
"""


def started(workdir, *, steps, lost_after=3.0):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(index), str(port), workdir, str(lost_after), str(steps)],
            env=environment,
            stderr=(workdir.parent / f"{index}.log").open("w"),
        )
        for index in range(2)
    ]


def wait_for_step(workdir, processes):
    log = workdir / "metrics.jsonl"
    while not (log.exists() and log.stat().st_size > 500):
        assert all(process.poll() is None for process in processes), (workdir.parent / "0.log").read_text()
        time.sleep(0.05)


def end(processes):
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize("victim, said", [(1, "process 1 is lost: nothing was heard of it"), (0, "another task died")])
def test_a_dead_process_ends_the_other_one_with_a_message(tmp_path, victim, said):
    processes = started(tmp_path / "run", steps=100_000)
    try:
        wait_for_step(tmp_path / "run", processes)
        processes[victim].kill()
        survivor = processes[1 - victim]
        assert survivor.wait(timeout=60) not in (0, 2)
        assert said in (tmp_path / f"{1 - victim}.log").read_text()
    finally:
        end(processes)


def test_a_signal_to_one_process_stops_both_with_a_checkpoint_of_the_last_step(tmp_path):
    processes = started(tmp_path / "run", steps=100_000, lost_after=60.0)
    try:
        wait_for_step(tmp_path / "run", processes)
        processes[1].send_signal(signal.SIGTERM)
        assert [process.wait(timeout=60) for process in processes] == [0, 0], (tmp_path / "1.log").read_text()
    finally:
        end(processes)
    last = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1]
    (saved,) = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert f'{{"step": {saved},' in last


def test_a_beat_that_stands_still_is_a_lost_process():
    now = [0.0]
    lost = LostPeers(me=0, count=3, lost_after_seconds=10.0, clock=lambda: now[0])
    assert lost.verdict({0: "1", 1: "1", 2: "1"}) is None
    now[0] = 9.0
    assert lost.verdict({0: "1", 1: "2", 2: "1"}) is None
    now[0] = 11.0
    assert lost.verdict({0: "1", 1: "2", 2: "1"}) == "process 2 is lost: nothing was heard of it for 11 s"


def test_a_process_that_never_came_is_lost_and_one_that_is_done_is_not():
    now = [0.0]
    lost = LostPeers(me=0, count=2, lost_after_seconds=10.0, clock=lambda: now[0])
    now[0] = 11.0
    assert lost.verdict({}) == "process 1 is lost: nothing was heard of it for 11 s"
    assert lost.verdict({1: "done"}) is None
    now[0] = 100.0
    assert lost.verdict({1: "done"}) is None


def test_a_process_that_failed_says_why():
    lost = LostPeers(me=0, count=2, lost_after_seconds=10.0)
    assert lost.verdict({1: f"failed {RunError('no room')}"}) == "process 1 has stopped: no room"
