"""The speed of one full training step (forward, backward, AdamW): ours, with several settings, and PyTorch's.

Each contender runs in a process of its own. First the variants of ours run one after the other in one process; on an
accelerator the others compile at the same time. Then ours with its defaults takes turns with each of the others, so
that other work on the machine slows both. A row is printed, and kept as a line of JSON, as soon as it is measured.
The exit status is 1 where something could not be measured.

Examples:
  python benchmarks/step.py --size=small --image_size=96 --batch_size=32 --dtype=float32 --rounds=5
  python benchmarks/step.py --only jax --variants scan:model.layer_loop=scan dots:model.remat=dots --trace
"""

import argparse
import contextlib
import json
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

CONTENDERS = ("jax", "torch_eager", "torch_compiled")
SETUP = ("size", "image_size", "batch_size", "dtype", "steps")


class NotMeasured(Exception):
    """The reason why a contender has no row."""


def serve(arguments: argparse.Namespace) -> None:
    """A contender's process: answers each request on standard input with a line of JSON."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # keeps what libraries print out of the answers
    from contenders import CONSTRUCTORS, Setup

    contender = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if contender is None:
                contender = CONSTRUCTORS[arguments.contender](
                    Setup(**{name: getattr(arguments, name) for name in SETUP})
                )
            answer = getattr(contender, request["call"])(*request["arguments"])
        except Exception as error:  # a contender that cannot run gets a row that says so
            traceback.print_exc()
            reason = " ".join(str(error).split())[:400]
            answer = {"error": f"{type(error).__name__}: {reason}"}
        answers.write(json.dumps(answer) + "\n")


class Contender:
    """A contender's process, as the main process uses it."""

    def __init__(self, name: str, arguments: argparse.Namespace):
        self.name, self._deadline, self._pending = name, arguments.deadline_at, None
        options = [f"--{field}={getattr(arguments, field)}" for field in SETUP]
        root = Path(__file__).resolve().parents[1]
        paths = [str(root), os.environ.get("PYTHONPATH", "")]
        # By default JAX takes most of an accelerator's memory at once, and leaves none for the others.
        environment = os.environ | {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__, f"--contender={name}", *options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def ask(self, call: str, *arguments: Any) -> None:
        """Sends a request; `answer` waits for it."""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"call": call, "arguments": arguments}), file=self._process.stdin, flush=True)

    def answer(self) -> dict[str, Any]:
        """
        Raises:
          NotMeasured: it failed, ended, or did not answer before the deadline.
        """
        try:
            line = self._answers.get(timeout=max(0.0, self._deadline - time.monotonic()))
        except queue.Empty:
            raise NotMeasured("the deadline came first") from None
        if not line:
            raise NotMeasured(f"the process ended with status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise NotMeasured(answer["error"])
        return answer

    def call(self, call: str, *arguments: Any) -> dict[str, Any]:
        self.ask(call, *arguments)
        return self.answer()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class Table:
    """Prints rows, and keeps them as lines of JSON, as they are measured."""

    def __init__(self, arguments: argparse.Namespace):
        self._arguments, self._file = arguments, arguments.json.open("a") if arguments.json else None
        self.failed = False
        print(
            f"{'':20}{'pairs/s':>9}{'slowest':>9}{'fastest':>9}{'ms':>8}{'peak MiB':>10}{'1st step s':>12}{'loss':>9}"
        )

    def row(self, name: str, start: dict[str, Any], rounds: list[dict[str, Any]], **more: Any) -> float:
        """Returns the median seconds of a step."""
        steps, pairs = self._arguments.steps, self._arguments.batch_size
        seconds = [answer["seconds"] / steps for answer in rounds]
        middle, peak = statistics.median(seconds), max(answer["peak_mib"] for answer in rounds)
        print(
            f"{name:20}{pairs / middle:9.2f}{pairs / max(seconds):9.2f}{pairs / min(seconds):9.2f}"
            f"{middle * 1000:8.1f}{peak:10.0f}{start['first_step_s']:12.1f}{rounds[-1]['loss']:9.3f}"
            + "".join(f"  {key} {value:.3f}" for key, value in more.items()),
            flush=True,
        )
        self.keep(name=name, seconds=seconds, peak_mib=peak, loss=rounds[-1]["loss"], **start, **more)
        return middle

    def failure(self, name: str, error: NotMeasured) -> None:
        self.failed = True
        print(f"{name:20}not measured: {error}", flush=True)
        self.keep(name=name, error=str(error))

    def ratio(self, name: str, values: list[float]) -> None:
        middle = statistics.median(values)
        print(f"{name}: {middle:.3f} ({min(values):.3f} to {max(values):.3f})", flush=True)
        self.keep(name=name, ratio=middle, least=min(values), most=max(values))

    def trace(self, name: str, traced: dict[str, Any]) -> None:
        total = sum(entry["ms"] for entry in traced["kinds"].values())
        print(f"  kernels of {name}: {total:.1f} ms a step" if total else f"  {name}: the profile names no device")
        for kind, entry in traced["kinds"].items():
            print(f"    {kind:16}{entry['ms']:8.2f} ms {entry['kernels']:8.0f} kernels", flush=True)
        self.keep(name=name, **traced)

    def keep(self, **values: Any) -> None:
        if self._file:
            fields = {field: getattr(self._arguments, field) for field in SETUP}
            self._file.write(json.dumps(fields | values) + "\n")
            self._file.flush()


def measure_variants(ours: Contender, table: Table, arguments: argparse.Namespace) -> None:
    peak = None
    if arguments.on_accelerator:
        with contextlib.suppress(NotMeasured):
            peak = ours.call("matrix_peak")["tflops"]
            print(f"a product of 8192 x 8192 bfloat16 matrices: {peak:.0f} TFLOP/s", flush=True)
            table.keep(name="matrix_peak", tflops=peak)
    for name, fields in arguments.variants:
        try:
            start = ours.call("prepare", fields)
            rounds = [ours.call("run", arguments.steps) for _ in range(arguments.rounds)]
            middle = statistics.median(answer["seconds"] for answer in rounds) / arguments.steps
            more = {"compiler_gib": start["compiler_mib"] / 1024} if start["compiler_mib"] else {}
            if peak:
                more["of_peak"] = start["tflop"] / middle / peak
            table.row(name, start, rounds, **more)
            if arguments.trace:
                table.trace(name, ours.call("trace", 3))
        except NotMeasured as error:
            table.failure(name, error)


def compare(ours: Contender | None, others: list[Contender], table: Table, arguments: argparse.Namespace) -> None:
    """Rounds of ours and of each other contender in alternating order, and their ratios.

    The others follow each other, so one that is still compiling at the deadline does not cost the others their rows.
    """
    started = None
    try:
        started = ours.call("prepare", {}) if ours else None
        if ours and not others:
            table.row("jax", started, [ours.call("run", arguments.steps) for _ in range(arguments.rounds)])
    except NotMeasured as error:
        table.failure("jax", error)
    for other in others:
        pair = [ours, other] if started else [other]
        rounds: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in pair}
        try:
            if not arguments.on_accelerator:
                # It compiles now: at the same time as a measurement it would take CPUs from it.
                other.ask("prepare", {})
            start = other.answer()
            for index in range(arguments.rounds):
                for contender in pair if index % 2 == 0 else pair[::-1]:
                    rounds[contender.name].append(contender.call("run", arguments.steps))
        except NotMeasured as error:
            table.failure(other.name, error)
            continue
        table.row(other.name, start, rounds[other.name])
        if started:
            table.row(f"jax beside {other.name}", started, rounds["jax"])
            both = list(zip(rounds["jax"], rounds[other.name]))
            table.ratio(f"speed of jax / {other.name}", [theirs["seconds"] / mine["seconds"] for mine, theirs in both])
            table.ratio(f"peak memory of jax / {other.name}", [both[-1][0]["peak_mib"] / both[-1][1]["peak_mib"]])
        other.close()


