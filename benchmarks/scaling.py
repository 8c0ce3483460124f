"""The table of docs/results/tpu.md: `mvlm compile` of the paper's recipe for several topologies, 32 pairs a chip.

Each compilation takes half an hour or more of one CPU and up to 16 GB of memory, so they run one after another. One
whose figures are already in DIRECTORY is not repeated. Below the table: how much more a chip holds and computes on 256
chips than on 16. Needs libtpu (pip install -e '.[tpu]').

Example:
  python benchmarks/scaling.py --directory=runs/scaling v6e:4x4 v6e:16x16
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mvlm_jax.configs import pretrain_4m

PAIRS = 32  # a chip


class Case(NamedTuple):
    size: str
    topology: str
    chips: int
    remat: str


CASES = {
    "v5e:4x4": Case("base", "v5e:4x4", 16, "inputs"),
    "v5e:16x16": Case("base", "v5e:16x16", 256, "inputs"),
    "v6e:4x4": Case("base", "v6e:4x4", 16, "none"),
    "v6e:16x16": Case("base", "v6e:16x16", 256, "none"),
    "large": Case("large", "v5e:16x16", 256, "full"),
}
COLUMNS = (
    "model", "topology", "remat", "HBM a chip, GiB", "of", "TFLOP a chip", "of the model's",
    "all-reduce, MiB", "all-gather, MiB", "reduce-scatter, MiB", "step, ms", "hours for the recipe's pairs",
)  # fmt: skip


def compile_case(case: Case, file: Path, *, changes: Sequence[str] = ()) -> None:
    """
    Args:
      changes: fields of the config, each as `field=value`.

    Raises:
      CalledProcessError: `mvlm compile` failed.
    """
    command = [
        sys.executable, "-m", "mvlm_jax", "compile", f"--config=pretrain_4m:{case.size}", f"--topology={case.topology}",
        f"--config.batch_size={PAIRS * case.chips}", f"--config.model.remat={case.remat}", f"--json={file}",
        *(f"--config.{change}" for change in changes),
    ]  # fmt: skip
    print(" ".join(command), file=sys.stderr)
    subprocess.run(command, check=True, stdout=sys.stderr)


def file_of(name: str, directory: Path) -> Path:
    return directory / f"{name.replace(':', '_')}.json"


def row(case: Case, figures: Mapping[str, Any]) -> list[str]:
    memory, sent = figures["hbm_bytes_per_chip"], figures["collective_bytes_per_chip"]
    compiled, model = figures["compiled_flops_per_chip"], figures["model_flops_per_chip"]
    start = [
        case.size,
        case.topology,
        case.remat,
        f"{memory['total'] / 2**30:.2f}",
        f"{memory['capacity'] / 2**30:.2f}",
    ]
    if compiled is None:
        return [*start, f"{model / 1e12:.2f} (model)", *["does not fit"] * 6]
    moved = [f"{sent.get(name, 0) / 2**20:.1f}" for name in ("all-reduce", "all-gather", "reduce-scatter")]
    seconds = figures["step_seconds_estimate"]
    # The hours in the figures are for the recipe's number of steps, with larger batches.
    recipe = pretrain_4m.get_config(case.size)
    hours = seconds * recipe.steps * recipe.batch_size / (PAIRS * case.chips) / 3600
    return [
        *start, f"{compiled / 1e12:.3f}", f"{compiled / model:.3f}", *moved, f"{1000 * seconds:.0f}", f"{hours:.1f}"
    ]  # fmt: skip


def growth(directory: Path) -> Iterator[str]:
    """A line for each family of chips that has figures of 16 and of 256 chips."""
    for family in ("v5e", "v6e"):
        files = [file_of(f"{family}:{size}", directory) for size in ("4x4", "16x16")]
        if not all(file.exists() for file in files):
            continue
        few, many = (json.loads(file.read_text()) for file in files)
        line = f"{family}, from 16 to 256 chips: HBM a chip {_more(few, many, 'hbm_bytes_per_chip', 'total')}"
        if few["compiled_flops_per_chip"] and many["compiled_flops_per_chip"]:
            line += f", FLOPs a chip {_more(few, many, 'compiled_flops_per_chip')}"
        yield line


def _more(few: Mapping[str, Any], many: Mapping[str, Any], *fields: str) -> str:
    for field in fields:
        few, many = few[field], many[field]
    return f"{100 * (many / few - 1):+.2f}%"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True, help="where the figures are kept")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="of the config, in every case; may be repeated",
    )
    options = parser.parse_args(argv)
    unknown = sorted(set(options.cases) - set(CASES))
    if unknown:
        parser.error(f"{unknown[0]!r} is not one of {', '.join(CASES)}")
    options.directory.mkdir(parents=True, exist_ok=True)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    failed = False
    remat = dict(change.partition("=")[::2] for change in options.set).get("model.remat")
    for name in options.cases or CASES:
        case = CASES[name]._replace(remat=remat or CASES[name].remat)
        file = file_of(name, options.directory)
        try:
            if not file.exists():
                compile_case(case, file, changes=options.set)
        except subprocess.CalledProcessError as error:
            print(f"{name}: mvlm compile ended with status {error.returncode}", file=sys.stderr)
            failed = True
            continue
        print(f"| {' | '.join(row(case, json.loads(file.read_text())))} |", flush=True)
    for line in growth(options.directory):
        print(f"\n{line}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
