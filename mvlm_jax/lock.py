"""A lock for a directory that only one process at a time may write to."""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from mvlm_jax.errors import UserError

# Errors of file systems without locks.
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


@contextlib.contextmanager
def only_one(directory: Path, *, command: str) -> Iterator[None]:
    """Locks `directory/.lock` while the block runs. The kernel releases the lock however the process ends.

    The file stays: deleting it could let two processes lock two files of that name. On a network file system the lock
    works between hosts if the server supports it. Where the file system has no locks, a warning says so.

    Raises:
      UserError: another process holds it; says which one, and on which host.
      OSError: the file cannot be opened.
    """
    # A network file system takes an exclusive lock only on a file that is open for writing.
    with open(os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if isinstance(error, BlockingIOError) or error.errno == errno.EACCES:
                raise in_use(directory, command=command, holder=_holder(directory / ".lock")) from error
            if error.errno not in _UNSUPPORTED:
                raise
            logging.warning(
                "%s cannot be locked (%s): make sure that no other %s uses it, or they overwrite each other's files",
                directory, error.strerror, command,
            )  # fmt: skip
        else:
            file.truncate()
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield


def in_use(place: object, *, command: str, holder: str) -> UserError:
    """
    Args:
      holder: which process it is; empty: not known.
    """
    who = f" ({holder})" if holder else ""
    return UserError(
        f"{place} is in use by another {command}{who}; end that one or wait for it, or give another directory"
    )


def _holder(path: Path) -> str:
    # The holder writes its name just after it takes the lock.
    for _ in range(10):
        name = path.read_text(errors="replace").strip()
        if name:
            return name
        time.sleep(0.05)
    return "of unknown name"