def accelerated() -> bool:
    """Whether JAX has a GPU or TPU; a process of its own looks, and then releases the device."""
    code = "import jax; print(jax.default_backend())"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return answer.stdout.strip() not in ("cpu", "")


def parse_variant(text: str) -> tuple[str, dict[str, Any]]:
    """`NAME:field=value,field=value` -> (name, fields); numbers and booleans as such."""
    name, _, fields = text.partition(":")
    values = {}
    for field in filter(None, fields.split(",")):
        key, equals, value = field.partition("=")
        if not equals:
            raise argparse.ArgumentTypeError(f"{text!r} is not NAME:field=value,field=value")
        try:
            values[key] = json.loads(value)
        except json.JSONDecodeError:
            values[key] = value
    return name, values


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "small", "base", "large"), help="CPU: small; GPU: base")
    parser.add_argument("--image_size", type=int, help="pixels a side; CPU: 96; GPU: 224")
    parser.add_argument("--batch_size", type=int, help="pairs; CPU: 32; GPU: 64")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="CPU: float32; GPU: bfloat16")
    parser.add_argument("--steps", type=int, help="in a round; CPU: 2; GPU: 20")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument(
        "--variants",
        nargs="+",
        type=parse_variant,
        default=[],
        metavar="NAME:field=value,…",
        help="settings of ours to measure beside its defaults; xla:OPTION=value for the compiler",
    )
    parser.add_argument("--trace", action="store_true", help="where each variant's time goes, by kind of kernel")
    parser.add_argument("--deadline", type=float, default=float("inf"), help="seconds after which nothing is begun")
    parser.add_argument("--json", type=Path, help="file that every row is added to as a line of JSON")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    arguments.deadline_at = time.monotonic() + min(arguments.deadline, threading.TIMEOUT_MAX / 2)
    if arguments.contender is None:
        if arguments.rounds < 1:
            parser.error(f"--rounds={arguments.rounds} must be at least 1")
        arguments.on_accelerator = accelerated()
        values = ("base", 224, 64, "bfloat16", 20) if arguments.on_accelerator else ("small", 96, 32, "float32", 2)
        for name, value in zip(SETUP, values):
            if getattr(arguments, name) is None:
                setattr(arguments, name, value)
        if arguments.steps < 1:
            parser.error(f"--steps={arguments.steps} must be at least 1")
        if arguments.variants and "jax" not in arguments.only:
            parser.error("--variants are settings of ours: --only must name jax")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.contender:
        serve(arguments)
        return 0
    contenders = [Contender(name, arguments) for name in arguments.only]
    try:
        table = Table(arguments)
        ours = next((contender for contender in contenders if contender.name == "jax"), None)
        others = [contender for contender in contenders if contender is not ours]
        if arguments.on_accelerator:
            # PyTorch's compiler takes minutes, so it starts before the variants run.
            for other in others:
                other.ask("prepare", {})
        if arguments.variants:
            measure_variants(ours, table, arguments)
        if others or not arguments.variants:
            compare(ours, others, table, arguments)
    finally:
        for contender in contenders:
            contender.close()
    return int(table.failed)


if __name__ == "__main__":
    sys.exit(main())
