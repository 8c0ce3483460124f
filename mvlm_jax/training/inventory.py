"""The processes of a run and their hosts: who they are, and what differs between them that must not."""

import collections
import json
import platform
import socket
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
from absl import logging

import mvlm_jax
from mvlm_jax.errors import UserError
from mvlm_jax.training import environment, key_value

NAMES = "host"  # the folder with the name of each host
SAME = {"JAX": "version", "mvlm-jax": "version", "code": "commit"}  # in all processes: what, and what is told of it


class Member(NamedTuple):
    """A process, as it tells the others at the start of a training run."""

    host: str
    devices: int
    kind: str  # of them
    examples: int  # of each batch that it reads
    workers: int | None  # processes that make batches; 0: threads; None: not known


def named(process: int, names: Sequence[str]) -> str:
    """`process 3 (host-3)`, or without the host where it has no name."""
    return f"process {process} ({names[process]})" if process < len(names) and names[process] else f"process {process}"


def name_of(process: int) -> str:
    """As `named`, by the name that the process has told."""
    host = key_value.read(NAMES, process)
    return f"process {process} ({host})" if host else f"process {process}"


def told_names() -> list[str]:
    """Of the hosts of all processes, empty where one has told none."""
    try:
        told = key_value.read_all(NAMES)
    except jax.errors.JaxRuntimeError:
        told = {}
    return [told.get(process, "") for process in range(jax.process_count())]


def installation() -> dict[str, str]:
    """What this process runs, by name; a commit only where the code is a git checkout."""
    commit = environment.commit_of(environment.CHECKOUT)
    return {
        "JAX": jax.__version__,
        "mvlm-jax": mvlm_jax.__version__,
        **({"code": commit} if commit else {}),
        "Python": platform.python_version(),
        **environment.versions([name for name in environment.LIBRARIES if name != "jax"]),
    }


def check_installations() -> None:
    """Tells the others the name of this host, and refuses processes that run other code.

    Other versions of libraries are a warning. Needs no device, which other versions may not be able to share.

    Raises:
      UserError: another JAX, another version or another commit; in every process.
    """
    host = socket.gethostname()
    key_value.put_own(NAMES, host)
    texts = map(json.loads, key_value.exchange(json.dumps([host, installation()])))
    names, installed = zip(*texts)
    for line in differences(installed, names=names):
        if key_value.own_process() == 0:
            logging.warning("%s", line)


def differences(installed: Sequence[Mapping[str, str]], *, names: Sequence[str]) -> list[str]:
    """A line for each library of which processes have other versions than process 0.

    Raises:
      UserError: as `check_installations`.
    """
    lines = []
    for what in installed[0]:
        first = installed[0][what]
        others = [p for p, own in enumerate(installed) if own.get(what, first) != first]
        if not others:
            continue
        value = installed[others[0]][what]
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        line = f"{named(others[0], names)}{more} has {what} {SAME.get(what, 'version')} {value}, "
        line += f"{named(0, names)} has {first}"
        if what in SAME:
            raise UserError(f"{line}; install the same on every host")
        lines.append(line)
    return lines


def gather(own: Member) -> list[Member]:
    """Of all processes, in order; each of them must call it."""
    if jax.process_count() == 1:
        return [own]
    return [Member(*json.loads(text)) for text in key_value.exchange(json.dumps(own))]


def describe(members: Sequence[Member]) -> list[str]:
    """Who they are and what all of them have; then a line for each process that has something else."""
    of_host: dict[str, list[int]] = {}
    for process, member in enumerate(members):
        of_host.setdefault(member.host, []).append(process)
    hosts = ", ".join(f"{host} ({_processes(processes)})" for host, processes in of_host.items())
    usual, _ = collections.Counter(member[1:] for member in members).most_common(1)[0]
    names = [member.host for member in members]
    return [
        f"hosts: {hosts}; each: {_has(usual)}",
        *(
            f"hosts: {named(process, names)} differs: {_has(member[1:])}"
            for process, member in enumerate(members)
            if member[1:] != usual
        ),
    ]


def _processes(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"process {numbers[0]}"
    if numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"processes {numbers[0]} to {numbers[-1]}"
    return f"processes {', '.join(map(str, numbers))}"


def _has(usual: tuple) -> str:
    devices, kind, examples, workers = usual
    makers = {None: "", 0: ", threads for the input"}.get(workers, f", {workers} input workers")
    return f"{devices} x {kind}, {examples} examples of a batch{makers}"
