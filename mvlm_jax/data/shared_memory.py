"""The memory through which worker processes hand over batches."""

import errno
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from jaxtyping import Shaped

from mvlm_jax.errors import RunError

PLACE = "/dev/shm"
# Errors raised where it is absent, full or read-only; semaphores lie there too.
_ERRORS = (errno.ENOSPC, errno.ENOENT, errno.EACCES, errno.EROFS, errno.ENOSYS)


def check_room(batch: Mapping[str, Shaped[np.ndarray, "B ..."]]) -> None:
    """To be called by a worker: the kernel ends a process that writes more than there is room for.

    Raises:
      RunError: the batch does not fit.
    """
    needed = sum(array.nbytes for array in batch.values())
    try:
        disk = os.statvfs(PLACE)
    except OSError:
        return  # a system that has its shared memory elsewhere
    if disk.f_blocks and disk.f_bavail * disk.f_frsize < needed:
        raise too_small(f"a batch takes {_mebibytes(needed)}, {_mebibytes(disk.f_bavail * disk.f_frsize)} are free")


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
