"""The commands of `mvlm`, a module each. What is here imports none of them, so that `mvlm --help` answers at once."""

import importlib
import sys
from collections.abc import Sequence

from mvlm_jax import __version__

COMMANDS = ("train", "evaluate", "report", "search", "prepare", "weights", "compile", "launch")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that `argv` (without the program's name) begins with; its exit status. See also `__main__`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    usage = f"usage: mvlm {{{','.join(COMMANDS)}}} --flag=value …  (mvlm <command> --help shows an example)"
    if argv[:1] in (["--help"], ["-h"]):
        print(usage)
        return 0
    if argv[:1] == ["--version"]:
        print(f"mvlm {__version__}")
        return 0
    if not argv or argv[0] not in COMMANDS:
        received = f"{argv[0]!r} is not a command; " if argv else ""
        print(f"mvlm: {received}{usage}", file=sys.stderr)
        return 2
    return importlib.import_module(f"mvlm_jax.cli.{argv[0]}").run(argv[1:])
