"""Writes a run as one page, DIR/report.html: how good it is, what it does with examples, its curves, configuration and
data, where it came from, and what to do next. The page needs no other file and no network.

Example:
  mvlm report --workdir=runs/demo

With --compare two runs stand side by side, in DIR/comparison.html:

  mvlm report --workdir=runs/demo --compare=runs/other
"""

from collections.abc import Sequence

from absl import flags

from mvlm_jax import config as config_lib
from mvlm_jax.cli import commands
from mvlm_jax.errors import UserError
from mvlm_jax.report.comparison import COMPARISON, write_comparison
from mvlm_jax.report.run import read_run
from mvlm_jax.report.run_page import EXAMPLES, REPORT, write_report
from mvlm_jax.stores.mirror import shown
from mvlm_jax.tasks import registry
from mvlm_jax.training import workdir as workdir_lib


def _main(values: flags.FlagValues) -> None:
    config = values.config
    registry.validate(config)
    trained = workdir_lib.read_config(values.workdir)
    changed = config_lib.differences(trained, config, changeable=config_lib.CHANGEABLE_IN_EVALUATION)
    if changed:
        raise UserError(f"{values.workdir} is the workdir of another config: {changed}; leave these fields out")
    if values.output:
        commands.check_writable(values.output, flag="output")
    run = read_run(values.workdir.absolute(), config=config)
    other = None
    if values.compare:
        if values.step is not None:
            raise UserError("--step is not used with --compare, which takes the last checkpoint of each run")
        if values.compare.resolve() == values.workdir.resolve():
            raise UserError(f"--compare={values.compare} is the run itself; give the directory of another one")
        other = read_run(values.compare.absolute())
        # A relative path in its config may mean something else here.
        other.config.data.data_dir = config.data.data_dir
    commands.use_compilation_cache(config)
    if other is None:
        file = write_report(run, count=values.examples, step=values.step, output=values.output)
        print(f"report: {shown(file)}")
    else:
        file = write_comparison((run, other), count=values.examples, output=values.output)
        print(f"comparison: {shown(file)}")


def _define_flags(values: flags.FlagValues, argv: Sequence[str]) -> None:
    commands.define_run_config(values, argv)
    commands.define_workdir(values)
    commands.define_path(
        values, "compare", "Directory of another run, to be put beside this one.", takes=[commands.FOLDER]
    )
    commands.define_path(
        values, "output", f"File to write; {REPORT} or {COMPARISON} in the workdir by default.", takes=[commands.FILE]
    )
    flags.DEFINE_integer(
        "examples",
        EXAMPLES,
        "Examples of each kind that the model of the last checkpoint is tried on; 0: none, and no model is loaded.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_integer("step", None, "Checkpoint that makes the examples; the latest by default.", flag_values=values)


def run(argv: Sequence[str]) -> int:
    return commands.run(name="report", doc=__doc__, define_flags=_define_flags, main=_main, argv=argv)
