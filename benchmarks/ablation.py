"""The paper's ablation over any recipe of pre-training: arms x parts of the training data x seeds, and their tables.

Each arm changes which losses are trained, and what the other modality shows a reconstruction (config.mask.condition_on):
  itc, itc_itm          contrast; contrast and matching
  mlm, mim              both of these, and the reconstruction of words or of patches
  maskvlm               all four losses
  mlm_mim_independent   all four; nothing is rebuilt with the help of the other modality
  both_masked           all four; the other modality is masked too
  reconstruction_only   the two reconstructions; no retrieval, because no loss trains the embeddings

At one seed all arms see the same batches and masks, and begin with the same parameters. Every run makes the steps of the
recipe, whatever its part of the data is. One process compiles each arm once and decodes each image once. Seeds are the
outer loop, so that an ablation that ends early has the same seeds of all arms.

Each run is a directory below DIRECTORY/runs and, once finished, a line of DIRECTORY/results.jsonl with the ranks of all
queries. The same command goes on where it was stopped or killed: finished runs are not repeated, the one in progress
continues from its checkpoint, with the same result. More arms, parts and seeds may be added; another recipe is refused.
The tables are printed, and written with a plot to DIRECTORY. benchmarks/ablation_statistics.py says how arms are
compared. The exit status is 1 where a signal stopped it, and 0 at the deadline.

Examples:
  python benchmarks/ablation.py --directory=runs/ablation --config=demo --set data.data_dir=runs/data --set steps=200 --set optimizer.warmup_steps=40 --arms itc_itm mlm_mim_independent maskvlm --fractions 0.1 0.025 --seeds 5
  python benchmarks/ablation.py --directory=runs/ablation --tables
"""  # noqa: E501

import argparse
import contextlib
import importlib.util
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ablation_tables

LINES, RECIPE, TABLES, PLOT, RUNS = "results.jsonl", "recipe.json", "tables.md", "ablation.png", "runs"
NAMES = ("itc", "itc_itm", "mlm", "mim", "mlm_mim_independent", "both_masked", "maskvlm", "reconstruction_only")
Key = tuple[str, float, int]  # arm, fraction, seed


class ResultLines:
    """A file of JSON lines that survives a kill: what was cut short in the middle of a line is dropped."""

    def __init__(self, file: Path) -> None:
        """
        Raises:
          UserError: a whole line that is none of an ablation.
        """
        from mvlm_jax.errors import UserError

        self._file = file
        whole = (file.read_bytes() if file.exists() else b"").rpartition(b"\n")[0]
        self.lines: list[dict[str, Any]] = []
        for number, text in enumerate(whole.splitlines(), 1):
            try:
                line = json.loads(text)
                self._key(line)
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{file}: line {number} is not of an ablation ({error}); remove it") from error
            self.lines.append(line)
        self._length = len(whole) + bool(whole)

    @property
    def keys(self) -> set[Key]:
        return {self._key(line) for line in self.lines}

    def add(self, line: dict[str, Any]) -> None:
        """On the disk when this returns."""
        with self._file.open("ab") as file:
            file.truncate(self._length)
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            self._length = file.tell()
        self.lines.append(line)

    @staticmethod
    def _key(line: Mapping[str, Any]) -> Key:
        return line["arm"], line["fraction"], line["seed"]


class Clock:
    """Whether another run ends in time."""

    def __init__(self, deadline: float) -> None:
        """
        Args:
          deadline: in seconds from now.
        """
        self._started, self._deadline = time.monotonic(), deadline
        self._seconds: dict[str, float] = {}  # of the last run of each arm, without compilation

    def took(self, arm: str, seconds: float) -> None:
        self._seconds[arm] = seconds

    def allows(self, arm: str) -> bool:
        """A first run of an arm is taken to last as long as the longest of the others."""
        expected = self._seconds.get(arm, max(self._seconds.values(), default=0.0))
        return time.monotonic() - self._started + expected < self._deadline


def main(argv: Sequence[str] | None = None) -> int:
    from mvlm_jax.errors import RunError, UserError

    parser = arguments_parser()
    options = parser.parse_args(argv)
    if not options.tables and not options.config:
        parser.error("--config is needed, or --tables")
    try:
        lines, stopped = (ResultLines(options.directory / LINES), False) if options.tables else run(options)
        if lines.lines:
            report(lines.lines, directory=options.directory)
    except (RunError, UserError) as error:
        print(f"ablation.py: {error}", file=sys.stderr)
        return error.status
    return int(stopped)


