"""Data, training and evaluation of the recipe `demo` in one process, a picture of what the model rebuilds, and the run
as a page.

The last line printed is one JSON object.

Example:
  python launch/demo.py --workdir=runs/demo --data_dir=runs/data
  python launch/demo.py --workdir=runs/short --config.steps=100
"""

import argparse
import json
import sys
import time
from pathlib import Path

from mvlm_jax.cli import prepare, train
from mvlm_jax.files import user_path
from mvlm_jax.report.examples import first_pairs
from mvlm_jax.report.model import open_model
from mvlm_jax.report.reconstruction import write_reconstruction
from mvlm_jax.report.run import Run, read_run
from mvlm_jax.report.run_page import write_report

PICTURE, SHOWN = "reconstruction.png", 4  # its file in the workdir; pairs of the evaluation split


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/demo")
    parser.add_argument("--data_dir", default="runs/data")
    parser.add_argument("--started", type=float, default=time.time(), help="seconds since 1970 to count from")
    arguments, fields = parser.parse_known_args()
    if unknown := [word for word in fields if not word.startswith("--config.")]:
        parser.error(f"unknown argument {unknown[0]!r}; a field of the config is given as --config.name=value")
    config = ["--config=demo", f"--config.data.data_dir={arguments.data_dir}", *fields]
    status = prepare.run(["--dataset=shapes", f"--data_dir={arguments.data_dir}"]) or train.run(
        [*config, f"--workdir={arguments.workdir}"]
    )
    if status:
        return status
    workdir = user_path(arguments.workdir).resolve()
    retrieval = json.loads((workdir / "eval" / "retrieval-shapes-val.json").read_text())
    rebuilt = json.loads((workdir / "eval" / "reconstruction-shapes-val.json").read_text())
    summary = {name: retrieval[name] for name in ("tr_r1", "ir_r1", "tr_r1_rerank", "ir_r1_rerank")}
    summary |= {name: rebuilt[name] for name in ("mlm_gain", "mim_gain", "mim_gain_informative")}
    run = read_run(workdir)
    print(f"what it rebuilds: {_draw(run)}")
    print(f"the run as a page, for a browser: {write_report(run)}")
    print(json.dumps({**summary, "seconds": round(time.time() - arguments.started), "workdir": str(workdir)}))
    return 0


def _draw(run: Run) -> Path:
    """The picture of the first pairs that the model was evaluated on."""
    model, _ = open_model(run)
    images, captions = zip(*first_pairs(model, most=SHOWN))
    return write_reconstruction(model, images, captions, file=run.directory / PICTURE)


if __name__ == "__main__":
    sys.exit(main())
