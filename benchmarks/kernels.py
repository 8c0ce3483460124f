"""A device's time by kind of kernel and by part of the model, from a profile that JAX wrote.

On a GPU an entry of the profile is a kernel, and its name tells the kind. On a CPU and a TPU it is an operation of the
compiled program, whose text tells what the operation does and which part of the model it was compiled from.
"""

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mvlm_jax.aot import hlo
from mvlm_jax.aot.costs import COLLECTIVES

# The first pattern that a GPU kernel's name matches decides.
KINDS = (
    ("collectives", r"nccl|all-?reduce|all-?gather|reduce-?scatter|collective"),
    ("attention", r"sdpa|fmha|flash|attention|cudnn"),
    ("matrix products", r"nvjet|gemm|cutlass|cublas|xmma|wgmma|\bdot|convolution|matmul"),
    ("copies", r"memcpy|memset|dynamic.?update.?slice|dynamic.?slice|concatenate|broadcast|\bcopy|slice"),
    ("transposes", r"transpose"),
    ("reductions", r"reduce"),
    ("element-wise", r""),
)
# Of an operation, the first that it holds, itself or inside a fusion.
_OPCODES = (
    ("collectives", frozenset(COLLECTIVES) | {f"{name}-start" for name in COLLECTIVES}),
    ("matrix products", frozenset({"dot", "convolution"})),
    ("reductions", frozenset({"reduce", "reduce-window", "scatter", "sort"})),
)
_MOVES = frozenset(
    "copy copy-start bitcast broadcast concatenate dynamic-slice dynamic-update-slice gather iota pad reshape reverse "
    "slice transpose parameter constant tuple get-tuple-element".split()
)
_RUNS_OTHERS = frozenset({"while", "call", "conditional"})
# Between the dense layers of attention: scores, softmax, and the sum of the values.
_SCORES = re.compile(r"attention/(?!query/|key/|value/|out/)")
# The first that the path of an operation holds, forwards and backwards alike.
PARTS = (
    "image_decoder", "image_cross_encoder", "text_cross_encoder", "image_encoder", "text_encoder", "token_classifier",
    "pixel_head", "projection",
)  # fmt: skip


class Entry(NamedTuple):
    name: str  # of the kernel, or of the operation
    operation: str  # of the compiled program; empty where the profile does not tell
    milliseconds: float  # without those of entries inside
    by_name: bool  # whether the name is that of a kernel, which tells its kind


