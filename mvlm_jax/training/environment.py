"""What a run was computed with: code, versions, hardware and command, of each of its starts."""

import importlib.metadata
import json
import os
import platform
import re
import secrets
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

import mvlm_jax
from mvlm_jax.files import write_json

ENVIRONMENT = "environment.json"
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
CHECKOUT = Path(mvlm_jax.__file__).resolve().parents[1]


def record_start(directory: Path, *, step: int, mesh: Mesh, hosts: Sequence[str] = ()) -> dict[str, Any]:
    """Appends this start of the run to its environment.json, `{"run": identity, "starts": [...]}`, and returns all.

    Args:
      step: from which the run goes on; 0 in a new run.
      hosts: names of those of all processes; recorded where there are several processes.
    """
    record = read_environment(directory)
    names = {"hosts": list(hosts)} if len(hosts) > 1 else {}
    record["starts"].append(start(step=step, mesh=mesh) | names)
    write_json(directory / ENVIRONMENT, record)
    return record


def read_environment(directory: Path) -> dict[str, Any]:
    """What the starts so far have left; a new identity and no start where that is nothing."""
    try:
        record = json.loads((directory / ENVIRONMENT).read_bytes())
        if isinstance(record, dict) and isinstance(record.get("run"), str) and isinstance(record.get("starts"), list):
            return record
    except (OSError, ValueError):
        pass
    return {"run": secrets.token_hex(8), "starts": []}


def start(*, step: int, mesh: Mesh) -> dict[str, Any]:
    """This start. `commit` is there where the package is a git checkout; changes since the commit are not told."""
    device = mesh.devices.flat[0]
    commit = commit_of(CHECKOUT)
    return {
        "time": round(time.time(), 3),
        "step": step,
        "command": command_line(sys.argv),
        "version": mvlm_jax.__version__,
        **({"commit": commit} if commit else {}),
        "python": platform.python_version(),
        "packages": versions(LIBRARIES),
        "platform": platform.platform(),
        "device_kind": device.device_kind,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "processes": jax.process_count(),
        "host_cpus": os.cpu_count(),
    }


def command_line(argv: Sequence[str]) -> str:
    """The command as a shell takes it; the program by its name alone."""
    program = Path(argv[0]).name
    words = ["python", "-m", "mvlm_jax"] if program == "__main__.py" else [program]
    return shlex.join([*words, *argv[1:]])


def versions(distributions: Sequence[str]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit_of(checkout: Path) -> str | None:
    """The commit that is checked out, read from git's own files; None where the folder is no checkout."""
    try:
        git = checkout / ".git"
        if git.is_file():  # of a worktree or a submodule: "gitdir: PATH"
            git = checkout / git.read_text().removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text().strip()
        if head.startswith("ref:"):
            head = _commit_of_ref(git, head.removeprefix("ref:").strip())
    except OSError:
        return None
    return head if re.fullmatch(r"[0-9a-f]{40}([0-9a-f]{24})?", head) else None


def _commit_of_ref(git: Path, ref: str) -> str:
    """Empty where there is none. The branches of a worktree are in the repository that it belongs to."""
    common = git / "commondir"
    roots = (git, git / common.read_text().strip()) if common.exists() else (git,)
    for root in roots:
        if (root / ref).is_file():
            return (root / ref).read_text().strip()
        packed = root / "packed-refs"
        for line in packed.read_text().splitlines() if packed.exists() else ():
            if line.endswith(f" {ref}"):
                return line.split()[0]
    return ""
