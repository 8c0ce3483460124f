"""Trains a model, or continues an interrupted run; the workdir holds everything that comes of it.

Example:
  mvlm train --config=configs/demo.py --workdir=runs/demo --config.steps=200
"""

import sys
from collections.abc import Sequence

from absl import flags

from mvlm_jax import doors
from mvlm_jax.tasks.from_config import make_task
from mvlm_jax.training.loop import train


def define_flags(values: flags.FlagValues, argv: Sequence[str]) -> None:
    doors.define_config(values, argv)
    doors.define_workdir(values)
    doors.define_hosts(values)
    flags.DEFINE_integer(
        "stopped_status",
        0,
        "Exit status of a run that a signal stopped, such as 75 for a scheduler to tell it from a finished one.",
        lower_bound=0,
        upper_bound=255,
        flag_values=values,
    )


def main(values: flags.FlagValues) -> int:
    doors.connect(values)
    config = doors.checked_config(values)
    outcome = train(make_task(config, workdir=values.workdir), config=config, workdir=values.workdir)
    return values.stopped_status if outcome.stopped else 0


def door(argv: Sequence[str]) -> int:
    return doors.run(name="train", doc=__doc__, define_flags=define_flags, main=main, argv=argv)


if __name__ == "__main__":
    sys.exit(door(sys.argv[1:]))