def read_profile(directory: Path) -> list[Entry]:
    """What ran on a device; empty where the profile shows nothing of it.

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
    streams, operations, host = [], [], []
    for event in events:
        if event.get("ph") != "X":
            continue
        thread = threads.get((event["pid"], event.get("tid")), "")
        if not processes.get(event["pid"], "").startswith("/device:"):
            # A CPU's own threads run the operations.
            host += [event] if "hlo_op" in event.get("args", {}) else []
        elif thread.startswith("Stream"):  # of a GPU; its other threads show the same time again
            streams.append(event)
        elif thread == "XLA Ops":  # of a TPU
            operations.append(event)
    if streams:
        return [_entry(event, event["dur"], by_name=True) for event in streams]
    return [_entry(event, alone, by_name=False) for event, alone in _alone(operations or host)]


def _entry(event: Mapping[str, Any], microseconds: float, *, by_name: bool) -> Entry:
    operation = event.get("args", {}).get("hlo_op", "" if by_name else event["name"])
    return Entry(event["name"], operation, microseconds / 1000, by_name)


def _alone(events: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], float]]:
    """Each event with its microseconds less those of the events inside it, on the same thread."""
    open_events: list[list[Any]] = []  # [event, end, microseconds alone]

    def key(event):
        return event["pid"], event["tid"], event["ts"], -event["dur"]

    for event in sorted(events, key=key):
        while open_events and not _holds(open_events[-1], event):
            closed = open_events.pop()
            yield closed[0], closed[2]
        if open_events:
            open_events[-1][2] -= event["dur"]
        open_events.append([event, event["ts"] + event["dur"], event["dur"]])
    yield from ((event, alone) for event, _, alone in open_events)


def _holds(outer: list[Any], event: Mapping[str, Any]) -> bool:
    same = (outer[0]["pid"], outer[0]["tid"]) == (event["pid"], event["tid"])
    return same and event["ts"] + event["dur"] <= outer[1]


def summary(entries: list[Entry], *, text: str, steps: int) -> dict[str, Any]:
    """Milliseconds a step, the longest first: `kinds` with the number of entries, `parts`, and the `longest` 40.

    Args:
      text: of the compiled program, as `compiled.as_text()` gives it.
    """
    try:
        instructions = Instructions(text)
    except ValueError:
        if not all(entry.by_name for entry in entries):
            raise
        instructions = Instructions("")  # the names of kernels are enough for their kinds
    kinds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    longest: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    parts: dict[str, float] = defaultdict(float)
    for entry in entries:
        kind = kind_of(entry.name) if entry.by_name else instructions.kind(entry.operation)
        if kind is None:
            continue
        for totals, name in ((kinds, kind), (longest, entry.name)):
            totals[name][0] += entry.milliseconds / steps
            totals[name][1] += 1 / steps
        parts[instructions.part(entry.operation)] += entry.milliseconds / steps
    by_time = sorted(longest.items(), key=lambda item: -item[1][0])[:40]
    return {
        "kinds": {kind: {"ms": ms, "kernels": runs} for kind, (ms, runs) in _longest_first(kinds)},
        "parts": dict(sorted(parts.items(), key=lambda item: -item[1])),
        "longest": [(name, ms, runs, instructions.path(name)) for name, (ms, runs) in by_time],
    }


def _longest_first(totals: Mapping[str, list[float]]) -> list[tuple[str, list[float]]]:
    return sorted(totals.items(), key=lambda item: -item[1][0])


def kind_of(kernel: str) -> str:
    """By the name of a GPU's kernel."""
    name = kernel.lower()
    return next(kind for kind, pattern in KINDS if re.search(pattern, name))


class Instructions:
    """The instructions of a compiled program, by name."""

    def __init__(self, text: str):
        self._program = hlo.read(text) if text else None
        self._all: dict[str, hlo.Instruction] = {}
        for computation in self._program.computations.values() if self._program else ():
            self._all |= computation.instructions

    def kind(self, name: str) -> str | None:
        """None where it only runs others, which have entries of their own, or is of another program."""
        instruction = self._all.get(name)
        if instruction is None or instruction.opcode in _RUNS_OTHERS:
            return None
        inside = list(self._inside(instruction))
        opcodes = {each.opcode for each in inside}
        if _SCORES.search(self.path(name)):
            return "attention"
        for kind, deciding in _OPCODES:
            if opcodes & deciding:
                return kind
        if instruction.opcode == "custom-call":
            return kind_of(instruction.attributes)
        if opcodes <= _MOVES | {"fusion"}:
            return "transposes" if "transpose" in opcodes else "copies"
        return "element-wise"

    def part(self, name: str) -> str:
        """Of the model; `losses`; or `rest`, which has the optimizer, the masks and what the compiler put in."""
        path = self.path(name)
        return next((part for part in PARTS if part in path), "losses" if "jvp(" in path else "rest")

    def path(self, name: str) -> str:
        """Of the Python functions and modules that it was compiled from."""
        instruction = self._all.get(name)
        if instruction is None:
            return ""
        return next(filter(None, (each.source for each in self._inside(instruction))), "")

    def _inside(self, instruction: hlo.Instruction) -> Iterator[hlo.Instruction]:
        yield instruction
        if instruction.opcode == "fusion":
            for name in hlo.called(instruction):
                for inner in self._program.computations[name].instructions.values():
                    yield from self._inside(inner)
