"""Shared memory that is too small for the batches of worker processes."""

import errno
import os
from types import SimpleNamespace

import numpy as np
import pytest

from mvlm_jax.data import shared_memory
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
def test_what_fails_for_want_of_room_is_said_to(failure):
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
