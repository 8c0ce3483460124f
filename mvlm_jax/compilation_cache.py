"""Where compiled programs are kept, so that the next start reads them instead of compiling them again."""

import contextlib
import glob
import os
import re
import tempfile
import warnings
from pathlib import Path

import jax
from absl import logging
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from mvlm_jax.errors import UserError
from mvlm_jax.files import user_cache, user_path

MAX_BYTES = 4 * 2**30
# Options of JAX, with its default and the value that is set here where the user has left the default.
OPTIONS = {
    # Seconds that a program must take to compile. An evaluation has dozens that take less than JAX's second each.
    "jax_persistent_cache_min_compile_time_secs": (1.0, 0.1),
    # XLA's cache of tuning results for GPUs, whose write ends the compilation where the disk is full. A program that is
    # read from the cache needs none of them.
    "jax_persistent_cache_enable_xla_caches": ("xla_gpu_per_fusion_autotune_cache_dir", "none"),
}
FAILURE = re.compile(
    r"Error (?:reading|writing) persistent compilation cache entry for '(?P<program>.*?)': (?P<reason>.*)", re.DOTALL
)

_used: Path | None = None  # set here, and not by the user through JAX


def find(setting: str) -> Path | None:
    """The directory that `config.compilation_cache` asks for; a warning says why it cannot be used.

    Returns:
      None: compiled programs are not kept, or the user has told JAX itself where (JAX_COMPILATION_CACHE_DIR).

    Raises:
      UserError: the setting is neither auto nor off nor a local directory.
    """
    if not setting:
        raise UserError("config.compilation_cache='' must be auto, off or a directory")
    if setting == "off" or _is_set_by_user():
        return None
    directory = None if setting == "auto" else user_path(setting, name="config.compilation_cache").absolute()
    try:
        directory = directory or user_cache() / "compiled"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check(directory, private=setting == "auto")
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        logging.warning(
            "compiled programs are not kept for the next start: %s cannot be used (%s); "
            "set config.compilation_cache to another directory, or to off",
            directory or "~/.cache", reason,
        )  # fmt: skip
        return None
    return directory


def use(directory: Path | None) -> None:
    """From now on JAX keeps what this process compiles there, and reads what is there; None: neither.

    What the user has set through JAX stays as it is. Other processes may use the directory at the same time. Programs
    of machines with other instructions do not meet there: the names of the entries depend on them.
    """
    global _used
    if _is_set_by_user() or directory == _used:
        return
    if _used is not None:
        jax_cache.reset_cache()
    else:
        _report_failures()
    if directory is not None:
        for name, (default, value) in OPTIONS.items():
            if jax.config.values[name] == default:
                jax.config.update(name, value)
        if jax.config.values["jax_compilation_cache_max_size"] == -1:
            delete_oldest(directory, max_bytes=MAX_BYTES)
    jax.config.update("jax_compilation_cache_dir", None if directory is None else str(directory))
    _used = directory


def delete_oldest(directory: Path, *, max_bytes: int) -> None:
    """Deletes the entries that were not read for the longest time, until the others take at most `max_bytes`.

    JAX can do so itself, but needs a lock file for every read, and stops writing after a process was killed while it
    wrote. A process that reads a deleted file goes on reading it.
    """
    entries = []
    for path in directory.glob("*-cache"):
        with contextlib.suppress(OSError):
            status = path.stat()
            entries.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= max_bytes:
            break
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size


def _is_set_by_user() -> bool:
    ours = None if _used is None else str(_used)
    options = jax.config.values
    return options["jax_compilation_cache_dir"] != ours or not options["jax_enable_compilation_cache"]


def _check(directory: Path, *, private: bool) -> None:
    """
    Raises:
      OSError: nothing can be written there; where it should be `private`, others can write there too.
    """
    status = directory.stat()
    # What lies there is run.
    if private and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        raise PermissionError("other users can write there")
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(bytes(4096))


def _report_failures() -> None:
    """JAX warns in several lines of each program that it cannot read or write; the first one becomes one line.

    What is left of that program is deleted: JAX would neither use nor replace a damaged entry.
    """
    show = warnings.showwarning
    reported: list[str] = []

    def report(message, *details, **more):
        failure = FAILURE.match(str(message))
        if failure is None or _used is None:
            show(message, *details, **more)
            return
        if jax.process_index() == 0:  # the only one that writes, perhaps just now
            for entry in _used.glob(f"{glob.escape(failure['program'])}-*"):
                with contextlib.suppress(OSError):
                    entry.unlink()
        if not reported:
            reason = " ".join(failure["reason"].split())
            logging.warning(
                "the cache of compiled programs in %s fails (%s); the run goes on without what it cannot keep or read",
                _used, reason,
            )  # fmt: skip
            reported.append(reason)

    warnings.showwarning = report
