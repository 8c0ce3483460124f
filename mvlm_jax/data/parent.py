"""The process that started this one."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Ends this process once its parent is gone: one that was killed cannot tell its workers, which would work on."""
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
