"""Batches made ahead of the step that needs them."""

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

import grain
import numpy as np
from absl import logging
from grain.experimental import DatasetOptions, WithOptionsIterDataset
from grain.multiprocessing import SharedMemoryArray
from jaxtyping import Shaped

from mvlm_jax import signals
from mvlm_jax.data import shared_memory
from mvlm_jax.data.processes import available_cpus, end_with_parent

Batch = dict[str, Shaped[np.ndarray, "B ..."]]
NewArray = Callable[[tuple[int, ...], type[np.generic]], AbstractContextManager[np.ndarray]]
AUTO = -1  # as a number of workers
# A core makes some 1,500 images of 224 pixels a second, and an H100 takes about 2,000 of `small`: see
# docs/results/input_pipeline.md.
WORKERS_A_DEVICE = 2
SMALL = 2**16  # bytes; a worker copies smaller arrays into a message, which takes less than to set up shared memory


@contextmanager
def in_this_process(shape: tuple[int, ...], dtype: type[np.generic]) -> Iterator[np.ndarray]:
    yield np.empty(shape, dtype)


@runtime_checkable
class Steps(Protocol):
    """Random access to the batches of a run; pickled into worker processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, step: int) -> Batch: ...

    def with_arrays_from(self, new_array: NewArray) -> "Steps":
        """The same batches, with their images in arrays that `new_array` makes."""
        ...


def worker_count(asked: int, *, devices: int, batch_bytes: int, prefetch: int) -> int:
    """The worker processes of this process: as many as were asked for, or with AUTO what suits the machine.

    On accelerators these are two a device, and at most all CPUs but the one that feeds the devices. Where the training
    step itself runs on the CPU they are none: processes would compete with it, as threads do, and take more memory.

    Args:
      devices: accelerators that this process feeds; 0: it computes on the CPU.
      batch_bytes: of the images of a batch.
    """
    if asked != AUTO:
        return asked
    workers = max(0, min(WORKERS_A_DEVICE * devices, available_cpus() - 1))
    free = shared_memory.free_bytes()
    # Each holds the batches that are ready and the one that it makes; one more is on its way to the devices.
    needed = batch_bytes * (workers * (_ready(prefetch, workers=workers) + 1) + 1) if workers else 0
    if free is not None and free < needed:
        logging.warning(
            "threads make the batches: %d worker processes would need %d MiB of %s, of which %d are free",
            workers, needed >> 20, shared_memory.PLACE, free >> 20,
        )  # fmt: skip
        return 0
    return workers


def _ready(prefetch: int, *, workers: int) -> int:
    """Batches that each worker keeps ready."""
    return max(1, math.ceil(prefetch / workers))


def in_background(steps: Steps, *, start_step: int, workers: int, prefetch: int) -> Iterator[Batch]:
    """The batches from a step on, `prefetch` of them made ahead by threads, or by `workers` processes.

    `close()` ends these.
    """
    if workers:
        in_shared_memory = grain.MapDataset.source(steps.with_arrays_from(shared_memory.new_array))[start_step:]
        return _made_by_processes(in_shared_memory.map(_fitting), workers=workers, prefetch=prefetch)
    batches = grain.MapDataset.source(steps)[start_step:]
    threads = min(prefetch, available_cpus())
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)))


def _made_by_processes(dataset: grain.MapDataset, *, workers: int, prefetch: int) -> Iterator[Batch]:
    options = grain.MultiprocessingOptions(
        num_workers=workers, per_worker_buffer_size=_ready(prefetch, workers=workers)
    )
    # A worker prefetches into its own buffer; threads inside it would only compete for the interpreter's lock.
    in_turn = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    in_turn = WithOptionsIterDataset(in_turn, DatasetOptions(min_shm_size=SMALL))
    batches = None
    try:
        with shared_memory.reported(), signals.kept_from_children(signal.SIGINT, signal.SIGTERM):
            batches = iter(in_turn.mp_prefetch(options, _outlive_signals_but_not_the_parent))
            batch = next(batches, None)
        while batch is not None:
            yield batch
            with shared_memory.reported():
                batch = next(batches, None)
    finally:
        if batches is not None:
            batches.close()


def _fitting(batch: Batch) -> Batch:
    copied = [array.nbytes for array in batch.values() if not isinstance(array, SharedMemoryArray)]
    shared_memory.check_room(sum(size for size in copied if size >= SMALL))
    return batch


def _outlive_signals_but_not_the_parent(*_) -> None:
    """Makes a worker process end with its parent, and only with it."""
    # A terminal or a scheduler signals the whole group, while the parent still needs batches to finish its step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent()
