"""The scripts under launch/, run with a stand-in for Python that only records its command lines."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tiny import ROOT


def recorded(script: str, arguments: Sequence[str], *, directory: Path) -> str:
    """The command lines of Python that a launcher runs, one a line."""
    file, program = directory / "record", directory / "python3"
    program.write_text(f"""#!/bin/sh\nprintf '%s\\n' "python3 $*" >> '{file}'\n""")
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{directory}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["bash", ROOT / "launch" / script, *arguments], env=environment, capture_output=True)
    return file.read_text()
