"""What the platforms that are driven by gcloud have in common."""

import re
import shlex
from collections.abc import Sequence
from typing import Any

from absl import flags

from mvlm_jax.errors import UserError


def define_project(values: flags.FlagValues) -> None:
    flags.DEFINE_string("project", None, "Project; default: that of gcloud config.", flag_values=values)


def define_machines(values: flags.FlagValues) -> None:
    """What may be said of machines wherever they are bought."""
    text: Any = {"flag_values": values}
    flags.DEFINE_boolean("spot", False, "Cheaper machines, which may be taken away at any time.", **text)
    flags.DEFINE_string("reservation", None, "Name of the reservation whose machines are used.", **text)
    flags.DEFINE_string("network", None, "Network; default: that of the project.", **text)
    flags.DEFINE_string("subnetwork", None, "Subnetwork.", **text)
    flags.DEFINE_string("service_account", None, "E-mail of the account that the machines work as.", **text)


def check_machines(options: flags.FlagValues) -> None:
    """
    Raises:
      UserError: two ways to pay at once.
    """
    if options.spot and options.reservation:
        raise UserError("--spot and --reservation exclude each other: machines are spare ones or reserved ones")


def gcloud(options: flags.FlagValues, *words: str) -> list[str]:
    """The words of a gcloud command in the project of the user."""
    return ["gcloud", *words, *given(project=options.project)]


def given(**values: str | None) -> list[str]:
    """`--name=value` for each value that is given."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value is not None]


def again(platform: str, verb: str, name: str, **values: str | None) -> str:
    """The `mvlm launch` command that a user may give next."""
    words: Sequence[str] = ["mvlm", "launch", platform, verb, f"--name={name}"]
    return shlex.join([*words, *(f"--{flag}={value}" for flag, value in values.items() if value is not None)])


def seconds(options: flags.FlagValues) -> int:
    """That a run may take."""
    return round(options.hours * 3600)


def chips(topology: str) -> int:
    """How many chips a slice of this topology has.

    Raises:
      UserError: it is no topology.
    """
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", topology):
        raise UserError(f"--topology={topology} must be like 4x4 or 2x2x2")
    product = 1
    for side in topology.split("x"):
        product *= int(side)
    return product
