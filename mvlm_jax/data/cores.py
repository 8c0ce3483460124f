"""What this process may compute on."""

import os


def cores() -> int:
    """CPU cores that a scheduler or a container leaves to this process: often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
