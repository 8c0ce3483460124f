"""What a run says of itself before its first step."""

import math
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

import mvlm_jax
from mvlm_jax.training.inventory import Member, describe
from mvlm_jax.training.mesh import batch_parts
from mvlm_jax.training.metrics_log import METRICS
from mvlm_jax.training.program import Program
from mvlm_jax.training.task import DataSizes, Params, Task

TRACKED = (("wandb", "Weights & Biases project"), ("tracker", "tracker"))  # fields of config.log


def banner(
    task: Task,
    *,
    config: ConfigDict,
    mesh: Mesh,
    program: Program,
    members: Sequence[Member],
    data: DataSizes | None,
    directory: Path,
) -> list[str]:
    """One line for each subject, which begins with its name; the hosts of several processes may have more.

    Args:
      members: all processes, in order.
      data: None where the task does not know.
    """
    return [
        f"run: {config.task}, mvlm-jax {mvlm_jax.__version__}, JAX {jax.__version__}",
        f"devices: {_devices(mesh)}",
        *(describe(members) if len(members) > 1 else []),
        f"mesh: {', '.join(f'{axis} {size}' for axis, size in mesh.shape.items())}",
        f"parameters: {_parameters(program)}",
        f"batch: {_batch(task, config=config, mesh=mesh)}",
        f"steps: {_steps(config, data=data)}",
        f"data: {_data(config, data=data)}",
        f"logs: {directory / METRICS}{_trackers(config)}; watch with: tensorboard --logdir={directory}",
    ]


def _devices(mesh: Mesh) -> str:
    processes = jax.process_count()
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind}, {processes} process{'es' if processes > 1 else ''}"


def _parameters(program: Program) -> str:
    parts = {name: _count(part) for name, part in program.state.params.items()}
    total, trained = sum(parts.values()), _count(program.trained)
    shown = ", ".join(f"{name} {_short(parts[name])}" for name in sorted(parts, key=parts.__getitem__, reverse=True))
    frozen = "" if trained == total else f"; {_short(trained)} of them are trained"
    return f"{_short(total)} ({shown}){frozen}"


def _count(params: Params) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _short(number: int) -> str:
    """To three digits."""
    for size, unit in ((1_000_000_000, " G"), (1_000_000, " M"), (1_000, " k")):
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def _batch(task: Task, *, config: ConfigDict, mesh: Mesh) -> str:
    microbatches = f", in {config.accumulate} microbatches" if config.accumulate > 1 else ""
    each = config.batch_size / batch_parts(mesh)
    return f"{config.batch_size} examples, {each:g} a device{microbatches}, in {jnp.dtype(task.objective.dtype).name}"


def _steps(config: ConfigDict, *, data: DataSizes | None) -> str:
    parts = [str(config.steps)]
    if data is not None:
        parts.append(f"{config.steps * config.batch_size / data.epoch:.3g} epochs")
    evaluations = f"every {config.eval.every}" if config.eval.every else "after the last one"
    return ", ".join([*parts, f"a checkpoint every {config.checkpoint.every}", f"an evaluation {evaluations}"])


def _data(config: ConfigDict, *, data: DataSizes | None) -> str:
    if data is None:
        return f"{config.data.train}; evaluated on {config.data.eval}"
    counts = " + ".join(map(str, data.train))
    epoch = "" if data.train == (data.epoch,) else f", {data.epoch} in an epoch"
    return f"{config.data.train} ({counts} examples{epoch}); evaluated on {config.data.eval} ({data.evaluated})"


def _trackers(config: ConfigDict) -> str:
    return "".join(f", {what} {config.log[field]}" for field, what in TRACKED if config.log[field])
