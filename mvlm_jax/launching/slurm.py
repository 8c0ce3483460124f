"""A batch job of Slurm: CPUs or GPUs, in an environment or a container, queued again when it is interrupted."""

import glob
import re
import shlex
from pathlib import Path
from typing import Any

from absl import flags

from mvlm_jax.errors import UserError
from mvlm_jax.launching.gcloud import again, given
from mvlm_jax.launching.job import NOTICE_SECONDS, STOPPED, Job
from mvlm_jax.launching.tools import Tools

TOOL = "sbatch"


def define_flags(values: flags.FlagValues) -> None:
    text: Any = {"flag_values": values}
    flags.DEFINE_integer("nodes", 1, "How many machines.", lower_bound=1, **text)
    flags.DEFINE_integer("gpus", 8, "Of a machine, a process each; 0: one process a machine, on CPUs.", **text)
    flags.DEFINE_integer("cpus", 8, "For each process.", lower_bound=1, **text)
    flags.DEFINE_string("time", "24:00:00", "Limit after which the job is queued again, and goes on.", **text)
    flags.DEFINE_string("partition", None, "Partition.", **text)
    flags.DEFINE_string("account", None, "Account that pays.", **text)
    flags.DEFINE_string("qos", None, "Quality of service, such as a preemptible one.", **text)
    flags.DEFINE_string("image", None, "Container: with pyxis as enroot names it, with apptainer a .sif file.", **text)
    flags.DEFINE_enum("container", "pyxis", ["pyxis", "apptainer"], "What runs --image.", **text)
    flags.DEFINE_multi_string("mount", [], "Directory that the container sees too; may be repeated.", **text)
    flags.DEFINE_string("venv", ".venv", "Environment with the package, where there is no --image.", **text)
    flags.DEFINE_boolean("requeue", True, "Queue the job again when it is interrupted.", **text)
    flags.DEFINE_boolean("follow", False, "With logs: wait for more of them.", **text)


def create(tools: Tools, job: Job, options: flags.FlagValues) -> None:
    _check_name(job)
    if job.workdir.startswith("gs://"):
        raise UserError(f"--workdir={job.workdir} is not mounted by Slurm; give a directory that all nodes see")
    # Two jobs would write to one workdir.
    listing = ["squeue", "--me", f"--name={job.name}", "--noheader"]
    named = {"what": f"a job called {job.name}", "delete": again("slurm", "delete", job.name)}
    _check_mounts(job, options)
    tools.refuse(listing, **named)
    words = [
        "sbatch",
        f"--job-name={job.name}",
        f"--output={job.name}-%j.out",
        "--open-mode=append",  # a job that is queued again goes on in the same file
        f"--nodes={options.nodes}",
        f"--ntasks-per-node={options.gpus or 1}",
        f"--cpus-per-task={options.cpus}",
        *([f"--gpus-per-node={options.gpus}"] if options.gpus else []),
        f"--time={options.time}",
        f"--signal=TERM@{NOTICE_SECONDS}",
        "--requeue" if options.requeue else "--no-requeue",
        *given(partition=options.partition, account=options.account, qos=options.qos),
    ]
    tools.create(words, text=script(job, options), listing=listing, **named)
    print(f"status: {again('slurm', 'status', job.name)}\nlogs: {again('slurm', 'logs', job.name)}")


def script(job: Job, options: flags.FlagValues) -> str:
    """What Slurm runs on the first machine."""
    step = ["srun", "--kill-on-bad-exit=0", *_container(options), *_train(job, options)]
    lines = [
        "#!/usr/bin/env bash",
        "set -uo pipefail",
        # One process that fails tells the others. srun must not end them: a run that is stopped, by the time limit say,
        # leaves with 75 from one process after the other.
        shlex.join(step),
        "status=$?",
    ]
    if options.requeue:
        lines.append(f'[ "$status" -ne {STOPPED} ] || exec scontrol requeue "$SLURM_JOB_ID"')
    return "\n".join([*lines, 'exit "$status"', ""])


def status(tools: Tools, job: Job, options: flags.FlagValues) -> None:
    _check_name(job)
    tools.run(["squeue", "--me", f"--name={job.name}"])


def logs(tools: Tools, job: Job, options: flags.FlagValues) -> None:
    """Of the newest job of this name that was submitted from this directory."""
    _check_name(job)
    files = sorted(Path().glob(f"{glob.escape(job.name)}-*.out"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise UserError(f"no file {job.name}-*.out is here; jobs write to the directory that they were submitted from")
    tools.run(["tail", "-n", "200", *(["-F"] if options.follow else []), str(files[-1])])


def delete(tools: Tools, job: Job, options: flags.FlagValues) -> None:
    _check_name(job)
    tools.run(["scancel", "--me", f"--name={job.name}"])


VERBS = {"create": create, "status": status, "logs": logs, "delete": delete}


def _check_name(job: Job) -> None:
    # % stands for a number in --output, and a comma separates names.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", job.name):
        raise UserError(
            f"--name={job.name!r} must begin with a letter or digit and hold nothing but these, '.', '_' and '-'"
        )


def _train(job: Job, options: flags.FlagValues) -> list[str]:
    program = "mvlm" if options.image else f"{options.venv}/bin/mvlm"
    return [program, *job.train()]


def _container(options: flags.FlagValues) -> list[str]:
    if options.image is None:
        return []
    mounts = ",".join(f"{folder}:{folder}" for folder in options.mount)
    if options.container == "pyxis":
        return [f"--container-image={options.image}", *([f"--container-mounts={mounts}"] if mounts else [])]
    gpu = ["--nv"] if options.gpus else []
    return ["apptainer", "exec", *gpu, *([f"--bind={mounts}"] if mounts else []), options.image]


def _check_mounts(job: Job, options: flags.FlagValues) -> None:
    if options.mount and options.image is None:
        raise UserError("--mount is for the container of --image; without one every directory is seen")
    for folder in options.mount:
        if not re.fullmatch(r"/[^,:]*", folder):
            raise UserError(f"--mount={folder} must be an absolute path without commas and colons")
    if options.image is not None:
        job.check_image_recipe()
