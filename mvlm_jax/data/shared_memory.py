"""The memory through which worker processes hand over batches."""

import errno
import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from grain.multiprocessing import SharedMemoryArray
from jaxtyping import Shaped

from mvlm_jax.errors import RunError

PLACE = "/dev/shm"
# Errors raised where it is absent, full or read-only; semaphores lie there too.
_ERRORS = (errno.ENOSPC, errno.ENOENT, errno.EACCES, errno.EROFS, errno.ENOSYS)


@contextmanager
def new_array(shape: tuple[int, ...], dtype: type[np.generic]) -> Iterator[Shaped[np.ndarray, "..."]]:
    """An array that Grain hands over as it is, where it would copy any other; it is given up when the block fails.

    Raises:
      RunError: it does not fit.
    """
    check_room(math.prod(shape) * np.dtype(dtype).itemsize)
    array = SharedMemoryArray(shape, dtype)
    try:
        yield array
    except BaseException:
        array.metadata.close_and_unlink_shm()
        raise


def check_room(needed: int) -> None:
    """To be called by a worker before it writes `needed` bytes: the kernel ends a process that writes more than fit.

    Raises:
      RunError: they do not fit.
    """
    free = free_bytes()
    if free is not None and free < needed:
        raise too_small(f"a batch takes {_mebibytes(needed)}, {_mebibytes(free)} are free")


def free_bytes() -> int | None:
    """None: this system has its shared memory elsewhere, or without a limit."""
    try:
        disk = os.statvfs(PLACE)
    except OSError:
        return None
    return disk.f_bavail * disk.f_frsize if disk.f_blocks else None


@contextmanager
def reported() -> Iterator[None]:
    """Around what starts worker processes and takes their batches.

    Raises:
      RunError: there is too little shared memory.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _ERRORS or error.filename:
            raise
        raise too_small(error.strerror or str(error)) from error
    except RuntimeError as error:
        # Two workers may each have found room for one batch.
        if f"exit code {-signal.SIGBUS}" not in str(error):
            raise
        raise too_small("a worker process was ended when it wrote there") from error


def too_small(reason: str) -> RunError:
    return RunError(
        f"{PLACE} is too small for the batches of config.data.workers processes: {reason}; give the container more, "
        "as docker run --shm-size=8g does, or set config.data.workers=0, which takes threads instead"
    )


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
