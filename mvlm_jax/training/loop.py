"""Training, from the first step or from where a run was interrupted."""

import math
from pathlib import Path
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from mvlm_jax.training import workdir as workdir_lib
from mvlm_jax.training.checkpoints import Checkpoints
from mvlm_jax.training.mesh import make_mesh, shard_batch
from mvlm_jax.training.metrics_log import MetricsLog
from mvlm_jax.training.program import make_program
from mvlm_jax.training.state import TrainState, with_weights
from mvlm_jax.training.task import Params, StartWeights, Task
from mvlm_jax.training.throughput import Throughput, progress_line


def train(task: Task, *, config: ConfigDict, workdir: str | Path) -> dict[str, dict[str, Any]]:
    """Makes `config.steps` updates in all, and returns the metrics of the last evaluation.

    Raises:
      UserError: the config does not fit the devices, or the workdir does not fit the config.
    """
    steps = config.steps
    mesh = make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp, tensor=config.mesh.tensor)
    program = make_program(task=task, config=config, mesh=mesh)
    writes = jax.process_index() == 0
    # Before anything is written: weights that do not fit leave no workdir behind.
    start = None if _has_checkpoint(workdir) else task.start_weights(program.state.params)
    directory = workdir_lib.open_workdir(workdir, config=config, write=writes)
    if writes:
        task.save_assets(directory)
    throughput = Throughput(
        steps=steps,
        batch_size=config.batch_size,
        flops_per_step=task.flops_per_step,
        device_kind=mesh.devices.flat[0].device_kind,
        device_count=mesh.size,
    )
    checkpoints = Checkpoints(
        directory / workdir_lib.CHECKPOINTS,
        keep_last=config.checkpoint.keep_last,
        keep_every=config.checkpoint.keep_every,
    )
    with jax.set_mesh(mesh), checkpoints:
        first = checkpoints.latest_step() or 0
        state = checkpoints.restore(first, program.state) if first else program.init()
        if start is not None:
            state = _started_from(start, state, directory=directory, writes=writes)
        with MetricsLog(directory, resumed_step=first, writes=writes) as log:
            results = workdir_lib.read_evaluations(directory, step=first)
            if _is_due(first, every=config.eval.every, steps=steps) and not log.has_evaluation(first):
                results = _evaluate(task, state.params, step=first, directory=directory, log=log, writes=writes)

            batches = iter(task.train_batches(first)) if first < steps else iter(())
            batch = shard_batch(next(batches), program.batch_sharding) if first < steps else None
            running = None
            for step in range(first + 1, steps + 1):
                state, metrics = program.step(state, batch)
                # The device works on this step meanwhile.
                batch = shard_batch(next(batches), program.batch_sharding) if step < steps else None
                # Without a bound the host would run ahead and pile up batches on the device.
                jax.block_until_ready(running)
                running = metrics["loss"]

                if step == first + 1:
                    jax.block_until_ready(running)
                    throughput.restart(step)
                if _is_due(step, every=config.log_every, steps=steps):
                    _log(step, jax.device_get(metrics), steps=steps, throughput=throughput, log=log)
                if _is_due(step, every=config.checkpoint.every, steps=steps):
                    checkpoints.save(step, state)
                if _is_due(step, every=config.eval.every, steps=steps):
                    results = _evaluate(task, state.params, step=step, directory=directory, log=log, writes=writes)
                    throughput.restart(step)
    return results


def _has_checkpoint(workdir: str | Path) -> bool:
    with Checkpoints.for_reading(Path(workdir) / workdir_lib.CHECKPOINTS) as checkpoints:
        return checkpoints.latest_step() is not None


def _started_from(start: StartWeights, state: TrainState, *, directory: Path, writes: bool) -> TrainState:
    for line in start.lines:
        logging.info("%s", line)
    if writes:
        workdir_lib.write_json(directory / workdir_lib.WEIGHTS, dict(start.report))
    return with_weights(state, start.params)


def _is_due(step: int, *, every: int, steps: int) -> bool:
    return step == steps or (step > 0 and every > 0 and step % every == 0)


def _log(step: int, metrics: dict[str, Any], *, steps: int, throughput: Throughput, log: MetricsLog) -> None:
    metrics = {name: float(value) for name, value in metrics.items()}
    timing = throughput.report(step)
    log.write(step, metrics, timing=timing)
    logging.info("%s", progress_line(step=step, steps=steps, metrics=metrics, timing=timing))
    if not math.isfinite(metrics["loss"]):
        logging.warning("step %d: the loss is %s", step, metrics["loss"])


def _evaluate(
    task: Task, params: Params, *, step: int, directory: Path, log: MetricsLog, writes: bool
) -> dict[str, dict[str, Any]]:
    results = task.evaluate(params)
    if writes:
        workdir_lib.write_evaluations(directory, results, step=step)
    log.write_evaluation(step, results)
    return results
