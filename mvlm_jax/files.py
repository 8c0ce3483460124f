"""Local files: the path that a user means, JSON, and files and folders that appear whole or not at all."""

import contextlib
import json
import math
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mvlm_jax.errors import UserError

REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")  # at the start of an address
NO_LOCAL_PATH = "copy the files first, or mount the bucket and give the path of the mount; see docs/object_stores.md"
HUB = "hf:"  # at the start of a name on the Hugging Face Hub; see interop/hub.py


def user_path(path: str | Path, *, name: str = "") -> Path:
    """The local path that is meant: `~` or `~name` at its start stands for that home directory.

    A shell replaces it only where a word begins with it, so `--workdir=~/runs` reaches the program as it is written.

    Args:
      name: of the flag, the field, the option or the variable that gives the path; for the error.

    Raises:
      UserError: no such user, the address of a bucket, or a name on the Hugging Face Hub.
    """
    given = f"{name}={str(path)!r}" if name else str(path)
    if REMOTE.match(str(path)):
        raise UserError(f"{given} is not a local path; {NO_LOCAL_PATH}")
    if str(path).startswith(HUB):
        raise UserError(
            f"{given} is a name on the Hugging Face Hub, from which only weights and their tokenizers are read; "
            f"give a local path, which for a file of that name is ./{path}"
        )
    expanded = os.path.expanduser(path)
    if str(path).startswith("~") and expanded == str(path):
        user = str(path).partition("/")[0]
        raise UserError(f"{given} begins with {user}, which is no home directory; write ./{path} if it is a name")
    return Path(expanded)


def user_cache() -> Path:
    """The user's cache of this program, by the XDG Base Directory Specification, which has a relative path ignored.

    Raises:
      RuntimeError: there is no home directory.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    caches = Path(given) if os.path.isabs(given) else Path("~/.cache").expanduser()
    return caches / "mvlm-jax"


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file, with or without a byte-order mark.

    Raises:
      UserError: no such file, or it holds something else.
    """
    try:
        values = json.loads(file.read_bytes())  # given bytes, the library detects the encoding
    except (OSError, ValueError) as error:
        raise UserError(f"{str(file)!r} cannot be read as JSON: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{str(file)!r} holds a {type(values).__name__}; a JSON object is needed")
    return values


@contextlib.contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write a file or a folder to, and renames it to `path` when the block is done.

    A reader, or a crash, sees the old content or the new one. Where the block fails, what it wrote is removed. A killed
    process leaves a `.*.tmp` behind.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, errors: str = "strict") -> None:
    """Replaces a file atomically.

    Args:
      errors: how a character that UTF-8 cannot encode is handled, as in `str.encode`.
    """
    with atomically(path) as temporary, temporary.open("w", encoding="utf-8", errors=errors) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, values: Any) -> None:
    """Indented JSON, written atomically. Makes the directory. Numbers that are not finite become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(plain(values), indent=2, allow_nan=False) + "\n")


def plain(values: Any) -> Any:
    """Python values that JSON can hold, from nested ones of NumPy or JAX."""
    if isinstance(values, dict):
        return {str(name): plain(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [plain(value) for value in values]
    if isinstance(values, np.generic) or hasattr(values, "tolist"):
        return plain(np.asarray(values).tolist())
    if isinstance(values, float) and not math.isfinite(values):
        return None
    return values
