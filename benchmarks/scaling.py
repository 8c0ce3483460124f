"""The table of docs/scaling.md: `mvlm compile` of the paper's recipe for several topologies, 32 pairs a chip.

Each compilation takes half an hour or more of one core and up to 16 GB of memory, so they run one after another, and
one whose figures are in DIRECTORY already is not repeated. Needs libtpu (pip install -e .[tpu]).

Example:
  python benchmarks/scaling.py --directory=runs/scaling v6e:4x4 v6e:16x16
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

RECIPE = Path(__file__).resolve().parent.parent / "configs" / "pretrain_4m.py"
PAIRS = 32  # a chip


class Case(NamedTuple):
    size: str
    topology: str
    chips: int
    remat: str


CASES = {
    "v5e:4x4": Case("base", "v5e:4x4", 16, "full"),
    "v5e:16x16": Case("base", "v5e:16x16", 256, "full"),
    "v6e:4x4": Case("base", "v6e:4x4", 16, "none"),
    "v6e:16x16": Case("base", "v6e:16x16", 256, "none"),
    "large": Case("large", "v5e:16x16", 256, "full"),
}
COLUMNS = (
    "model", "topology", "remat", "HBM a chip, GiB", "of", "TFLOP a chip", "of the model's",
    "all-reduce, MiB", "all-gather, MiB", "reduce-scatter, MiB", "step, ms", "hours",
)  # fmt: skip


def compile_case(case: Case, file: Path) -> None:
    """
    Raises:
      CalledProcessError: `mvlm compile` failed.
    """
    command = [
        sys.executable, "-m", "mvlm_jax.compile", f"--config={RECIPE}:{case.size}", f"--topology={case.topology}",
        f"--config.batch_size={PAIRS * case.chips}", f"--config.model.remat={case.remat}", f"--json={file}",
    ]  # fmt: skip
    print(" ".join(command), file=sys.stderr)
    subprocess.run(command, check=True, stdout=sys.stderr)


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
    kinds = [f"{sent.get(kind, 0) / 2**20:.1f}" for kind in ("all-reduce", "all-gather", "reduce-scatter")]
    seconds, hours = figures["step_seconds_estimate"], figures["hours_estimate"]
    return [
        *start, f"{compiled / 1e12:.3f}", f"{compiled / model:.3f}", *kinds, f"{1000 * seconds:.0f}", f"{hours:.1f}"
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True, help="where the figures are kept")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all by default")
    options = parser.parse_args()
    unknown = sorted(set(options.cases) - set(CASES))
    if unknown:
        parser.error(f"{unknown[0]!r} is not one of {', '.join(CASES)}")
    options.directory.mkdir(parents=True, exist_ok=True)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    for name in options.cases or CASES:
        file = options.directory / f"{name.replace(':', '_')}.json"
        if not file.exists():
            compile_case(CASES[name], file)
        print(f"| {' | '.join(row(CASES[name], json.loads(file.read_text())))} |", flush=True)


if __name__ == "__main__":
    main()
