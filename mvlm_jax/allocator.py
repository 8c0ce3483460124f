"""The C library's memory allocator, from which XLA asks its temporary memory anew in every step on a CPU."""

import ctypes
import os
import sys
from collections.abc import Mapping

TUNABLES, HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


def restart_with_huge_pages() -> None:
    """Starts this process again, with glibc's use of huge pages switched on, unless that was decided before.

    Glibc reads the setting before `main`, so a running process cannot change it. A step on a CPU faults in each page of
    its temporary memory: at 4 KiB a page this took a quarter of the time of `make demo`'s steps. docs/performance.md.
    """
    if (environment := with_huge_pages(os.environ)) and sys.orig_argv:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def with_huge_pages(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The environment in which glibc uses huge pages; None where it names the setting already, or is not of glibc."""
    tunables = environment.get(TUNABLES, "")
    if HUGE_PAGES in tunables or not _is_glibc():
        return None
    return {**environment, TUNABLES: ":".join(filter(None, [tunables, f"{HUGE_PAGES}=1"]))}


def release_free_memory() -> None:
    """Gives memory that is free in glibc's heap back to the system: a compiler leaves hundreds of MiB there."""
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _is_glibc() -> bool:
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (AttributeError, OSError, ValueError):  # Windows; a C library that does not know the name
        return False
