"""The training step, compiled for devices that this machine does not have."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mvlm_jax.aot.hlo import Program, read
from mvlm_jax.config import REMAT
from mvlm_jax.errors import UserError
from mvlm_jax.models.compute import check_attention
from mvlm_jax.tasks.model import compute_of, resolve_compute
from mvlm_jax.tasks.registry import describe_task, task_type
from mvlm_jax.training.mesh import batch_parts, make_mesh
from mvlm_jax.training.per_device import has_own_rows
from mvlm_jax.training.program import Program as TrainingProgram
from mvlm_jax.training.program import make_program
from mvlm_jax.training.task import Task

# With this many groups a chip its matrix units are busy: a larger batch gains nothing.
MOST_GROUPS = 64
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class DescribedStep(NamedTuple):
    """A step as shapes and shardings."""

    task: Task
    mesh: Mesh
    program: TrainingProgram
    batch: dict[str, jax.ShapeDtypeStruct]

    @property
    def arguments(self) -> int:
        """Bytes of the state and the batch on one chip."""
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves((self.program.state, self.batch))
        )


class CompiledStep(NamedTuple):
    """Bytes are of one chip. `program` is None where the compiler found no room for it."""

    task: Task
    params: int
    arguments: int  # the state and the batch
    temporaries: int
    own_rows: bool  # whether each chip computes its own rows alone, see `training.per_device`
    program: Program | None

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries

    def fits(self, capacity: int) -> bool:
        return self.program is not None and self.total <= capacity


def describe_step(config: ConfigDict, devices: Sequence[Any]) -> DescribedStep:
    """The step that `training.loop` runs, with every `auto` resolved for these devices, not for this machine.

    Raises:
      UserError: the config does not fit the number of devices, or asks for a kernel that they do not have.
    """
    config = config.copy_and_resolve_references()
    resolve_compute(config, backend=devices[0].platform)
    check_attention(compute_of(config), platform=devices[0].platform)
    task = describe_task(config)
    mesh = make_mesh(**config.mesh, devices=devices)
    program = make_program(task=task, config=config, mesh=mesh)
    batch = {
        name: jax.ShapeDtypeStruct(rows.shape, rows.dtype, sharding=program.batch_sharding)
        for name, rows in task.batch_shapes.items()
    }
    return DescribedStep(task, mesh, program, batch)


def compile_step(config: ConfigDict, devices: Sequence[Any]) -> CompiledStep:
    """Compiles the step; makes no array and reads no data.

    Raises:
      UserError: the config does not fit the number of devices.
    """
    described = describe_step(config, devices)
    task, program = described.task, described.program
    multiple = config.accumulate * task.objective.group
    own_rows = has_own_rows(config.batch_size, mesh=described.mesh, multiple=multiple)
    params = sum(leaf.size for leaf in jax.tree.leaves(program.state.params))
    with jax.set_mesh(described.mesh):
        lowered = program.step.lower(program.state, described.batch)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        wanted = wanted_memory(str(error), arguments=described.arguments)
        if wanted is None:
            raise
        return CompiledStep(task, params, described.arguments, wanted, own_rows, program=None)
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None and text is not None, "the compilers of every supported platform report both"
    # The program itself takes memory, and so do outputs that are not written over an argument.
    temporaries = memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    temporaries += memory.output_size_in_bytes - memory.alias_size_in_bytes
    arguments = memory.argument_size_in_bytes
    return CompiledStep(task, params, arguments, temporaries, own_rows, program=read(text))


def fit(
    config: ConfigDict, devices: Sequence[Any], *, capacity: int, report: Callable[[str], None]
) -> tuple[ConfigDict, CompiledStep]:
    """The config with the largest batch, and for it the cheapest remat policy, that these devices hold.

    Args:
      capacity: bytes of memory that a program may use on each of them.

    Raises:
      UserError: not even one matching group on each of them fits in each microbatch.
    """
    parts = batch_parts(make_mesh(**config.mesh, devices=devices))
    group = config.accumulate * task_type(config).group(config)
    tried: dict[tuple[int, str], tuple[ConfigDict, CompiledStep]] = {}

    def fits(pairs: int, policy: str) -> bool:
        candidate = config.copy_and_resolve_references()
        candidate.batch_size, candidate.model.remat = pairs * parts, policy
        step = compile_step(candidate, devices)
        tried[pairs, policy] = candidate, step
        fitting = step.fits(capacity)
        report(f"{pairs} pairs a chip, remat {policy}: {'fits' if fitting else 'does not fit'}")
        return fitting

    largest = largest_fit(fits, group=group)
    if largest is None:
        raise UserError(
            f"not even {group} pairs a chip, one matching group in each microbatch, fit with config.model.remat=full; "
            f"set config.mesh.fsdp above {config.mesh.fsdp}, or choose chips with more memory"
        )
    return tried[largest]


def largest_fit(fits: Callable[[int, str], bool], *, group: int) -> tuple[int, str] | None:
    """(pairs a chip, remat policy), the pairs a multiple of `group`; None where not even one group fits.

    `fits(pairs, policy)` compiles for minutes, so it is called seldom: about 2 log2(n) + 5 times for n groups, at most
    15 times. A policy that fits is assumed to fit with fewer pairs too, and to fit wherever a cheaper policy does.
    """
    best, too_many = 0, 1
    while too_many <= MOST_GROUPS and fits(too_many * group, REMAT[-1]):
        best, too_many = too_many, 2 * too_many
    if best == 0:
        return None
    while best < MOST_GROUPS and too_many - best > 1:
        middle = (best + too_many) // 2
        if fits(middle * group, REMAT[-1]):
            best = middle
        else:
            too_many = middle
    pairs = best * group
    return pairs, next((policy for policy in REMAT[:-1] if fits(pairs, policy)), REMAT[-1])


def wanted_memory(message: str, *, arguments: int) -> int | None:
    """Bytes of temporaries that did not fit in HBM, from libtpu's message; None for any other message."""
    number = r"([\d.]+)([KMGT]?)"
    match = re.search(rf"memory required for HLO temporaries \({number}\) exceeds", message)
    if match:
        return int(float(match[1]) * _UNITS[match[2]])
    match = re.search(rf"memory space hbm\. Used {number} of", message)
    return max(0, int(float(match[1]) * _UNITS[match[2]]) - arguments) if match else None
