"""The table of docs/results.md: tasks over drawn shapes, from a pre-trained model or random values, and baselines.

Twelve runs one after another, of some minutes each on a laptop. Runs that are already in DIRECTORY are not repeated.
All are evaluated on the test split, on which no recipe was chosen. A baseline starts from the pre-trained model too,
but sees no images, or no texts. In brackets is the highest accuracy that a baseline can reach: that of a model which
knows the split by heart, and gives the most frequent answer to what it sees. A run from random values uses one
learning rate for encoders and the rest.

Example:
  python benchmarks/downstream.py --directory=runs/downstream --data_dir=runs/data --pretrained=runs/demo

The exit status is 1 where a run failed. Its cell says so; the other runs are made all the same.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mvlm_jax.data.builders import shapes_tasks

SPLIT = "test"  # no recipe was chosen on it
CONFIGS = Path(__file__).resolve().parent.parent / "configs"


class Recipe(NamedTuple):
    config: str
    name: str  # of the task in eval/


TASKS = {
    "vqa": Recipe("finetune_vqa.py", "vqa"),
    "nlvr2": Recipe("finetune_nlvr2.py", "nlvr2"),
    "ve": Recipe("finetune_snli_ve.py", "entailment"),
}
ENCODER_PEAK = 2e-3  # from random values: that of configs/demo.py
COLUMNS = {"pretrained": "none", "random": "none", "no_image": "image", "no_text": "text"}  # and the hidden modality


def run(
    task: str, column: str, *, directory: Path, data_dir: Path, pretrained: Path, changes: Sequence[str] = ()
) -> float:
    """Accuracy of one run, in per cent.

    Args:
      changes: fields of the config, each as `field=value`.

    Raises:
      CalledProcessError: the run failed.
    """
    recipe, workdir = TASKS[task], directory / f"{task}-{column}"
    if column == "random":
        start = [f"--config.optimizer.{part}_encoder_peak={ENCODER_PEAK}" for part in ("image", "text")]
    else:
        start = [f"--config.init_from.checkpoint={pretrained}"]
    command = [
        sys.executable, "-m", "mvlm_jax", "train",
        f"--config={CONFIGS / recipe.config}:shapes", f"--workdir={workdir}",
        f"--config.data.data_dir={data_dir}", f"--config.hide_modality={COLUMNS[column]}", *start,
        f"--config.data.eval=tfds:shapes_{task}:{SPLIT}", *(f"--config.{change}" for change in changes),
    ]  # fmt: skip
    print(" ".join(command), file=sys.stderr)
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=sys.stderr)
    print(f"{task}-{column}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return json.loads((workdir / "eval" / f"{recipe.name}-shapes_{task}-{SPLIT}.json").read_text())["accuracy"]


def upper_bound(examples: Sequence[shapes_tasks.Drawn], column: str) -> float:
    """The highest accuracy that the text alone, or the images alone, allow, in per cent."""
    answers = defaultdict(Counter)
    for example in examples:
        answers[example.text if column == "no_image" else example.scenes][example.answer] += 1
    return 100 * sum(max(counts.values()) for counts in answers.values()) / len(examples)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--pretrained", type=Path, required=True, help="workdir of make demo")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="of the config, in every run; may be repeated"
    )
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}; all by default")
    options = parser.parse_args(argv)
    unknown = sorted(set(options.tasks) - set(TASKS))
    if unknown:
        parser.error(f"{unknown[0]!r} is not one of {', '.join(TASKS)}")
    directories = {name: getattr(options, name).resolve() for name in ("directory", "data_dir", "pretrained")}
    print(f"| | {' | '.join(COLUMNS)} |\n|{'---|' * (1 + len(COLUMNS))}", flush=True)
    failed = False
    for task in options.tasks or TASKS:
        prepare = [sys.executable, "-m", "mvlm_jax", "prepare", f"--dataset=shapes_{task}"]
        subprocess.run([*prepare, f"--data_dir={directories['data_dir']}"], check=True, stdout=sys.stderr)
        examples = shapes_tasks.collection(f"shapes_{task}").splits[SPLIT].drawn
        row = []
        for column, hidden in COLUMNS.items():
            bound = "" if hidden == "none" else f" ({upper_bound(examples, column):.1f})"
            try:
                row.append(f"{run(task, column, changes=options.set, **directories):.1f}{bound}")
            except subprocess.CalledProcessError as error:
                print(f"{task}-{column}: mvlm train ended with status {error.returncode}", file=sys.stderr)
                row.append("failed")
                failed = True
        print(f"| {task} | {' | '.join(row)} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
