"""Batches made ahead of the step that needs them."""

import math
import signal
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Shaped

from mvlm_jax import signals
from mvlm_jax.data import shared_memory
from mvlm_jax.data.processes import available_cpus, end_with_parent

Batch = dict[str, Shaped[np.ndarray, "B ..."]]


@runtime_checkable
class Steps(Protocol):
    """Random access to the batches of a run; pickled into worker processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, step: int) -> Batch: ...


def in_background(steps: Steps, *, start_step: int, workers: int, prefetch: int) -> Iterator[Batch]:
    """The batches from a step on, `prefetch` of them made ahead by threads, or by `workers` processes.

    `close()` ends these.
    """
    batches = grain.MapDataset.source(steps)[start_step:]
    if workers:
        return _made_by_processes(batches.map(_fitting), workers=workers, prefetch=prefetch)
    threads = min(prefetch, available_cpus())
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)))


def _made_by_processes(dataset: grain.MapDataset, *, workers: int, prefetch: int) -> Iterator[Batch]:
    ready = max(1, math.ceil(prefetch / workers))
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ready)
    # A worker prefetches into its own buffer; threads inside it would only compete for the interpreter's lock.
    in_turn = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
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
    shared_memory.check_room(batch)
    return batch


def _outlive_signals_but_not_the_parent(*_) -> None:
    """Makes a worker process end with its parent, and only with it."""
    # A terminal or a scheduler signals the whole group, while the parent still needs batches to finish its step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent()
