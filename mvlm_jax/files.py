"""Single local files: the path that a user means, a JSON object read, a text written as a whole."""

import json
import os
import re
from pathlib import Path
from typing import Any

from mvlm_jax.errors import UserError

REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")  # at the start of an address


def user_path(path: str | Path, *, name: str = "") -> Path:
    """The local path that is meant: `~` or `~name` at its start stands for that home directory.

    A shell replaces it only where a word begins with it, so `--workdir=~/runs` reaches the program as it is written.

    Args:
      name: of the flag, the field, the option or the variable that gives the path; for the error.

    Raises:
      UserError: no such user, or the address of a bucket.
    """
    given = f"{name}={str(path)!r}" if name else str(path)
    if REMOTE.match(str(path)):
        raise UserError(f"{given} is not a local path; mount the bucket and give the path of the mount")
    expanded = os.path.expanduser(path)
    if str(path).startswith("~") and expanded == str(path):
        user = str(path).partition("/")[0]
        raise UserError(f"{given} begins with {user}, which is no home directory; write ./{path} if it is a name")
    return Path(expanded)


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file, with or without a byte-order mark.

    Raises:
      UserError: no such file, or it holds something else.
    """
    try:
        values = json.loads(file.read_bytes())  # of bytes, the library finds out the encoding
    except (OSError, ValueError) as error:
        raise UserError(f"{str(file)!r} cannot be read as JSON: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{str(file)!r} holds a {type(values).__name__}; a JSON object is needed")
    return values


def write_text(path: Path, text: str, *, errors: str = "strict") -> None:
    """Replaces a file in one move: a reader, or a crash, sees the old content or the new one.

    Args:
      errors: what becomes of a character that UTF-8 does not have, as `str.encode` takes it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", errors=errors) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
