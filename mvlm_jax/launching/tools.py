"""The programs of the providers, started from lists of words; a dry run prints what would be started and written."""

import contextlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from mvlm_jax.errors import RunError, UserError

WHERE_FROM = {
    "gcloud": "https://cloud.google.com/sdk/docs/install",
    "kubectl": "https://kubernetes.io/docs/tasks/tools",
    **dict.fromkeys(("sbatch", "squeue", "scancel"), "it is part of Slurm; run this on a login node of the cluster"),
    "tail": "it is part of every Unix system",
}


class Tools:
    """With `dry_run` nothing is started and nothing is written; every command and file is printed instead."""

    def __init__(self, *, dry_run: bool):
        self.dry_run = dry_run

    def require(self, name: str) -> None:
        """
        Raises:
          UserError: there is no such program.
        """
        if not self.dry_run and shutil.which(name) is None:
            raise UserError(f"the program {name} is needed and is not on PATH: {WHERE_FROM[name]}")

    def run(self, words: Sequence[str], *, text: str | None = None) -> None:
        """Starts a program and waits for it. Its output goes where ours goes.

        Args:
          text: for its standard input.

        Raises:
          RunError: it failed.
        """
        self._show(words, text)
        if self.dry_run:
            return
        self.require(words[0])
        _flush()
        status = subprocess.run(words, input=text, text=True).returncode
        if status:
            raise RunError(f"status {status} from: {shlex.join(words)}")

    def lines(self, words: Sequence[str]) -> list[str]:
        """What a program prints. Empty in a dry run.

        Raises:
          RunError: it failed.
        """
        self._show(words)
        if self.dry_run:
            return []
        self.require(words[0])
        _flush()
        done = subprocess.run(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
        if done.returncode:
            raise RunError(f"status {done.returncode} from: {shlex.join(words)}")
        return done.stdout.splitlines()

    def exists(self, listing: Sequence[str]) -> bool:
        """Whether a command that lists something prints a line. False in a dry run.

        To list tells what is not there from what cannot be asked for, which to describe does not.

        Raises:
          RunError: it failed, as where nobody is logged in.
        """
        return any(self.lines(listing))

    def refuse(self, listing: Sequence[str], *, what: str, delete: str) -> None:
        """
        Raises:
          UserError: something of this name is there already.
        """
        if self.exists(listing):
            raise UserError(f"{what} exists already; look at its status, or delete it with: {delete}")

    def create(
        self, words: Sequence[str], *, listing: Sequence[str], what: str, delete: str, text: str | None = None
    ) -> None:
        """Makes something that costs money.

        Args:
          listing: a command that prints a line where it is there.
          delete: the command that a user gives to delete it; named where it may have been left behind.

        Raises:
          RunError: the command failed.
        """
        try:
            self.run(words, text=text)
        except KeyboardInterrupt:
            print(f"mvlm launch: {what} may exist and cost money; delete it with: {delete}", file=sys.stderr)
            raise
        except RunError as error:
            try:
                there = "is there nevertheless and costs money" if self.exists(listing) else "is not there"
            except RunError:
                there = "may be there nevertheless and cost money"
            raise RunError(f"{error}; {what} {there}; to be sure that it is gone: {delete}") from error

    @contextlib.contextmanager
    def undoing(self, words: Sequence[str]) -> Iterator[None]:
        """Runs a command where the block fails.

        Raises:
          RunError: as the block does; it says so where the command failed too.
        """
        try:
            yield
        except (RunError, UserError) as error:
            try:
                self.run(words)
            except RunError as other:
                raise RunError(f"{error}; and undoing it failed with {other}") from error
            raise
        except KeyboardInterrupt:
            self.run(words)
            raise

    def file(self, path: Path, text: str) -> Path:
        """Writes a file that a command reads."""
        if self.dry_run:
            print(f"# {path}\n{text}")
        else:
            path.write_text(text)
        return path

    def _show(self, words: Sequence[str], text: str | None = None) -> None:
        if self.dry_run:
            print(shlex.join(words))
            if text is not None:
                print(f"# its standard input\n{text}")


def _flush() -> None:
    """What was printed before stands before what the program prints."""
    sys.stdout.flush()
    sys.stderr.flush()
