"""All of the project's speed on this machine in one table; `make bench` runs it.

The training step beside the PyTorch reference, eager and compiled; encoding, matching and re-ranking beside the
reference and beside the encoders of transformers; the time to the first step with an empty and a filled cache of
compiled programs; the input pipeline beside bare decoding. A ratio above 1 says that ours is faster. Contenders take
turns, round by round; a ratio is the median over the rounds, with the lowest and the highest in brackets.

A row is printed as soon as it is measured. What needs a package that is not installed (torch, transformers: extra
`parity`) gets a row that says so. The exit status is 1 where a contender failed, or where nothing was measured.

Examples:
  python benchmarks/bench.py
  python benchmarks/bench.py --only step inference --deadline=600 --json=runs/bench.jsonl
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import startup
import step
from contenders import Setup
from inference import ENCODERS, VERBS
from json_lines import JsonLines
from noise_photos import PHOTOS, write_photos
from processes import Contender, Late, NotHere, NotMeasured, alternate

HELP = ["-m", "mvlm_jax", "--help"]
NAMES = {
    "torch_eager": "PyTorch", "torch_compiled": "PyTorch, compiled", "torch_inference": "PyTorch",
    "transformers": "transformers",
}  # fmt: skip


class Table:
    def __init__(self, file: Path | None, *, setup: dict[str, Any]):
        self._keep = JsonLines(file, setup=setup).keep
        self.failed, self.rows = False, 0
        print(f"{'':28}{'ours':>10}{'other':>10}  ratio (lowest to highest)", flush=True)

    def row(self, name: str, *, ours: list[float], other: list[float], beside: str, less: bool = False) -> None:
        """One value a round of each.

        Args:
          less: is better, so that the ratio is turned round.
        """
        ratios = [theirs / mine if less else mine / theirs for mine, theirs in zip(ours, other, strict=True)]
        ratio, least, most = statistics.median(ratios), min(ratios), max(ratios)
        self._print(f"{name:28}{_short(ours)}{_short(other)}  {ratio:5.2f} ({least:.2f} to {most:.2f}) beside {beside}")
        self._keep(name=name, ours=ours, other=other, beside=beside, ratio=ratio, least=least, most=most)

    def alone(self, name: str, values: list[float]) -> None:
        self._print(f"{name:28}{_short(values)}")
        self._keep(name=name, ours=values)

    def failure(self, name: str, error: NotMeasured, *, beside: str = "") -> None:
        absent = isinstance(error, NotHere)
        self.failed |= not absent
        said = str(error) if absent else f"not measured: {error}"
        print(f"{name:28}  {said}{f' (beside {beside})' if beside else ''}", flush=True)
        self._keep(name=name, beside=beside, **{"not_here" if absent else "error": str(error)})

    @contextlib.contextmanager
    def row_of(self, name: str, *, beside: str = "") -> Iterator[None]:
        """Where something in it is not measured, the row says why."""
        try:
            yield
        except NotMeasured as error:
            self.failure(name, error, beside=beside)

    def _print(self, line: str) -> None:
        self.rows += 1
        print(line, flush=True)


def _short(values: list[float]) -> str:
    value = statistics.median(values)
    return f"{value:10.2f}" if value < 100 else f"{value:10.0f}"


class Bench:
    def __init__(self, arguments: argparse.Namespace, table: Table, *, directory: Path):
        """
        Args:
          directory: for the files of the measurements; empty.
        """
        self._arguments, self._table, self._directory = arguments, table, directory
        self._setup = {field: getattr(arguments, field) for field in step.SETUP}

    def step(self) -> None:
        pairs = self._arguments.steps * self._arguments.batch_size
        with self._contenders("jax", "torch_eager", "torch_compiled") as (ours, *others):
            if self._arguments.on_accelerator:
                for other in others:  # PyTorch's compiler takes minutes
                    with contextlib.suppress(Late):
                        other.ask("prepare", {})
            with self._table.row_of("training step"):
                ours.call("prepare", {})
                for other, answers in self._beside(
                    "training step, pairs/s", ours, others, arguments=(self._arguments.steps,), count=pairs,
                    prepare=None if self._arguments.on_accelerator else {},
                ):  # fmt: skip
                    # A high-water mark, so the last one is that of all rounds.
                    mine, its = (answers[name][-1]["peak_mib"] for name in (ours.name, other.name))
                    beside = NAMES[other.name]
                    self._table.row("  peak memory, MiB", ours=[mine], other=[its], beside=beside, less=True)

    def inference(self) -> None:
        with self._contenders("jax_inference", "torch_inference", "transformers") as (ours, *others):
            for verb, unit in VERBS.items():
                with self._table.row_of(verb):
                    start = ours.call("prepare", verb)
                    # As many of ours as fill a round.
                    once = ours.call("run", verb, 1)["seconds"]
                    times = max(1, round(self._arguments.seconds / once))
                    having = [other for other in others if other.name != "transformers" or verb in ENCODERS]
                    for _ in self._beside(
                        f"{verb}, {unit}/s", ours, having, arguments=(verb, times), count=times * start["count"],
                        prepare=verb,
                    ):  # fmt: skip
                        pass

    def startup(self) -> None:
        options = {
            "source": self._photos(), "cache": self._directory / "cache", "deadline": self._arguments.deadline_at
        }  # fmt: skip
        setup = Setup(**self._setup)
        with self._table.row_of("first step"):
            cold = startup.first_step_seconds(setup, **options)
            self._table.alone("first step, cold, s", [cold])
            warm = startup.first_step_seconds(setup, **options)
            beside = "an empty cache"
            self._table.row("first step, cached, s", ours=[warm], other=[cold], beside=beside, less=True)
        for name, command in (("import mvlm_jax", ["-c", "import mvlm_jax"]), ("mvlm --help", HELP)):
            with self._table.row_of(name):
                taken = startup.command_seconds(
                    command, times=self._arguments.rounds, deadline=self._arguments.deadline_at
                )
                self._table.alone(f"{name}, s", taken)

    def input(self) -> None:
        file = self._directory / "input.json"
        source = self._arguments.source or self._photos()
        with self._table.row_of("input pipeline"):
            command = [
                str(startup.ROOT / "benchmarks" / "input_pipeline.py"),
                f"--source={source}", f"--data_dir={self._arguments.data_dir}",
                f"--image_size={self._arguments.image_size}", f"--batch_size={self._arguments.batch_size}",
                f"--rounds={self._arguments.rounds}", "--parts=core", f"--output={file}",
            ]  # fmt: skip
            startup.command_seconds(command, times=1, deadline=self._arguments.deadline_at)
            (_, ours), *others = json.loads(file.read_text())["core"].items()
            for name, other in others:
                self._table.row("input, images/s per core", ours=ours, other=other, beside=name)
            if not any("PyTorch" in name for name, _ in others):
                error = NotHere("not on this machine: torch")
                self._table.failure("input", error, beside="PyTorch DataLoader")

    def _beside(
        self, name: str, ours: Contender, others: list[Contender], *, arguments: tuple, count: float, prepare: Any
    ) -> Iterator[tuple[Contender, dict[str, list[dict[str, Any]]]]]:
        """A row of ours beside each of the others, which is prepared for it; of ours alone where there is no other.

        Args:
          count: of what a round works through.
          prepare: what the others are prepared with; None: they have been asked already.
        """
        measured, run = False, {"rounds": self._arguments.rounds, "arguments": arguments}
        for other in others:
            with self._table.row_of(name, beside=NAMES[other.name]):
                if prepare is not None:
                    other.ask("prepare", prepare)
                other.answer()
                answers = alternate([ours, other], **run)
                mine, its = ([count / each["seconds"] for each in answers[one.name]] for one in (ours, other))
                self._table.row(name, ours=mine, other=its, beside=NAMES[other.name])
                measured = True
                yield other, answers
        if not measured:
            answers = alternate([ours], **run)
            self._table.alone(name, [count / each["seconds"] for each in answers[ours.name]])

    @contextlib.contextmanager
    def _contenders(self, *names: str) -> Iterator[list[Contender]]:
        deadline = self._arguments.deadline_at
        contenders = [Contender(name, self._setup, deadline=deadline) for name in names]
        try:
            yield contenders
        finally:
            for contender in contenders:
                contender.close()

    def _photos(self) -> str:
        photos = self._directory / "photos"
        if not photos.exists():
            photos.mkdir()
            write_photos(photos, count=max(self._arguments.photos, self._arguments.batch_size))
        return f"json:{photos / PHOTOS}"


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "startup": Bench.startup, "step": Bench.step, "inference": Bench.inference, "input": Bench.input,
}  # fmt: skip


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    step.add_setup(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="about the length of a round of inference")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--source", default="", help="images of the input pipeline; by default noise of photos' size")
    parser.add_argument("--data_dir", default="", help="where prepared datasets are")
    parser.add_argument("--photos", type=int, default=256, help="images of noise")
    parser.add_argument("--deadline", type=float, default=float("inf"), help="seconds after which nothing is begun")
    parser.add_argument("--json", type=Path, help="file that every row is added to as a line of JSON")
    arguments = parser.parse_args(argv)
    step.complete(parser, arguments)
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    table = Table(arguments.json, setup={field: getattr(arguments, field) for field in step.SETUP})
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(arguments, table, directory=Path(directory))
        for section in dict.fromkeys(arguments.only):
            SECTIONS[section](bench)
    return int(table.failed or not table.rows)


if __name__ == "__main__":
    sys.exit(main())
