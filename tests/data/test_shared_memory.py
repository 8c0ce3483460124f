"""Shared memory that is too small for the batches of worker processes."""

import dataclasses
import errno
import os
from contextlib import contextmanager
from types import SimpleNamespace

import grain
import numpy as np
import pytest
from grain.multiprocessing import SharedMemoryArray

from mvlm_jax.data import background, shared_memory
from mvlm_jax.data.background import NewArray, in_background, in_this_process, worker_count
from mvlm_jax.errors import RunError

REMEDIES = r"docker run --shm-size=8g does, or set config\.data\.workers=0"


@dataclasses.dataclass
class Batches:
    new_array: NewArray = in_this_process

    def __len__(self):
        return 3

    def __getitem__(self, step):
        with self.new_array((2, 2**20), np.uint8) as image:
            image[:] = step
            if step == 2:
                raise ValueError("a broken source")
        return {"image": image, "skipped": np.zeros(2, np.int32)}

    def with_arrays_from(self, new_array):
        return Batches(new_array)


def room(count):
    return lambda path: SimpleNamespace(f_blocks=1000, f_bavail=count, f_frsize=1024)


def test_a_batch_that_does_not_fit_is_an_error_that_says_what_to_do(monkeypatch):
    monkeypatch.setattr(os, "statvfs", room(1024))
    expected = rf"/dev/shm is too small .* a batch takes 2\.0 MiB, 1\.0 MiB are free; .*{REMEDIES}"
    with pytest.raises(RunError, match=expected):
        shared_memory.check_room(2**21)
    monkeypatch.setattr(os, "statvfs", room(2048))
    shared_memory.check_room(2**21)


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


def test_worker_processes_make_images_in_the_memory_that_they_hand_over(monkeypatch):
    monkeypatch.setattr(grain.IterDataset, "mp_prefetch", lambda dataset, *_: dataset)  # in this process
    batches = in_background(Batches(), start_step=1, workers=1, prefetch=1)
    batch = next(batches)
    assert isinstance(batch["image"], SharedMemoryArray) and not isinstance(batch["skipped"], SharedMemoryArray)
    assert (batch["image"] == 1).all()
    batch["image"].metadata.close_and_unlink_shm()


def test_an_array_that_is_not_finished_is_given_up():
    with pytest.raises(ValueError, match="a broken source"):
        Batches(remembering := Remembering())[2]
    with pytest.raises(FileNotFoundError):
        SharedMemoryArray.from_metadata(remembering.metadata)


class Remembering:
    @contextmanager
    def __call__(self, shape, dtype):
        with shared_memory.new_array(shape, dtype) as array:
            self.metadata = array.metadata
            yield array


@pytest.mark.parametrize(
    "asked, devices, cpus, free, expected",
    [
        (3, 0, 2, 0, 3),  # as was asked
        (0, 8, 64, 10**9, 0),
        (-1, 0, 64, 10**9, 0),  # on a CPU
        (-1, 1, 16, 10**9, 2),
        (-1, 8, 64, 10**9, 16),
        (-1, 8, 12, 10**9, 11),  # one CPU is left to the process that they serve
        (-1, 1, 1, 10**9, 0),
        (-1, 1, 16, 5 * 1024, 2),  # two workers with a batch ready and one in the making, and one with the device
        (-1, 1, 16, 5 * 1024 - 1, 0),
        (-1, 1, 16, None, 2),
    ],
)
def test_workers_suit_the_machine_where_no_number_is_given(monkeypatch, asked, devices, cpus, free, expected):
    monkeypatch.setattr(background, "available_cpus", lambda: cpus)
    monkeypatch.setattr(shared_memory, "free_bytes", lambda: free)
    assert worker_count(asked, devices=devices, batch_bytes=1024, prefetch=2) == expected


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
