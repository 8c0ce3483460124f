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


def main(values: flags.FlagValues) -> None:
    doors.connect(values)
    config = doors.checked_config(values)
    train(make_task(config, workdir=values.workdir), config=config, workdir=values.workdir)


def door(argv: Sequence[str]) -> int:
    return doors.run(name="train", doc=__doc__, define_flags=define_flags, main=main, argv=argv)


if __name__ == "__main__":
    sys.exit(door(sys.argv[1:]))
