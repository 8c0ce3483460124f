"""Twenty steps of the shipped demo recipe made tiny, in float32: what every mesh and every set of hosts must repeat.

As a script it is one process of a run of several:
    python twenty.py RECORD '[{"command": "train", "flags": […], "stop_after": 7}, …]'
goes through the commands in turn. RECORD gets the status of each and the image ids that this process read
for each batch.
"""

import contextlib
import importlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tiny import ROOT, SMALLER, demo_flags, recipe

from mvlm_jax.tasks.base import BaseTask
from mvlm_jax.tasks.registry import open_task
from mvlm_jax.training.accumulation import value_and_grad
from mvlm_jax.training.mesh import shard_batch
from mvlm_jax.training.program import make_program
from mvlm_jax.training.streams import Streams

STEPS = 20
LOSSES = ("loss", "mim", "mlm", "itc", "itm")
# Two pairs a device on 8 of them, half of a group; four on a mesh of 2 x 2 x 2, a whole group.
FIELDS = {"steps": STEPS, "batch_size": 16, "dtype": "float32", "checkpoint.every": 7, "checkpoint.keep_last": 9}
FIELDS |= {"model.attention": "xla", "model.layer_loop": "scan", "model.remat": "none"}  # the plain form of the model
PROCESSES, DEVICES = 2, 8


def config_of(data_dir, **fields):
    config = recipe("demo")
    config.update_from_flattened_dict(SMALLER | FIELDS | {"data.data_dir": str(data_dir)} | fields)
    return config


def flags_of(*, data_dir, workdir, mesh=(DEVICES, 1, 1), **fields):
    fields = FIELDS | dict(zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), mesh)) | fields
    return demo_flags(data_dir=data_dir, workdir=workdir, **{name.replace(".", "__"): v for name, v in fields.items()})


def trajectory(data_dir, mesh, **fields):
    """The losses and the image ids of each step."""
    config = config_of(data_dir, **fields)
    task = open_task(config, workdir=data_dir)
    program = make_program(task=task, config=config, mesh=mesh)
    state, lines, ids = program.init(), [], []
    with jax.set_mesh(mesh):
        for _, batch in zip(range(STEPS), task.train_batches(0)):
            ids.append(batch["image_id"].tolist())
            state, metrics = program.step(state, shard_batch(batch, program.batch_sharding))
            lines.append([float(metrics[name]) for name in LOSSES])
    return np.array(lines), ids


def first_gradients(data_dir, mesh, **fields):
    """Of the first batch, for every parameter."""
    config = config_of(data_dir, **fields)
    task = open_task(config, workdir=data_dir)
    program = make_program(task=task, config=config, mesh=mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, program.state.params)

    @jax.jit
    def gradients(params, batch):
        rows = task.prepare(batch, Streams(seed=config.seed, step=jnp.int32(0)))
        return value_and_grad(task.objective, params, rows, accumulate=1, mesh=mesh, shardings=shardings)[1]

    with jax.set_mesh(mesh):
        batch = shard_batch(next(iter(task.train_batches(0))), program.batch_sharding)
        return jax.device_get(gradients(program.init().params, batch))


def logged_losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return np.array([[line[name] for name in LOSSES] for line in lines if "loss" in line])


@contextlib.contextmanager
def watched(ids, *, stop_after=None):
    """Keeps the image ids that this process reads for each step; stops the run in the step after `stop_after`."""
    whole = BaseTask.train_batches

    def train_batches(self, start_step):
        for step, batch in enumerate(whole(self, start_step), start_step):
            # The trainer asks for the next batch before it looks at the step that it runs.
            if stop_after is not None and step > stop_after:
                raise KeyboardInterrupt
            ids[step] = batch["image_id"].tolist() if "image_id" in batch else None
            yield batch

    BaseTask.train_batches = train_batches
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        BaseTask.train_batches = whole


def run_processes(directory, jobs):
    """Runs the jobs in two processes of four devices each, each in a directory of its own.

    A job may have `more` flags for one process: {index: flags}. Returns what each process recorded, and its stderr.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = []
    for index in range(PROCESSES):
        own = Path(directory) / f"process{index}"
        own.mkdir(parents=True, exist_ok=True)
        joining = [f"--coordinator_address={address}", f"--num_processes={PROCESSES}", f"--process_id={index}"]
        own_jobs = [job | {"flags": [*job["flags"], *joining, *job.get("more", {}).get(index, [])]} for job in jobs]
        flags = f"--xla_force_host_platform_device_count={DEVICES // PROCESSES} --xla_backend_optimization_level=0"
        environment = os.environ | {
            "XLA_FLAGS": flags,
            "JAX_PLATFORMS": "cpu",
            "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests"))),
        }
        started.append(
            subprocess.Popen(
                [sys.executable, __file__, own / "record.json", json.dumps(own_jobs)],
                cwd=own,
                env=environment,
                stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
            )
        )
    try:
        errors = [process.communicate(timeout=600)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * PROCESSES, "\n\n".join(errors)
    records = [json.loads((Path(directory) / f"process{i}" / "record.json").read_text()) for i in range(PROCESSES)]
    return records, errors


def _main(record, jobs):
    done = []
    for job in json.loads(jobs):
        ids, status = {}, None
        with watched(ids, stop_after=job.get("stop_after")):
            status = importlib.import_module(f"mvlm_jax.cli.{job['command']}").run(job["flags"])
        done.append({"status": status, "ids": ids})
    Path(record).write_text(json.dumps(done))
    # Together, and past the status that a run broken off on purpose has left for the end of its process.
    jax.distributed.shutdown()
    os._exit(0)


if __name__ == "__main__":
    _main(*sys.argv[1:])
