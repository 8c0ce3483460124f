"""What is known of a run once its step is compiled: whether it fits, what it costs, how long it takes."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mvlm_jax.aot import costs
from mvlm_jax.aot.ahead import REMAT, CompiledStep
from mvlm_jax.aot.hlo import Program
from mvlm_jax.aot.topology import Topology
from mvlm_jax.training.throughput import peak_flops


class Roofline(NamedTuple):
    """Seconds of a step on one chip at its peak figures: a lower bound of the real time."""

    matrix: float  # the matrix units alone
    memory: float  # HBM alone
    chip: float  # operation by operation, whichever of the two takes longer
    links: float  # communication, overlapped with nothing

    @property
    def step(self) -> float:
        return self.chip + self.links


def roofline(program: Program, topology: Topology) -> Roofline:
    flops, chip = peak_flops(topology.devices[0].device_kind), topology.chip
    assert flops is not None, "the table has every chip of topology.CHIPS"
    steps = costs.operations(program)
    return Roofline(
        matrix=sum(step.times * step.flops for step in steps) / flops,
        memory=sum(step.times * step.bytes for step in steps) / chip.hbm_bandwidth,
        chip=sum(step.times * max(step.flops / flops, step.bytes / chip.hbm_bandwidth) for step in steps),
        links=sum(collective.traffic for collective in costs.collectives(program)) / chip.ici_bandwidth,
    )


def summary(step: CompiledStep, *, topology: Topology, steps: int) -> dict[str, Any]:
    """The content of `--json`. Figures of a compiled program are None where the step does not fit.

    Times of a run on several slices are None too: the speed of the network between them is not known.
    """
    chips = len(topology.devices)
    program = step.program
    seconds = roofline(program, topology).step if program and topology.slices == 1 else None
    return {
        "chips": chips,
        "params": step.params,
        "hbm_bytes_per_chip": {
            "arguments": step.arguments,
            "temporaries": step.temporaries,
            "total": step.total,
            "capacity": topology.chip.hbm_bytes,
        },
        "model_flops_per_chip": step.task.flops_per_step / chips,
        "compiled_flops_per_chip": costs.matrix_flops(program) if program else None,
        "hbm_traffic_bytes_per_chip": costs.traffic_by_kind(program) if program else None,
        "collective_bytes_per_chip": costs.bytes_by_kind(costs.collectives(program)) if program else None,
        "step_seconds_estimate": seconds,
        "hours_estimate": None if seconds is None else seconds * steps / 3600,
        "fits": step.fits(topology.chip.hbm_bytes),
    }


def table(values: Mapping[str, Any], *, step: CompiledStep, topology: Topology, config: ConfigDict) -> str:
    rows = list(_rows(values, step=step, topology=topology, config=config))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def what_to_change(config: ConfigDict, *, parts: int) -> str:
    """Changes that free memory, the cheapest first, for a step that does not fit.

    Args:
      config: with every `auto` resolved.
    """
    changes = []
    smaller = REMAT[REMAT.index(config.model.remat) + 1 :]
    changes += [f"--config.model.remat={policy}" for policy in smaller]
    pairs, group = config.batch_size // parts, config.matching.group
    if pairs % group == 0 and pairs // group > config.accumulate:
        changes.append(f"--config.accumulate={pairs // group} (one matching group a chip and microbatch)")
    if pairs > config.accumulate * group:
        batch_size = parts * config.accumulate * group
        changes.append(f"--config.batch_size={batch_size} (one matching group a chip and microbatch)")
    changes.append("more parts of the parameters (--config.mesh.fsdp), more chips, or chips with more memory")
    return "; or ".join(changes) + "; --fit tries batches and remat policies"


def _rows(
    values: Mapping[str, Any], *, step: CompiledStep, topology: Topology, config: ConfigDict
) -> Iterator[tuple[str, str]]:
    chips, memory = values["chips"], values["hbm_bytes_per_chip"]
    yield "topology", f"{topology.name}, {chips} chips"
    yield "mesh", ", ".join(f"{axis} {size}" for axis, size in config.mesh.to_dict().items())
    yield "batch", f"{config.batch_size} pairs, {config.batch_size / chips:g} a chip; remat {config.model.remat}"
    alone = (
        "no" if step.own_rows else "yes, no chip holds whole matching groups of each microbatch (docs/launch/index.md)"
    )
    yield "features sent", alone
    yield "parameters", f"{values['params']:,}"
    for name in ("arguments", "temporaries", "total", "capacity"):
        yield f"HBM a chip, {name}", f"{memory[name] / 2**30:.2f} GiB"
    yield "model FLOPs a chip", f"{values['model_flops_per_chip']:.4g}"
    if step.program is not None:
        seconds = roofline(step.program, topology)
        compiled = values["compiled_flops_per_chip"]
        yield (
            "compiled FLOPs a chip",
            f"{compiled:.4g} ({compiled / values['model_flops_per_chip']:.3f} of the model's)",
        )
        for kind, size in values["hbm_traffic_bytes_per_chip"].items():
            milliseconds = 1000 * size / topology.chip.hbm_bandwidth
            yield f"HBM traffic, {kind}", f"{size / 2**30:.2f} GiB, {milliseconds:.1f} ms"
        for kind, size in values["collective_bytes_per_chip"].items():
            yield f"{kind} a chip", f"{size / 2**20:.1f} MiB"
        yield "step, matrix units alone", f"{1000 * seconds.matrix:.1f} ms"
        yield "step, HBM alone", f"{1000 * seconds.memory:.1f} ms"
        if topology.slices > 1:
            yield "step, links alone", f"{1000 * seconds.links:.1f} ms as if within one slice"
            yield "step, estimate", "none: the speed of the network between slices is not known"
        else:
            pairs = config.batch_size / seconds.step
            yield "step, links alone", f"{1000 * seconds.links:.1f} ms"
            yield "step, estimate", f"{1000 * seconds.step:.1f} ms, {pairs:.0f} pairs a second"
            yield "run, estimate", f"{values['hours_estimate']:.1f} hours for {config.steps} steps"
    yield "fits", "yes" if values["fits"] else "no"
