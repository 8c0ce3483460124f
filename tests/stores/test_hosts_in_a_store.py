"""Two processes over the loopback, whose run is in a store."""

import signal
import time

import pytest
from stored import whole_steps
from toy import ToyTask, metrics_lines, toy_config
from toy_hosts import TIMEOUT, ended, started

from mvlm_jax.stores.mirror import CHECKPOINTS, close_all, fetched
from mvlm_jax.stores.objects import Store, parse
from mvlm_jax.training.checkpoints import Checkpoints
from mvlm_jax.training.loop import train

RUN = "gs://bucket/two"
FIELDS = {"steps": 9, "checkpoint.every": 2, "checkpoint.keep_last": 9}
IN_PARTS = {"mesh.data": 1, "mesh.tensor": 4}  # so that no process holds all of the parameters


@pytest.mark.slow
def test_two_processes_train_in_a_store_as_one_does_on_a_disk(emulators, tmp_path):
    store = Store(parse(RUN))

    def start(**job):
        return started(RUN, logs=tmp_path, fields=FIELDS | IN_PARTS, lost_after=60.0, **job)

    def logs():
        return [(tmp_path / f"{index}.log").read_text() for index in range(2)]

    processes = start(pause=0.3)
    try:
        while len(whole_steps(store)) < 2:
            assert all(process.poll() is None for process in processes), logs()
            time.sleep(0.1)
        processes[1].send_signal(signal.SIGTERM)
    finally:
        assert ended(processes, timeout=TIMEOUT) == [0, 0], logs()
    last = whole_steps(store)[-1]
    # Each process finds the damage, and one of them moves the step aside.
    store.write(f"{CHECKPOINTS}/{last}/params/manifest.ocdbt", b"short")
    assert ended(start(pause=0.0), timeout=TIMEOUT) == [0, 0], logs()
    moved = f"it is now gs://bucket/two/checkpoints/damaged.{last}.1"
    assert [moved in log for log in logs()] == [True, False]
    assert whole_steps(store) == [2, 4, 6, 8, 9] and store.read("lock.json") is None

    train(ToyTask(), config=toy_config(**FIELDS), workdir=tmp_path / "disk")
    in_store, on_disk = metrics_lines(fetched(RUN)), metrics_lines(tmp_path / "disk")
    assert [line["step"] for line in in_store] == [line["step"] for line in on_disk]
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (in_store, on_disk)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    with Checkpoints.for_reading(fetched(RUN) / CHECKPOINTS) as checkpoints:
        checkpoints.restore_params(9)  # which compares it with what the run had
    close_all(failed=False)
