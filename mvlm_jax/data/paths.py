"""The files of a collection: patterns and options in URIs, paths in lists, and those of another system."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from absl import logging

from mvlm_jax.errors import UserError
from mvlm_jax.files import REMOTE, user_path

WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")  # a drive or a host, as in C:\data and \\host\data
FROM_WINDOWS = "it is written as on Windows; write / for each backslash, and the mount point of a drive (/mnt/c) for C:"
PART = re.compile(r"(.*)-\d{5}-of-(\d{5})(.*)")


def local_path(path: str, *, name: str) -> Path:
    """As `user_path`, with a hint where it is a path of Windows.

    Raises:
      UserError: it is no local one.
    """
    local = user_path(path, name=name)
    if WINDOWS.match(path) and not local.exists():
        raise UserError(f"{name}={path!r} is not a local path; {FROM_WINDOWS}")
    return local


def listed_path(path: str, *, root: Path) -> Path:
    """Where the image is that a list names; relative paths begin at `root`, and `~/` is the home directory."""
    return root / (os.path.expanduser(path) if path.startswith("~/") else path)


def check_listed(path: str, *, root: Path) -> None:
    """
    Raises:
      UserError: a list names an address, or a file as it is called on Windows.
    """
    if "://" in path and REMOTE.match(path):
        raise UserError(f"{path!r} is a URL; fetch, copy or mount the images first and list their paths")
    if ("\\" in path or path[1:2] == ":") and _is_from_windows(path, root=root):
        raise UserError(f"{path!r} is not the path of an image here: {FROM_WINDOWS}")


def hint(path: str) -> str:
    """What an error about a path that does not exist should add; often empty."""
    return f"; {FROM_WINDOWS}" if "\\" in path or WINDOWS.match(path) else ""


def check_layout(directory: Path, *, dataset: str, parts: Sequence[str]) -> None:
    """
    Raises:
      UserError: a part of the layout that a collection is published in is missing.
    """
    if not directory.is_dir():
        raise UserError(f"--source={str(directory)!r} is not a directory; give the one that holds {', '.join(parts)}")
    missing = [name for name in parts if not (directory / name).exists()]
    if missing:
        raise UserError(f"--source={str(directory)!r} has no {' and no '.join(missing)}, which {dataset} is read from")


def matching(pattern: str) -> list[str]:
    """The files that a path stands for, each once: in the order of the braces `{000..099}` and `{a,b}`, sorted for each
    of `*`, `?`, `[…]` and `**`.

    What exists as it is written is meant as it is written, also where it holds such a character. A path without any
    is returned whether it exists or not.

    Raises:
      UserError: nothing matches, or braces of another form.
    """
    paths: dict[str, None] = {}
    prefix, rest = _existing_part(pattern)
    for alternative in expand_braces(rest):
        directory, magic = _existing_part(os.path.join(prefix, alternative)) if alternative else (prefix, "")
        path = os.path.join(directory, magic)
        if not glob.has_magic(magic):
            paths[path.rstrip("/") if magic == "" else path] = None
            continue
        files = sorted(glob.glob(os.path.join(glob.escape(directory), magic), recursive=True))
        if not files:
            raise UserError(f"no file matches {path!r}{hint(path)}")
        paths.update(dict.fromkeys(files))
    return list(paths)


def warn_of_missing_parts(files: Iterable[str | Path]) -> None:
    """Where names say that there are more files, as `train-00000-of-00005.parquet` does."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for file in files:
        if match := PART.fullmatch(str(file)):
            counts[match[1], match[2], match[3]] += 1
    for (stem, total, ending), count in counts.items():
        if count < int(total):
            logging.warning("%s-*-of-%s%s: %d of %d files are read", stem, total, ending, count, int(total))


def expand_braces(pattern: str) -> Iterator[str]:
    """`a{08..10}` as a08, a09, a10 and `{x,y}` as x, y; ranges keep their leading zeros.

    Raises:
      UserError: braces that are neither.
    """
    first = re.search(r"\{([^{}]*)\}", pattern)
    if first is None:
        yield pattern
        return
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", first[1])
    if bounds is None and "," not in first[1]:
        raise UserError(f"{first[0]} in {pattern!r} is neither a range such as {{000..099}} nor a list such as {{a,b}}")
    if bounds is None:
        middles = first[1].split(",")
    else:
        middles = [f"{i:0{len(bounds[1])}d}" for i in range(int(bounds[1]), int(bounds[2]) + 1)]
    for middle in middles:
        yield from expand_braces(pattern[: first.start()] + middle + pattern[first.end() :])


def split_query(rest: str) -> tuple[str, str]:
    """Path and options of a URI, divided at the first `?` that is no part of a name that exists."""
    if "?" not in rest:
        return rest, ""
    prefix, tail = _existing_part(os.path.expanduser(rest))
    ends = [len(tail), *reversed([match.start() for match in re.finditer(r"\?", tail)])]
    existing = (end for end in ends if "?" in tail[:end] and os.path.exists(os.path.join(prefix, tail[:end])))
    end = next(existing, len(tail.partition("?")[0]))
    return os.path.join(prefix, tail[:end]) if tail else prefix, tail[end + 1 :]


def _existing_part(pattern: str) -> tuple[str, str]:
    """The longest part, of whole names, that exists, and the rest."""
    names = pattern.split("/")
    for count in range(len(names), 0, -1):
        part = "/".join(names[:count])
        if os.path.lexists(part or "/"):
            return part or "/", "/".join(names[count:])
    return "", pattern


def _is_from_windows(path: str, *, root: Path) -> bool:
    if os.path.lexists(root / path):
        return False
    # A caption that slipped into the column of paths may hold a backslash, too.
    return bool(WINDOWS.match(path)) or os.path.lexists(root / path.replace("\\", "/"))
