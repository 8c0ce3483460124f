"""Trains a model, or continues an interrupted run; the workdir holds everything that comes of it.

Example:
  mvlm train --config=demo --workdir=runs/demo --config.steps=200
"""

import functools
import signal
from collections.abc import Sequence

import jax
from absl import flags, logging

from mvlm_jax import signals
from mvlm_jax.cli import commands, next_commands
from mvlm_jax.report.illustration import illustration
from mvlm_jax.tasks.registry import open_task
from mvlm_jax.training import hosts
from mvlm_jax.training import workdir as workdir_lib
from mvlm_jax.training.loop import train


def define_flags(values: flags.FlagValues, argv: Sequence[str]) -> None:
    commands.define_config(values, argv)
    commands.define_workdir(values, made=True)
    commands.define_hosts(values)
    flags.DEFINE_integer(
        "stopped_status",
        0,
        "Exit status of a run that a signal stopped, such as 75 for a scheduler to tell it from a finished one.",
        lower_bound=0,
        upper_bound=255,
        flag_values=values,
    )


def main(values: flags.FlagValues, argv: Sequence[str]) -> int:
    if values["stopped_status"].present:
        signals.set_status(signal.SIGTERM, values.stopped_status)
    commands.connect(values)
    config = commands.checked_config(values)
    with hosts.together():
        # Before a tokenizer is trained, which may take long.
        workdir_lib.check_workdir(values.workdir, config=config)
    commands.use_compilation_cache(config)
    task = open_task(config, workdir=values.workdir)
    outcome = train(task, config=config, workdir=values.workdir, illustrate=illustration(task))
    if jax.process_index() == 0:
        for line in next_commands.closing_lines(
            outcome, headline=task.headline, config=config, workdir=values.workdir, argv=argv
        ):
            logging.info("%s", line)
    return values.stopped_status if outcome.stopped else 0


def run(argv: Sequence[str]) -> int:
    # Nothing to clean up: every file of a run is replaced atomically.
    return commands.run(
        name="train",
        doc=__doc__,
        define_flags=define_flags,
        main=functools.partial(main, argv=argv),
        argv=argv,
        cleans_up=False,
    )
