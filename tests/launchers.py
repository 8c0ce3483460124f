"""The scripts under launch/, run with stand-in programs that only record their command lines."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tiny import ROOT

PROGRAMS = ("python3", "gcloud", "srun", "scontrol", "tar")
# Records also a startup script that is to be run elsewhere.
PROGRAM = """#!/bin/sh
printf '%s\\n' "{name} $*" >> {record}
for word; do
  case $word in *startup-script=*) cat "${{word#*startup-script=}}" >> {record} ;; esac
done
"""


def recorded(script: str, arguments: Sequence[str], *, directory: Path) -> str:
    """The command lines that a launcher runs, one a line."""
    file = directory / "record"
    for name in PROGRAMS:
        program = directory / name
        program.write_text(PROGRAM.format(name=name, record=file))
        program.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{directory}{os.pathsep}{os.environ['PATH']}",
        "RUNTIME": "tpu-ubuntu2204-base",
        "SLURM_SUBMIT_DIR": str(directory),
        "SLURM_JOB_ID": "7",
    }
    subprocess.run(["bash", ROOT / "launch" / script, *arguments], env=environment, capture_output=True)
    return file.read_text()
