"""The speed of one full training step (forward, backward, AdamW): ours, with several settings, and PyTorch's.

Each contender runs in a process of its own. First the variants of ours run one after the other in one process; on an
accelerator the others compile at the same time. Then ours with its defaults takes turns with each of the others, so
that other work on the machine slows both. A row is printed, and kept as a line of JSON, as soon as it is measured.
The exit status is 1 where a contender failed, where one that --only names is not on this machine, or where there is no
row at all. A variant that this backend does not have gets a row that says so, and is no failure.

Examples:
  python benchmarks/step.py --size=small --image_size=96 --batch_size=32 --dtype=float32 --rounds=5
  python benchmarks/step.py --only jax --variants scan:model.layer_loop=scan dots:model.remat=dots --trace
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from json_lines import JsonLines
from processes import Contender, Late, NotHere, NotMeasured, alternate

CONTENDERS = ("jax", "torch_eager", "torch_compiled")
SETUP = ("size", "image_size", "batch_size", "dtype", "steps")


class Table:
    """Prints rows, and keeps them as lines of JSON, as they are measured."""

    def __init__(self, arguments: argparse.Namespace):
        self._arguments = arguments
        self.keep = JsonLines(arguments.json, setup={field: getattr(arguments, field) for field in SETUP}).keep
        self.failed, self.rows = False, 0
        print(
            f"{'':20}{'pairs/s':>9}{'slowest':>9}{'fastest':>9}{'ms':>8}{'peak MiB':>10}{'1st step s':>12}{'loss':>9}",
            flush=True,
        )

    def row(self, name: str, start: dict[str, Any], rounds: list[dict[str, Any]], **more: Any) -> None:
        steps, pairs = self._arguments.steps, self._arguments.batch_size
        seconds = [answer["seconds"] / steps for answer in rounds]
        middle, peak = statistics.median(seconds), max(answer["peak_mib"] for answer in rounds)
        self.rows += 1
        print(
            f"{name:20}{pairs / middle:9.2f}{pairs / max(seconds):9.2f}{pairs / min(seconds):9.2f}"
            f"{middle * 1000:8.1f}{peak:10.0f}{start['first_step_s']:12.1f}{rounds[-1]['loss']:9.3f}"
            + "".join(f"  {key} {value:.3f}" for key, value in more.items()),
            flush=True,
        )
        self.keep(name=name, seconds=seconds, peak_mib=peak, loss=rounds[-1]["loss"], **start, **more)

    def failure(self, name: str, error: NotMeasured, *, named: bool) -> None:
        """
        Args:
          named: whether the command asked for this one, so that it must be on this machine.
        """
        if isinstance(error, NotHere):
            self.failed |= named
            print(f"{name:20}{error}", flush=True)
            self.keep(name=name, not_here=str(error))
            return
        self.failed = True
        print(f"{name:20}not measured: {error}", flush=True)
        self.keep(name=name, error=str(error))

    def ratio(self, name: str, values: list[float]) -> None:
        middle = statistics.median(values)
        print(f"{name}: {middle:.3f} ({min(values):.3f} to {max(values):.3f})", flush=True)
        self.keep(name=name, ratio=middle, least=min(values), most=max(values))

    def trace(self, name: str, traced: dict[str, Any]) -> None:
        total = sum(entry["ms"] for entry in traced["kinds"].values())
        if not total:
            print(f"  {name}: the profile shows no kernel of this device", flush=True)
        else:
            print(f"  kernels of {name}: {total:.1f} ms a step, which took {traced['wall_ms']:.1f} ms", flush=True)
        for kind, entry in traced["kinds"].items():
            print(f"    {kind:22}{entry['ms']:8.2f} ms {entry['kernels']:8.0f} kernels", flush=True)
        if len(traced["parts"]) > 1:
            for part, milliseconds in traced["parts"].items():
                print(f"    in {part:19}{milliseconds:8.2f} ms", flush=True)
        self.keep(name=name, **traced)


def measure_variants(ours: Contender, table: Table, arguments: argparse.Namespace) -> None:
    peak = None
    if arguments.on_accelerator:
        with contextlib.suppress(NotMeasured):
            peak = ours.call("matrix_peak")["tflops"]
            print(f"a product of 8192 x 8192 bfloat16 matrices: {peak:.0f} TFLOP/s", flush=True)
            table.keep(name="matrix_peak", tflops=peak)
    if arguments.compile_together:
        with contextlib.suppress(NotMeasured):  # each variant then says it in its row
            wait_for_compilers(ours, arguments)
    for name, fields in arguments.variants:
        try:
            start = ours.call("prepare", fields)
            rounds = alternate([ours], rounds=arguments.rounds, arguments=(arguments.steps,))[ours.name]
            middle = statistics.median(answer["seconds"] for answer in rounds) / arguments.steps
            more = {"compiler_gib": start["compiler_mib"] / 1024} if start["compiler_mib"] else {}
            if peak:
                more["of_peak"] = start["tflop"] / middle / peak
            table.row(name, start, rounds, **more)
            if arguments.trace:
                table.trace(name, ours.call("trace", 3))
        except NotMeasured as error:
            table.failure(name, error, named=False)


def wait_for_compilers(ours: Contender, arguments: argparse.Namespace) -> None:
    """Until all variants are compiled, but at most for half of the time; nothing else runs on the device meanwhile."""
    ours.call("compile", [fields for _, fields in arguments.variants])
    started = time.monotonic()
    until, waiting = started + arguments.deadline / 2, dict(arguments.variants)
    while waiting and time.monotonic() < until:
        time.sleep(0.2)
        for name, fields in list(waiting.items()):
            answer = ours.call("compiled", fields)
            if answer["done"]:
                del waiting[name]
            if answer["seconds"] is not None:
                print(f"{name} is compiled after {time.monotonic() - started:.1f} s", flush=True)


def compare(ours: Contender | None, others: list[Contender], table: Table, arguments: argparse.Namespace) -> None:
    """Rounds of ours and of each other contender in alternating order, and their ratios.

    The others follow each other, so one that is still compiling at the deadline does not cost the others their rows.
    """
    run = {"rounds": arguments.rounds, "arguments": (arguments.steps,)}
    started = None
    try:
        started = ours.call("prepare", {}) if ours else None
        if ours and not others:
            table.row("jax", started, alternate([ours], **run)["jax"])
    except NotMeasured as error:
        table.failure("jax", error, named=True)
    for other in others:
        pair = [ours, other] if started else [other]
        try:
            if not arguments.on_accelerator:
                # It compiles now: at the same time as a measurement it would take CPUs from it.
                other.ask("prepare", {})
            start = other.answer()
            rounds = alternate(pair, **run)
        except NotMeasured as error:
            table.failure(other.name, error, named=other.name in arguments.named)
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
    add_setup(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, help="by default all that are on this machine")
    parser.add_argument(
        "--variants",
        nargs="+",
        type=parse_variant,
        default=[],
        metavar="NAME:field=value,…",
        help="settings of ours to measure beside its defaults; xla:OPTION=value for the compiler",
    )
    parser.add_argument("--compile_together", action="store_true", help="the variants at once, in threads")
    parser.add_argument("--trace", action="store_true", help="where each variant's time goes, by kind of kernel")
    parser.add_argument("--deadline", type=float, default=float("inf"), help="seconds after which nothing is begun")
    parser.add_argument("--json", type=Path, help="file that every row is added to as a line of JSON")
    arguments = parser.parse_args(argv)
    arguments.named = frozenset(arguments.only or ())
    arguments.only = arguments.only or CONTENDERS
    complete(parser, arguments)
    if arguments.variants and "jax" not in arguments.only:
        parser.error("--variants are settings of ours: --only must name jax")
    return arguments


def add_setup(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", choices=("tiny", "small", "base", "large"), help="CPU: small; GPU: base")
    parser.add_argument("--image_size", type=int, help="pixels a side; CPU: 96; GPU: 224")
    parser.add_argument("--batch_size", type=int, help="pairs; CPU: 32; GPU: 64")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="CPU: float32; GPU: bfloat16")
    parser.add_argument("--steps", type=int, help="in a round; CPU: 2; GPU: 20")


def complete(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Fills in the setup where the command does not give it, and sets `deadline_at` and `on_accelerator`."""
    arguments.deadline = min(arguments.deadline, 1e6)  # what waits for a process takes no larger number
    arguments.deadline_at = time.monotonic() + arguments.deadline
    if arguments.rounds < 1:
        parser.error(f"--rounds={arguments.rounds} must be at least 1")
    arguments.on_accelerator = accelerated()
    values = ("base", 224, 64, "bfloat16", 20) if arguments.on_accelerator else ("small", 96, 32, "float32", 2)
    for name, value in zip(SETUP, values):
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.steps < 1:
        parser.error(f"--steps={arguments.steps} must be at least 1")


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    setup = {field: getattr(arguments, field) for field in SETUP}
    contenders = [Contender(name, setup, deadline=arguments.deadline_at) for name in dict.fromkeys(arguments.only)]
    try:
        table = Table(arguments)
        ours = next((contender for contender in contenders if contender.name == "jax"), None)
        others = [contender for contender in contenders if contender is not ours]
        if arguments.on_accelerator:
            # PyTorch's compiler takes minutes, so it starts before the variants run.
            for other in others:
                with contextlib.suppress(Late):
                    other.ask("prepare", {})
        if arguments.variants:
            measure_variants(ours, table, arguments)
        if others or not arguments.variants:
            compare(ours, others, table, arguments)
    finally:
        for contender in contenders:
            contender.close()
    return int(table.failed or not table.rows)


if __name__ == "__main__":
    sys.exit(main())
