"""Compiles the training step for a TPU topology on a machine without one: whether it fits, its cost and its time.

Example:
  mvlm compile --config=pretrain_4m --topology=v6e:4x4

Needs libtpu (pip install 'mvlm-jax[tpu]') but no TPU, no data and no workdir; the base model takes half an hour of one
CPU and 13 GB of memory. --fit searches for the largest batch that a chip holds, and for the cheapest remat policy that
holds it; that takes about ten compilations.
"""

from collections.abc import Sequence

from absl import flags

from mvlm_jax.aot.ahead import compile_step, fit
from mvlm_jax.aot.report import summary, table, what_to_change
from mvlm_jax.aot.topology import EXAMPLES, describe
from mvlm_jax.cli import commands
from mvlm_jax.compile_time import compiling
from mvlm_jax.files import write_json
from mvlm_jax.tasks.model import resolve_compute
from mvlm_jax.training.mesh import batch_parts, make_mesh


def define_flags(values: flags.FlagValues, argv: Sequence[str]) -> None:
    commands.define_config(values, argv)
    flags.DEFINE_string("topology", None, f"Family and size, such as {EXAMPLES}.", flag_values=values)
    flags.mark_flag_as_required("topology", flag_values=values)
    flags.DEFINE_integer(
        "slices",
        1,
        "Slices of this topology, joined by the data centre's network; no time is estimated for more than one.",
        flag_values=values,
    )
    commands.define_path(values, "json", "File to write the figures to.")
    flags.DEFINE_boolean("fit", False, "Find the largest batch and the cheapest remat policy.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    config = commands.checked_config(values)
    if values.json:
        commands.check_writable(values.json, flag="json")
    topology = describe(values.topology, slices=values.slices)
    resolve_compute(config, backend=topology.devices[0].platform)  # the table names what `auto` stands for there
    if values.fit:
        asked = config
        config, step = fit(asked, topology.devices, capacity=topology.chip.hbm_bytes, report=print)
        # The run sees as many pairs as the config asked for.
        config.steps = max(1, round(asked.steps * asked.batch_size / config.batch_size))
    else:
        with compiling(f"the training step for {values.topology}"):
            step = compile_step(config, topology.devices)
    figures = summary(step, topology=topology, steps=config.steps)
    print(table(figures, step=step, topology=topology, config=config))
    if not figures["fits"]:
        mesh = make_mesh(**config.mesh, devices=topology.devices)
        print(f"to make it fit: {what_to_change(config, parts=batch_parts(mesh))}")
    if values.json:
        write_json(values.json, figures)


def run(argv: Sequence[str]) -> int:
    return commands.run(name="compile", doc=__doc__, define_flags=define_flags, main=main, argv=argv)
