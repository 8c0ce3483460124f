"""The scripts under launch/, run with programs that only write down what they are told."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tiny import ROOT

PROGRAMS = ("python3", "gcloud", "srun", "scontrol", "tar")
# Also the content of a script that is handed over to be run elsewhere.
PROGRAM = """#!/bin/sh
printf '%s\\n' "{name} $*" >> {told}
for word; do
  case $word in *startup-script=*) cat "${{word#*startup-script=}}" >> {told} ;; esac
done
"""


def told(script: str, arguments: Sequence[str], *, directory: Path) -> str:
    """What a launcher has told the programs, a line each."""
    file = directory / "told"
    for name in PROGRAMS:
        program = directory / name
        program.write_text(PROGRAM.format(name=name, told=file))
        program.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{directory}{os.pathsep}{os.environ['PATH']}",
        "RUNTIME": "tpu-ubuntu2204-base",
        "SLURM_SUBMIT_DIR": str(directory),
        "SLURM_JOB_ID": "7",
    }
    subprocess.run(["bash", ROOT / "launch" / script, *arguments], env=environment, capture_output=True)
    return file.read_text()
