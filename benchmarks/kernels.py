"""A device's time by kind of kernel, from a profile that JAX wrote."""

import gzip
import json
import re
from collections import defaultdict
from pathlib import Path

# The first pattern that a kernel's name matches decides.
KINDS = (
    ("collectives", r"nccl|all-?reduce|all-?gather|reduce-?scatter|collective"),
    ("attention", r"sdpa|fmha|flash|attention|cudnn"),
    ("matrix products", r"nvjet|gemm|cutlass|cublas|xmma|wgmma|\bdot|convolution|matmul"),
    ("copies", r"memcpy|memset|dynamic.?update.?slice|dynamic.?slice|concatenate|broadcast|\bcopy|slice"),
    ("transposes", r"transpose"),
    ("reductions", r"reduce"),
    ("element-wise", r""),
)


def kind_of(kernel: str) -> str:
    name = kernel.lower()
    return next(kind for kind, pattern in KINDS if re.search(pattern, name))


def device_kernels(directory: Path) -> dict[str, tuple[float, int]]:
    """(milliseconds, runs) of each kernel that ran on a device; empty where the profile names no device.

    Args:
      directory: the one given to `jax.profiler.trace`.

    Raises:
      FileNotFoundError: it holds no trace.
    """
    files = sorted(directory.rglob("*.trace.json.gz"))
    if not files:
        raise FileNotFoundError(f"{directory} holds no *.trace.json.gz")
    with gzip.open(files[-1]) as file:
        events = json.load(file)["traceEvents"]
    processes, threads = {}, {}
    for event in events:
        if event.get("ph") == "M" and event["name"] == "process_name":
            processes[event["pid"]] = event["args"]["name"]
        if event.get("ph") == "M" and event["name"] == "thread_name":
            threads[event["pid"], event["tid"]] = event["args"]["name"]
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for event in events:
        if event.get("ph") != "X" or not processes.get(event["pid"], "").startswith("/device:"):
            continue
        # Other threads of a device show the same time again, by module or by operation.
        if not threads.get((event["pid"], event.get("tid")), "").startswith("Stream"):
            continue
        totals[event["name"]][0] += event["dur"] / 1000
        totals[event["name"]][1] += 1
    return {name: (milliseconds, runs) for name, (milliseconds, runs) in totals.items()}


def by_kind(kernels: dict[str, tuple[float, int]], *, steps: int) -> dict[str, dict[str, float]]:
    """Milliseconds and number of kernels a step for each kind, the longest first."""
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name, (milliseconds, runs) in kernels.items():
        totals[kind_of(name)][0] += milliseconds / steps
        totals[kind_of(name)][1] += runs / steps
    ordered = sorted(totals.items(), key=lambda item: -item[1][0])
    return {kind: {"ms": milliseconds, "kernels": runs} for kind, (milliseconds, runs) in ordered}


def longest(kernels: dict[str, tuple[float, int]], *, steps: int, count: int) -> list[tuple[str, float, float]]:
    """(name, milliseconds a step, runs a step) of the kernels that take longest."""
    ordered = sorted(kernels.items(), key=lambda item: -item[1][0])[:count]
    return [(name, milliseconds / steps, runs / steps) for name, (milliseconds, runs) in ordered]