def arguments_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", required=True, type=Path)
    parser.add_argument("--config", help="a recipe of pre-training, as mvlm train takes it")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="of the config; may be repeated"
    )
    parser.add_argument("--arms", nargs="+", choices=NAMES, default=list(NAMES), metavar="ARM", help=", ".join(NAMES))
    parser.add_argument(
        "--fractions", nargs="+", type=fraction, default=[1.0],
        help="in place of config.data.fraction; a source with a fraction of its own keeps it",
    )  # fmt: skip
    parser.add_argument("--seeds", type=positive, default=5, help="how many, from 0 on")
    parser.add_argument(
        "--deadline", type=float, default=math.inf, metavar="SECONDS", help="no run is begun that would end later"
    )
    parser.add_argument("--image_bytes", type=int, default=2**32, help="of decoded images, kept for all runs")
    parser.add_argument("--keep_checkpoints", action="store_true", help="of finished runs too")
    parser.add_argument("--tables", action="store_true", help="only the tables of the runs that there are")
    return parser


def fraction(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} must lie above 0 and at most at 1")
    return value


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def run(options: argparse.Namespace) -> tuple[ResultLines, bool]:
    """The lines of all finished runs, and whether a signal stopped it.

    Raises:
      UserError: the recipe does not fit an ablation, or the directory is of another one.
    """
    from mvlm_jax.cli import commands
    from mvlm_jax.lock import only_one

    recipe = checked_recipe(options)
    options.directory.mkdir(parents=True, exist_ok=True)
    with only_one(options.directory, command="ablation.py"):
        check_same(recipe, directory=options.directory)
        lines = ResultLines(options.directory / LINES)
        commands.use_compilation_cache(recipe)
        return lines, make_runs(options, recipe=recipe, lines=lines)


