"""Shared memory that is too small for the batches of worker processes."""

import errno
import os
from types import SimpleNamespace

import grain
import numpy as np
import pytest

from mvlm_jax.data import shared_memory
from mvlm_jax.data.background import in_background
from mvlm_jax.errors import RunError

REMEDIES = r"docker run --shm-size=8g does, or set config\.data\.workers=0"


class Batches:
    def __len__(self):
        return 3

    def __getitem__(self, step):
        return {"image": np.full((2, 2**20), step, np.uint8)}


def room(count):
    return lambda path: SimpleNamespace(f_blocks=1000, f_bavail=count, f_frsize=1024)


def test_a_batch_that_does_not_fit_is_an_error_that_says_what_to_do(monkeypatch):
    monkeypatch.setattr(os, "statvfs", room(1024))
    expected = rf"/dev/shm is too small .* a batch takes 2\.0 MiB, 1\.0 MiB are free; .*{REMEDIES}"
    with pytest.raises(RunError, match=expected):
        shared_memory.check_room(Batches()[0])
    monkeypatch.setattr(os, "statvfs", room(2048))
    shared_memory.check_room(Batches()[0])


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Worker process was terminated unexpectedly with exit code -7. Search the logs above"),
    ],
)
def test_lack_of_room_is_reported_as_such(failure):
    with pytest.raises(RunError, match=REMEDIES), shared_memory.reported():
        raise failure


@pytest.mark.parametrize(
    "failure",
    [FileNotFoundError(errno.ENOENT, "No such file", "image.jpg"), RuntimeError("terminated with exit code -9")],
)
def test_other_failures_stay_what_they_are(failure):
    with pytest.raises(type(failure)) as raised, shared_memory.reported():
        raise failure
    assert raised.value is failure


def test_worker_processes_check_the_room_for_each_batch(monkeypatch):
    monkeypatch.setattr(grain.IterDataset, "mp_prefetch", lambda dataset, *_: dataset)  # in this process
    monkeypatch.setattr(os, "statvfs", room(1024))
    batches = in_background(Batches(), start_step=0, workers=1, prefetch=1)
    with pytest.raises(RunError, match=rf"a batch takes 2\.0 MiB, 1\.0 MiB are free; .*{REMEDIES}"):
        next(batches)


def out_of_room_after(count):
    for _ in range(count):
        yield {}
    raise OSError(errno.ENOSPC, "No space left on device")


def out_of_room_at_once(dataset, *_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "prefetching, made",
    [(out_of_room_at_once, 0), (lambda *_: out_of_room_after(0), 0), (lambda *_: out_of_room_after(2), 2)],
    ids=["while they are set up", "at the first batch", "at a later batch"],
)
def test_worker_processes_that_run_out_of_room_end_with_what_to_do(monkeypatch, prefetching, made):
    monkeypatch.setattr(grain.IterDataset, "mp_prefetch", prefetching)
    batches = in_background(Batches(), start_step=0, workers=1, prefetch=1)
    for _ in range(made):
        next(batches)
    with pytest.raises(RunError, match=rf"No space left on device; .*{REMEDIES}"):
        next(batches)
