"""Plots the losses of a run from its metrics.jsonl. Needs matplotlib.

Example:
  python benchmarks/curve.py --workdir=runs/flickr8k --output=docs/figures/flickr8k.png
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from mvlm_jax.training.metrics_log import read_metrics

LOSSES = ("mim", "mlm", "itc", "itm", "classification", "answer")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--output", required=True, type=Path)
    arguments = parser.parse_args(argv)
    metrics = arguments.workdir / "metrics.jsonl"
    lines = [line for line in read_metrics(metrics) if "loss" in line]
    losses = [loss for loss in LOSSES if lines and loss in lines[0]]
    if not losses:
        print(f"curve.py: {metrics} holds no losses; give the workdir of a run", file=sys.stderr)
        return 1
    draw(lines, losses, output=arguments.output)
    return 0


def draw(lines: Sequence[dict], losses: Sequence[str], *, output: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(losses), figsize=(3 * len(losses), 2.6), sharex=True, squeeze=False)
    for panel, loss in zip(panels[0], losses):
        values = [math.nan if line[loss] is None else line[loss] for line in lines]
        panel.plot([line["step"] for line in lines], values, linewidth=1.2)
        panel.set_title(loss)
        panel.set_xlabel("step")
    figure.tight_layout()
    figure.savefig(output, dpi=90)


if __name__ == "__main__":
    sys.exit(main())
