"""A run small enough for a test: the shipped recipe over a small set of drawn scenes."""

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from mvlm_jax import config as config_lib
from mvlm_jax.data.builders import shapes
from mvlm_jax.data.writing.dataset import write_dataset
from mvlm_jax.models.maskvlm import MaskVLM
from mvlm_jax.tasks.model import maskvlm_fields

ROOT = Path(__file__).resolve().parent.parent


def sizes(**values) -> dict[str, int]:
    """The same width, heads or layers for both encoders and, but for `layers`, the cross encoders."""
    parts = {"image_encoder", "text_encoder", "cross"}
    return {
        f"{part}.{name}": value
        for name, value in values.items()
        for part in sorted(parts - {"cross"} if name == "layers" else parts)
    }


def tiny_model(*, pad_id: int, **fields):
    """MaskVLM for images of 32 pixels, with other values for these config fields, their dots as `__`."""
    config = config_lib.default()
    smaller = {"image.size": 32, "image_encoder.patch": 8, "text_encoder.positions": 16, "dtype": "float32"}
    smaller |= sizes(width=16, heads=2, layers=2, mlp_ratio=2) | {"cross.layers": 1, "cross.decoder_layers": 1}
    config.update_from_flattened_dict(smaller | {name.replace("__", "."): value for name, value in fields.items()})
    return MaskVLM(**maskvlm_fields(config, pad_id=pad_id))


SMALLER = {
    "batch_size": 8,
    "matching.group": 4,
    "image.size": 32,
    "image_encoder.patch": 8,
    "mask.image_cell": 2,
    "mask.image_ratio": 0.6,
    **sizes(width=16, heads=2, layers=1),
    "cross.layers": 1,
    "optimizer.warmup_steps": 2,
    "mesh.data": 8,
    "eval.batch_size": 16,
    "eval.rerank": 3,
    "eval.bootstrap": 50,
    "log_every": 1,
    "log.examples": 0,
}
# The run of six steps from which tests start, and with which interrupted runs are compared.
DEMO_RUN = {"steps": 6, "checkpoint__every": 2}


def prepare_shapes(data_dir: Path) -> None:
    write_dataset(shapes.collection(train=64, val=12, test=12), name="shapes", data_dir=data_dir)


def recipe(name: str, *arguments):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*arguments)


def demo_flags(*, data_dir: Path, workdir: Path, recipe: str = "demo.py", **changes) -> list[str]:
    fields = SMALLER | {"data.data_dir": data_dir} | {name.replace("__", "."): v for name, v in changes.items()}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    return [f"--config={ROOT / 'configs' / recipe}", f"--workdir={workdir}", *flags]


def once(name: str, make: Callable[[Path], None], tmp_path_factory) -> Path:
    """The directory that `make` fills. The first worker of a test run that needs it makes it; the others wait."""
    base = tmp_path_factory.getbasetemp()
    # The base directory of a worker is inside that of the whole test run.
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    directory, made = shared / name, shared / f"{name}.made"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(directory, ignore_errors=True)  # left by a worker that failed
            make(directory)
            made.touch()
    return directory


def started(flags, **environment) -> subprocess.Popen:
    """A training run in a process group of its own, with additional environment variables."""
    return subprocess.Popen(
        [sys.executable, "-m", "mvlm_jax", "train", *flags],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
