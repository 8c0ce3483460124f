"""Data, training and evaluation of the recipe `demo` in one process; the last line printed is one JSON object.

Example:
  python launch/demo.py --workdir=runs/demo --data_dir=runs/data
"""

import argparse
import json
import sys
import time

from mvlm_jax.cli import prepare, train
from mvlm_jax.files import user_path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/demo")
    parser.add_argument("--data_dir", default="runs/data")
    parser.add_argument("--started", type=float, default=time.time(), help="seconds since 1970 to count from")
    arguments = parser.parse_args()
    config = ["--config=demo", f"--config.data.data_dir={arguments.data_dir}"]
    status = prepare.run(["--dataset=shapes", f"--data_dir={arguments.data_dir}"]) or train.run(
        [*config, f"--workdir={arguments.workdir}"]
    )
    if status:
        return status
    workdir = user_path(arguments.workdir).resolve()
    retrieval = json.loads((workdir / "eval" / "retrieval-shapes-val.json").read_text())
    rebuilt = json.loads((workdir / "eval" / "reconstruction-shapes-val.json").read_text())
    summary = {name: retrieval[name] for name in ("tr_r1", "ir_r1", "tr_r1_rerank", "ir_r1_rerank")}
    summary |= {name: rebuilt[name] for name in ("mlm_gain", "mim_gain")}
    print(json.dumps({**summary, "seconds": round(time.time() - arguments.started), "workdir": str(workdir)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
