"""Data, training and evaluation of the recipe `demo` in one process, and a picture of what the model rebuilds.

The last line printed is one JSON object.

Example:
  python launch/demo.py --workdir=runs/demo --data_dir=runs/data
"""

import argparse
import io
import json
import sys
import time
from pathlib import Path

import jax
from PIL import Image

from mvlm_jax.cli import prepare, train
from mvlm_jax.data.sources import open_source
from mvlm_jax.files import user_path
from mvlm_jax.inference import Inference
from mvlm_jax.interop.parameters import nested, restore_parameters
from mvlm_jax.report.reconstruction import write_reconstruction
from mvlm_jax.tasks.registry import open_task
from mvlm_jax.training import workdir as workdir_lib

PICTURE, SHOWN = "reconstruction.png", 4  # its file in the workdir; pairs of the evaluation split


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
    summary |= {name: rebuilt[name] for name in ("mlm_gain", "mim_gain", "mim_gain_informative")}
    print(f"what it rebuilds: {_draw(workdir)}")
    print(json.dumps({**summary, "seconds": round(time.time() - arguments.started), "workdir": str(workdir)}))
    return 0


def _draw(workdir: Path) -> Path:
    """The picture of the first pairs that the model was evaluated on."""
    config = workdir_lib.read_config(workdir)
    params, _ = restore_parameters(workdir / workdir_lib.CHECKPOINTS, step=None)
    task = open_task(config, workdir=workdir)
    model = Inference(task=task, params=jax.device_put(nested(params)), batch_size=SHOWN)
    source = open_source(config.data.eval, data_dir=config.data.data_dir)
    examples = [source[index] for index in range(min(SHOWN, len(source)))]
    images = [Image.open(io.BytesIO(example["image"])) for example in examples]
    captions = [example["captions"][0] for example in examples]
    return write_reconstruction(model, images, captions, file=workdir / PICTURE)


if __name__ == "__main__":
    sys.exit(main())
