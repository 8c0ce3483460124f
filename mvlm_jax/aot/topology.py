"""TPU topologies by name, described by libtpu on a machine without a TPU."""

import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from mvlm_jax.errors import UserError

GIB = 2**30
EXAMPLES = "v4:2x2x4, v5e:4x4, v5p:4x4x4, v6e:16x16"


class Chip(NamedTuple):
    """Public figures of one chip: https://cloud.google.com/tpu/docs/v4, …/v5e, …/v5p and …/v6e.

    The peak of its matrix units is in `training.throughput`, which needs it as well.
    """

    hbm_bytes: int  # that a program may use, as libtpu reports it; a little less than in the data sheet
    hbm_bandwidth: float  # bytes a second
    ici_bandwidth: float  # bytes a second out of a chip, all its links together
    options: dict[str, Any]  # of libtpu; without one it sees a v4 chip as two devices


CHIPS = {
    "v4": Chip(int(30.75 * GIB), 1200e9, 300e9, {"chip_config_name": "megacore"}),
    "v5e": Chip(int(15.75 * GIB), 819e9, 200e9, {}),
    "v5p": Chip(int(95.74 * GIB), 2765e9, 600e9, {}),
    "v6e": Chip(int(31.25 * GIB), 1640e9, 448e9, {}),
}


class Topology(NamedTuple):
    name: str
    chip: Chip
    devices: Sequence[Any]  # one for each chip; programs can be compiled for them, but not run
    slices: int = 1


def describe(name: str, *, slices: int = 1) -> Topology:
    """The topology `family:AxB[xC]`, `slices` times over the data centre's network.

    Raises:
      UserError: libtpu is not installed, or knows no such topology.
    """
    family, _, size = name.partition(":")
    if family not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", size):
        raise UserError(f"--topology={name} is not one of {', '.join(CHIPS)} with a size; examples: {EXAMPLES}")
    if slices < 1:
        raise UserError(f"--slices={slices} must be at least 1")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("compiling for a TPU needs its compiler, libtpu: pip install 'mvlm-jax[tpu]'")
    chip = CHIPS[family]
    options: dict[str, Any] = {}
    if all(int(side) == 1 for side in size.split("x")):
        options["chips_per_host_bounds"] = (1, 1, 1)
    if slices > 1:
        options["num_slices"] = slices
    _set_environment()
    try:
        described = topologies.get_topology_desc(name, platform="tpu", **chip.options, **options)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].rpartition(": ")[2]
        raise UserError(f"--topology={name} is unknown to libtpu ({reason}); examples: {EXAMPLES}") from error
    return Topology(name if slices == 1 else f"{slices} x {name}", chip, described.devices, slices)


def _set_environment() -> None:
    # JAX must not use an accelerator of this machine.
    jax.config.update("jax_platforms", "cpu")
    # libtpu reads these when JAX loads it, at the first request for a TPU. Without them it queries the network for the
    # TPU of this machine, warns that there is none, and refuses a second process.
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(name, value)
