"""Draws the losses of a run from its metrics.jsonl.

Example:
  python benchmarks/curve.py --workdir=runs/flickr8k --output=docs/figures/flickr8k.png
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from mvlm_jax.training.metrics_log import read_metrics

LOSSES = ("mim", "mlm", "itc", "itm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--output", required=True, type=Path)
    arguments = parser.parse_args()
    lines = [line for line in read_metrics(arguments.workdir / "metrics.jsonl") if "loss" in line]
    figure, panels = plt.subplots(1, len(LOSSES), figsize=(12, 2.6), sharex=True)
    for panel, loss in zip(panels, LOSSES):
        panel.plot([line["step"] for line in lines], [line[loss] for line in lines], linewidth=1.2)
        panel.set_title(loss)
        panel.set_xlabel("step")
    figure.tight_layout()
    figure.savefig(arguments.output, dpi=90)


if __name__ == "__main__":
    main()
