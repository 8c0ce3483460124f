"""The shards of a dataset written by processes of this machine."""

import contextlib
import dataclasses
import multiprocessing
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from mvlm_jax import signals
from mvlm_jax.data.processes import available_cpus, end_with_parent
from mvlm_jax.data.writing.plan import Job, Shard
from mvlm_jax.errors import UserError

WORTH_WORKERS = 2000  # examples; with fewer, starting worker processes takes longer than writing


@dataclasses.dataclass(frozen=True)
class Processes:
    """An engine; the files do not depend on the number of workers."""

    workers: int = 0  # 1: this process alone; 0: one a CPU where the collection is worth it

    def __call__(self, shards: Sequence[Shard], job: Job) -> Generator[Shard, None, None]:
        total = sum(job.plan["splits"].values())
        workers = self.workers or (available_cpus() if total >= WORTH_WORKERS else 1)
        if workers > 1 and shards:
            yield from _in_parallel(shards, job, workers=workers)
            return
        for shard in shards:
            job.write(shard)
            yield shard


def _in_parallel(shards: Sequence[Shard], job: Job, *, workers: int) -> Generator[Shard, None, None]:
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        min(workers, len(shards)),
        # A fork would inherit the lock file and the state of other threads.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(job,),
    )
    try:
        with _ctrl_c_kept_from_children():
            writing: dict[Future[None], Shard] = {pool.submit(_write, shard): shard for shard in shards}
        while writing:
            done, _ = wait(writing, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
                yield writing.pop(future)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died, perhaps because memory ran out; finished shards are kept: start again with fewer "
            "--workers"
        ) from error
    except (KeyboardInterrupt, GeneratorExit):
        # Do not wait for unfinished shards: they take minutes and cannot be continued.
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _ctrl_c_kept_from_children() -> Iterator[None]:
    """For processes that are started meanwhile: a terminal interrupts the whole group, and their parent ends them.

    Raises:
      KeyboardInterrupt: at the end, if it came meanwhile; a process half started could not be ended.
    """
    came = []
    in_main_thread = threading.current_thread() is threading.main_thread()
    # Blocking the signal is not enough: another thread may receive it, and the handler runs in this one.
    handler = signal.signal(signal.SIGINT, lambda *_: came.append(True)) if in_main_thread else None
    try:
        with signals.kept_from_children(signal.SIGINT):
            yield
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, handler)
    if came:
        raise KeyboardInterrupt


_jobs: list[Job] = []  # of this process, where it is a worker


def _start_worker(job: Job) -> None:
    _jobs.append(job)
    end_with_parent()  # it must not write without the lock that its parent holds


def _write(shard: Shard) -> None:
    _jobs[0].write(shard)
