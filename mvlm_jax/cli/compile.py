"""Compiles the training step for a TPU topology on a machine without one: does it fit, what does it cost, how long?

Example:
  mvlm compile --config=pretrain_4m --topology=v6e:4x4

Needs libtpu (pip install -e .[tpu]) but no TPU, no data and no workdir; the base model takes half an hour of one core
and 13 GB of memory. --fit looks for the largest batch a chip holds, and for the cheapest remat policy that holds it,
with about ten such compilations.
"""

from collections.abc import Sequence

from absl import flags

from mvlm_jax.aot.ahead import compile_step, fit, mesh_of
from mvlm_jax.aot.report import summary, table, what_to_change
from mvlm_jax.aot.topology import EXAMPLES, describe
from mvlm_jax.cli import commands
from mvlm_jax.training.mesh import batch_parts
from mvlm_jax.training.workdir import write_json


def define_flags(values: flags.FlagValues, argv: Sequence[str]) -> None:
    commands.define_config(values, argv)
    flags.DEFINE_string("topology", None, f"Family and size, such as {EXAMPLES}.", flag_values=values)
    flags.mark_flag_as_required("topology", flag_values=values)
    flags.DEFINE_integer(
        "slices",
        1,
        "Slices of this topology, joined by the data centre's network, for which no time is estimated.",
        flag_values=values,
    )
    commands.define_path(values, "json", "File to write the figures to.")
    flags.DEFINE_boolean("fit", False, "Find the largest batch and the cheapest remat policy.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    config = commands.checked_config(values)
    if values.json:
        commands.check_writable(values.json, flag="json")
    topology = describe(values.topology, slices=values.slices)
    if values.fit:
        asked = config
        config, step = fit(asked, topology.devices, capacity=topology.chip.hbm_bytes, report=print)
        # The run is of as many pairs as were asked for.
        config.steps = max(1, round(asked.steps * asked.batch_size / config.batch_size))
    else:
        step = compile_step(config, topology.devices)
    figures = summary(step, topology=topology, steps=config.steps)
    print(table(figures, step=step, topology=topology, config=config))
    if not figures["fits"]:
        print(f"to make it fit: {what_to_change(config, parts=batch_parts(mesh_of(config, topology.devices)))}")
    if values.json:
        write_json(values.json, figures)


def run(argv: Sequence[str]) -> int:
    return commands.run(name="compile", doc=__doc__, define_flags=define_flags, main=main, argv=argv)
