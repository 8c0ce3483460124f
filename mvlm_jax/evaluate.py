"""Evaluates a checkpoint of a run on the whole of `config.data.eval` and writes DIR/eval/<task>-<split>.json.

Example:
  mvlm evaluate --config=configs/demo.py --workdir=runs/demo --config.data.eval=tfds:shapes:test
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from mvlm_jax import config as config_lib
from mvlm_jax import doors
from mvlm_jax.errors import UserError
from mvlm_jax.tasks.from_config import make_task
from mvlm_jax.training import hosts
from mvlm_jax.training import workdir as workdir_lib
from mvlm_jax.training.checkpoints import Checkpoints
from mvlm_jax.training.mesh import make_mesh
from mvlm_jax.training.program import make_program


def define_flags(values: flags.FlagValues, argv: Sequence[str]) -> None:
    doors.define_config(values, argv)
    doors.define_workdir(values)
    doors.define_hosts(values)
    flags.DEFINE_integer("step", None, "Checkpoint to evaluate; the latest by default.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    doors.connect(values)
    config = doors.checked_config(values)
    directory = Path(values.workdir)
    with hosts.together():
        trained = workdir_lib.read_config(directory)
        changed = config_lib.differences(trained, config, changeable=config_lib.CHANGEABLE_IN_EVALUATION)
        if changed:
            raise UserError(f"{directory} is the workdir of another config: {changed}; give the values of its training")
    task = make_task(config, workdir=directory)
    mesh = make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp, tensor=config.mesh.tensor)
    program = make_program(task=task, config=config, mesh=mesh)
    with jax.set_mesh(mesh), Checkpoints.for_reading(directory / workdir_lib.CHECKPOINTS) as checkpoints:
        if values.step is not None:
            step, params = values.step, checkpoints.restore_params(values.step, program.state.params)
        elif latest := checkpoints.restore_latest_params(program.state.params):
            step, params = latest
        else:
            raise UserError(f"{directory} has no finished checkpoint; train it first")
        results = task.evaluate(params)
    if jax.process_index() == 0:
        workdir_lib.write_evaluations(directory, results, step=step)
        print(json.dumps({stem: {"step": step, **metrics} for stem, metrics in results.items()}))


def door(argv: Sequence[str]) -> int:
    return doors.run(name="evaluate", doc=__doc__, define_flags=define_flags, main=main, argv=argv)


if __name__ == "__main__":
    sys.exit(door(sys.argv[1:]))