def checked_recipe(options: argparse.Namespace) -> Any:
    """The config of the recipe with the changes of --set; each arm of it is valid.

    Raises:
      UserError: it is none of pre-training, or has a wrong field or value.
    """
    from ablation_task import ARMS
    from absl import flags

    from mvlm_jax.cli import commands
    from mvlm_jax.errors import UserError
    from mvlm_jax.tasks.registry import validate

    argv = ["ablation.py", f"--config={options.config}", *(f"--config.{change}" for change in options.set)]
    values = flags.FlagValues()
    try:
        commands.define_config(values, argv)
        values(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(" ".join(str(error).split())) from error
    recipe = values.config
    if recipe.task != "pretrain":
        raise UserError(f"config.task={recipe.task!r} has no arms; give a recipe of pretrain")
    # Threads of this process share the decoded images; worker processes would not.
    recipe.data.workers, recipe.data.fraction, recipe.seed = 0, 1.0, 0
    for arm in options.arms:
        validate(ARMS[arm].config(recipe, fraction=1.0, seed=0))
    return recipe


def check_same(recipe: Any, *, directory: Path) -> None:
    """Keeps the recipe in a new directory; in one that has lines, it must be the same.

    Raises:
      UserError: it is another one.
    """
    from mvlm_jax import config as config_lib
    from mvlm_jax.errors import UserError
    from mvlm_jax.files import write_text

    changeable = tuple(name for name in config_lib.CHANGEABLE_ON_RESUME if name != "eval.")
    file = directory / RECIPE
    if not file.exists():
        write_text(file, config_lib.to_json(recipe))
        return
    there = config_lib.from_json(file.read_bytes(), source=file)
    changed = config_lib.differences(
        there, recipe, changeable=(*changeable, "eval.batch_size", "eval.host_bytes", "eval.every")
    )
    if changed:
        raise UserError(f"{directory} holds an ablation of another recipe: {changed}; give another --directory")


def make_runs(options: argparse.Namespace, *, recipe: Any, lines: ResultLines) -> bool:
    """Makes the runs that have no line yet, as far as time goes.

    Returns:
      Whether a signal stopped it.
    """
    import jax
    from ablation_task import ARMS, DecodedImages, Programs
    from absl import logging

    from mvlm_jax.compile_time import CompileTime
    from mvlm_jax.training.loop import train

    clock, programs, decoded = Clock(options.deadline), Programs(), DecodedImages(options.image_bytes)
    bases: dict[float, Any] = {}
    # Orbax warns of each directory that it only reads.
    logging.get_absl_logger().addFilter(lambda record: "/orbax/" not in record.pathname)
    for arm, part, seed in order(options):
        workdir = options.directory / RUNS / f"{arm}-{part:g}-{seed}"
        if (arm, part, seed) in lines.keys:
            clean(workdir, keep=options.keep_checkpoints)
            continue
        if not clock.allows(arm):
            print(f"the deadline leaves no time for seed {seed} of {arm} at {part:g}", flush=True)
            return False
        if part not in bases:
            bases[part] = base_task(ARMS[arm].config(recipe, fraction=part, seed=0), decoded=decoded)
            if jax.default_backend() != "cpu":
                for other in options.arms:
                    programs.begin(other, with_config(bases[part], ARMS[other].config(recipe, fraction=part, seed=0)))
        config = ARMS[arm].config(recipe, fraction=part, seed=seed)
        task = with_config(bases[part], config)
        with CompileTime() as spent:
            program = programs.of(arm, task).of_seed(seed)
            outcome = train(task, config=config, workdir=workdir, program=program)
        if outcome.stopped:
            print(f"stopped in seed {seed} of {arm} at {part:g}; the same command continues", flush=True)
            return True
        clock.took(arm, spent.all - spent.compiling - spent.reading)
        results = {name.partition("-")[0]: metrics for name, metrics in outcome.results.items()}
        lines.add(
            {
                "arm": arm, "fraction": part, "seed": seed, "losses": ARMS[arm].losses, "steps": config.steps,
                "training_images": sum(map(len, task.mixture(config).components)),
                "retrieval": results.get("retrieval", {}), "reconstruction": results.get("reconstruction", {}),
                "ranks": results.get("ranks", {}), "seconds": round(spent.all, 1),
                "compiling_seconds": round(spent.compiling + spent.reading, 1),
                "device": jax.devices()[0].device_kind, "jax": jax.__version__,
            }
        )  # fmt: skip
        clean(workdir, keep=options.keep_checkpoints)
        print(in_words(lines.lines[-1]), flush=True)
    return False


def order(options: argparse.Namespace) -> Iterator[Key]:
    for seed in range(options.seeds):
        for part in options.fractions:
            for arm in options.arms:
                yield arm, part, seed


def base_task(config: Any, *, decoded: Any) -> Any:
    """The task of one fraction, with what all its runs share: the tokenizer, and the evaluation split."""
    from ablation_task import AblationTask

    from mvlm_jax.tasks.pretrain import Pretrain

    task = Pretrain.open(config, workdir=None)
    return AblationTask(config=config, tokenizer=task.tokenizer, decoded=decoded, whole_split=task.split)


def with_config(task: Any, config: Any) -> Any:
    return type(task)(config=config, tokenizer=task.tokenizer, decoded=task.decoded, whole_split=task.whole_split)


def clean(workdir: Path, *, keep: bool) -> None:
    """Removes the checkpoints of a finished run."""
    if not keep:
        shutil.rmtree(workdir / "checkpoints", ignore_errors=True)


def in_words(line: Mapping[str, Any]) -> str:
    found, seconds = line["retrieval"], line["seconds"]
    recalls = [f"R@1 {found['tr_r1']:.1f} / {found['ir_r1']:.1f}"] if found else []
    if "tr_r1_rerank" in found:
        recalls.append(f"re-ranked {found['tr_r1_rerank']:.1f} / {found['ir_r1_rerank']:.1f}")
    name = f"seed {line['seed']}, {line['fraction']:g} of the data, {line['arm']}"
    return f"{name}: {', '.join([*recalls, f'{seconds:.0f} s'])}"


def report(lines: Sequence[Mapping[str, Any]], *, directory: Path) -> None:
    from mvlm_jax.files import atomically, write_text

    text = ablation_tables.tables(lines)
    write_text(directory / TABLES, text)
    print(f"\n{text}", end="", flush=True)
    if importlib.util.find_spec("matplotlib") is not None:
        with contextlib.suppress(FileNotFoundError), atomically(directory / PLOT) as temporary:
            picture = temporary.with_suffix(".png")
            ablation_tables.draw(lines, output=picture)
            picture.replace(temporary)


if __name__ == "__main__":
    sys.exit(main())
