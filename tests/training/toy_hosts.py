"""A run of the toy task by two processes of two devices each, over the loopback."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from tiny import ROOT

TIMEOUT = 300  # seconds; only a hang comes near it
PROCESS = """
import json, pathlib, sys, time
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
index, port, workdir, job = int(sys.argv[1]), sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index, heartbeat_timeout_seconds=90)
import mvlm_jax.training.loop as loop
from mvlm_jax.cli import commands
from mvlm_jax.errors import RunError, UserError
from mvlm_jax.training.checkpoints import Checkpoints
from mvlm_jax.training.mesh import batch_sharding, make_mesh, process_rows
from mvlm_jax.training.heartbeat import Heartbeat
from mvlm_jax.training.program import make_program
from mvlm_jax.training.task import StartWeights
from toy import ToyTask, toy_config

seconds = {"beat_seconds": 0.5, "lost_after_seconds": job.get("lost_after", 3.0)}
seconds["stalled_after_seconds"] = job.get("stalled_after", 120.0)
loop.Heartbeat = lambda activity, names: Heartbeat(activity, names=names, **seconds)
config = toy_config(**{"checkpoint.every": 1000, **job["fields"]})
rows_here = process_rows(16, batch_sharding(make_mesh(**config.mesh)))

class Part(ToyTask):
    def start_weights(self, shapes):
        if "start" not in job:
            return None
        start = pathlib.Path(job["start"][index])
        if not start.exists():
            raise UserError(f"there is no {start.name}")
        host = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=host), shapes)
        with Checkpoints.for_reading(start) as checkpoints:
            step, _ = checkpoints.restore_params(None, shapes)
        return StartWeights({}, report={}, lines=[f"step {step}"])

    def train_batches(self, start_step):
        for step, batch in enumerate(super().train_batches(start_step)):
            if job.get("fails") == index and step == 5:
                raise RunError("no batch any more")
            if job.get("starves") == index and step == 12:
                time.sleep(1000)
            time.sleep(0.3 if job.get("slow") == index else job.get("pause", 0.05))
            yield {name: rows[rows_here] for name, rows in batch.items()}

def stuck_program():
    # Its sixth call does not come back.
    program, calls = make_program(task=Part(), config=config, mesh=make_mesh(**config.mesh)), []

    def step(state, batch):
        calls.append(step)
        if len(calls) == 6:
            time.sleep(1000)
        return program.step(state, batch)

    return program._replace(step=step)

def main(_):
    program = stuck_program() if job.get("stuck") == index else None
    loop.train(Part(), config=config, workdir=workdir, program=program)

sys.exit(commands.run(name="train", doc="", define_flags=lambda values, argv: None, main=main, argv=[]))
"""


def started(workdir, *, logs, fields, **job):
    """The two processes. Each writes to standard error in `logs`, as `0.log` and `1.log`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, Path(__file__).parent))),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(index), str(port), str(workdir), json.dumps({"fields": fields, **job})],
            env=os.environ | variables,
            stderr=(logs / f"{index}.log").open("w"),
        )
        for index in range(2)
    ]


def ended(processes, *, timeout):
    """The exit status of each."""
    try:
        return [process.wait(timeout=timeout) for process in processes]
    finally:
        end(processes)


def end(processes):
    for process in processes:
        process.kill()
        process.wait()
