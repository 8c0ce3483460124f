"""The process that started this one."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Ends this process once its parent is gone: one that was killed cannot tell its workers, which would work on."""
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:  # else this process is nobody's worker
        parent.join()
        os._exit(1)
