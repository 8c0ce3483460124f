"""Paths as users write them."""

import os
from pathlib import Path

from mvlm_jax.errors import UserError


def user_path(path: str | Path) -> Path:
    """The local path that is meant: `~` or `~name` at its start stands for that home directory.

    A shell replaces it only where a word begins with it, so `--workdir=~/runs` reaches the program as it is written.

    Raises:
      UserError: no such user, or the address of a bucket.
    """
    if "://" in str(path):
        raise UserError(f"{path} is not a local path; mount the bucket and give the path of the mount")
    expanded = os.path.expanduser(path)
    if str(path).startswith("~") and expanded == str(path):
        name = str(path).partition("/")[0]
        raise UserError(f"{path} begins with {name}, which is no home directory; write ./{path} if it is a name")
    return Path(expanded)
