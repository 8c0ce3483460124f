"""Processes of this machine: the CPUs that they may use, and workers that end with the process that started them."""

import multiprocessing
import os
import threading


def available_cpus() -> int:
    """CPUs that a scheduler or a container leaves to this process: often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """Ends this process when its parent has ended: a parent that was killed cannot stop its workers itself."""
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:  # None: this process is not a worker
        parent.join()
        os._exit(1)
