"""A task small enough to train in a test: a linear model of data made from (seed, step).

As a script it trains in a process of its own, which a test can kill:
    python toy.py WORKDIR '{"steps": 9}' [--kill-before-step N | --kill-while-saving N | --pause SECONDS]
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from mvlm_jax import config as config_lib
from mvlm_jax.training.accumulation import Independent
from mvlm_jax.training.task import Task

FEATURES, WIDTH = 16, 8


class ToyTask(Task):
    name, embeds, submits = "toy", False, False
    sharding_rules = (
        (r"encoder/kernel", PartitionSpec("fsdp", "tensor")),
        (r".*", PartitionSpec()),
    )
    optimizer_rules = ((r"encoder/.*", "image_encoder"), (r".*", "rest"))
    decay_rules = ((r".*/bias", False), (r".*", True))
    layer_rules = ((r".*", "behind"),)
    frozen_rules = ()
    flops_per_step = 1e6
    batch_shapes = {}

    def __init__(self, *, batch_size=16, seed=0, before_batch=lambda step: None):
        self.batch_size = batch_size
        self.seed = seed
        self.before_batch = before_batch
        self.evaluations = 0

    def init(self, key):
        encoder, head = jax.random.split(key)
        return {
            "encoder": {"kernel": jax.random.normal(encoder, (FEATURES, WIDTH)) / 4, "bias": jnp.zeros(WIDTH)},
            "head": {"kernel": jax.random.normal(head, (WIDTH, 1)) / 4, "bias": jnp.zeros(1)},
        }

    def start_weights(self, shapes):
        return None

    @property
    def objective(self):
        return Independent(self.losses, weights={"squared_error": 1.0}, dtype=jnp.float32)

    def prepare(self, batch, streams):
        keep = jax.random.bernoulli(streams.key("dropout"), 0.8, batch["x"].shape)
        return {**batch, "keep": keep, "step": jnp.broadcast_to(streams.step, batch["y"].shape)}

    def losses(self, params, rows):
        hidden = jnp.tanh((rows["x"] * rows["keep"]) @ params["encoder"]["kernel"] + params["encoder"]["bias"])
        prediction = (hidden @ params["head"]["kernel"] + params["head"]["bias"])[:, 0]
        error = jnp.square(prediction - rows["y"])
        return {"squared_error": (error.sum(), jnp.float32(error.size))}

    def train_batches(self, start_step):
        step = start_step
        while True:
            self.before_batch(step)
            random = np.random.default_rng((self.seed, step))
            x = random.normal(size=(self.batch_size, FEATURES)).astype(np.float32)
            yield {"x": x, "y": x[:, 0] - x[:, 1]}
            step += 1

    def example_ids(self, step):
        return [f"row-{step}-{index}" for index in range(self.batch_size)]

    def evaluate(self, params):
        self.evaluations += 1
        return {"toy-val": {"norm": float(jnp.linalg.norm(params["head"]["kernel"])), "note": "not a number"}}

    def save_assets(self, workdir):
        (workdir / "asset.txt").write_text("asset")


def toy_config(**fields):
    config = config_lib.default()
    config.update_from_flattened_dict(
        {
            "steps": 9,
            "batch_size": 16,
            "log_every": 1,
            "optimizer.warmup_steps": 2,
            "optimizer.image_encoder_peak": 1e-2,
            "optimizer.text_encoder_peak": 1e-2,
            "optimizer.peak": 1e-2,
            "checkpoint.every": 3,
            "checkpoint.keep_last": 2,
            **fields,
        }
    )
    return config


def metrics_lines(workdir):
    """The lines of the log, without what depends on the clock."""
    lines = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("time", "timing")} for line in lines]


def _kill():
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_when_published(step):
    """Dies when the step is written but not yet moved to its place."""
    rename = os.rename

    def guarded(source, target, *args, **kwargs):
        if Path(target).name == str(step):
            _kill()
        return rename(source, target, *args, **kwargs)

    os.rename = os.replace = guarded


if __name__ == "__main__":
    from mvlm_jax.errors import RunError, UserError
    from mvlm_jax.training.loop import train

    directory, fields, *special = sys.argv[1:]
    before_batch = {
        "--kill-before-step": lambda step: _kill() if step == int(special[1]) else None,
        "--pause": lambda step: time.sleep(float(special[1])),
    }
    if special[:1] == ["--kill-while-saving"]:
        _kill_when_published(int(special[1]))
    try:
        train(
            ToyTask(before_batch=before_batch.get(special[0] if special else None, lambda step: None)),
            config=toy_config(**json.loads(fields)),
            workdir=directory,
        )
    except (RunError, UserError) as error:
        print(f"toy: {error}", file=sys.stderr)
        sys.exit(error.status)
