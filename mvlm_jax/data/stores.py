"""Objects in a store, such as gs://bucket/key, read and written through fsspec.

fsspec finds the library of a store by the scheme of its URLs: gcsfs for gs://, s3fs for s3://. No
extra of this package has them.
"""

import bisect
import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import merge_offset_ranges

from mvlm_jax.data.paths import expand_braces
from mvlm_jax.errors import UserError
from mvlm_jax.files import REMOTE

BLOCK = 8 * 2**20  # bytes that a file is read ahead by, where it is read in order
THREADS = 16  # requests at once, where fsspec makes none at once itself
GAP, LARGEST = 128 * 2**10, 32 * 2**20  # bytes between two ranges that one request fetches, and of one request


class State(NamedTuple):
    """What tells one content of an object from another."""

    size: int  # bytes
    key: str


class Range(NamedTuple):
    """Bytes of an object."""

    url: str
    start: int
    size: int


def is_url(path: str) -> bool:
    return bool(REMOTE.match(path))


def matching(pattern: str) -> list[str]:
    """The URLs that a pattern with `{000..099}`, `{a,b}` or `*` stands for; without `*` whether they exist or not.

    Raises:
      UserError: nothing matches, or the store cannot be read.
    """
    urls: dict[str, None] = {}
    for alternative in expand_braces(pattern):
        if "*" not in alternative:
            urls[alternative] = None
            continue
        with _errors(alternative):
            filesystem, path = _opened(alternative)
            found = sorted(filesystem.glob(path))
            if not found:
                raise UserError(f"nothing matches {alternative!r}")
            urls.update(dict.fromkeys(map(filesystem.unstrip_protocol, found)))
    return list(urls)


def state(url: str) -> State:
    """
    Raises:
      UserError: there is no such object, or the store cannot be read.
    """
    with _errors(url):
        filesystem, path = _opened(url)
        size = filesystem.info(path)["size"]
        return State(int(size), hashlib.sha256(f"{size} {filesystem.ukey(path)}".encode()).hexdigest())


def states(urls: Sequence[str]) -> list[State]:
    """
    Raises:
      UserError: as `state`.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(state, urls))


def exists(url: str) -> bool:
    with _errors(url):
        filesystem, path = _opened(url)
        return filesystem.isfile(path)


def sizes(url: str) -> dict[str, int]:
    """Bytes of each object directly below a URL; empty where there is none."""
    with _errors(url):
        filesystem, path = _opened(url)
        filesystem.invalidate_cache()
        try:
            found = filesystem.ls(path, detail=True)
        except FileNotFoundError:
            return {}
        files = (info for info in found if info["type"] == "file")
        return {f"{url}/{info['name'].rpartition('/')[2]}": int(info["size"]) for info in files}


@contextlib.contextmanager
def opened(url: str) -> Iterator[tuple[Any, int]]:
    """A file object that reads ahead, and its size in bytes."""
    with _errors(url):
        filesystem, path = _opened(url)
        size = int(filesystem.info(path)["size"])
        with filesystem.open(path, "rb", block_size=BLOCK, cache_type="readahead") as file:
            yield file, size


def read(url: str) -> bytes:
    with _errors(url):
        filesystem, path = _opened(url)
        return filesystem.cat_file(path)


def read_all(urls: Sequence[str]) -> list[bytes]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(read, urls))


def read_ranges(ranges: Sequence[Range]) -> list[bytes]:
    """Bytes of objects, neighbours in one request, and as many requests at once as the store's library makes.

    What lies behind the end of an object is missing from its bytes.

    Raises:
      UserError: one of them cannot be read.
    """
    if not ranges:
        return []
    with _errors(ranges[0].url):
        filesystem, _ = _opened(ranges[0].url)
        requests = merged(ranges)
        paths = [filesystem._strip_protocol(each.url) for each in requests]
        ends = [each.start + each.size for each in requests]
        blocks = filesystem.cat_ranges(paths, [each.start for each in requests], ends, on_error="return")
    starts: dict[str, list[int]] = {}
    fetched: dict[str, list[bytes]] = {}
    for request, block in zip(requests, blocks, strict=True):
        if isinstance(block, Exception):
            with _errors(request.url):
                raise block
        starts.setdefault(request.url, []).append(request.start)
        fetched.setdefault(request.url, []).append(block)
    found = []
    for each in ranges:
        number = bisect.bisect_right(starts[each.url], each.start) - 1
        within = each.start - starts[each.url][number]
        found.append(fetched[each.url][number][within : within + each.size])
    return found


def merged(ranges: Sequence[Range]) -> list[Range]:
    """The requests that fetch all of these ranges: a little between two of them costs less than another request."""
    urls, starts, ends = merge_offset_ranges(
        [each.url for each in ranges],
        [each.start for each in ranges],
        [each.start + each.size for each in ranges],
        max_gap=GAP,
        max_block=LARGEST,
    )
    return [Range(url, start, end - start) for url, start, end in zip(urls, starts, ends)]


def write(url: str, data: bytes) -> None:
    """Replaces an object; a reader sees the old one or the new one."""
    with _errors(url):
        filesystem, path = _opened(url)
        _make_parent(filesystem, path)
        filesystem.pipe_file(path, data)


def upload(file: Path, url: str) -> None:
    """As `write`, from a local file."""
    with _errors(url):
        filesystem, path = _opened(url)
        _make_parent(filesystem, path)
        filesystem.put_file(str(file), path)


def remove(url: str) -> None:
    """Removes an object, or all below a URL, where there is any."""
    with _errors(url):
        filesystem, path = _opened(url)
        filesystem.invalidate_cache()
        if filesystem.exists(path):
            filesystem.rm(path, recursive=True)


def _opened(url: str) -> tuple[Any, str]:
    # fsspec keeps one file system for each thread of each process.
    return fsspec.core.url_to_fs(url)


def _make_parent(filesystem: Any, path: str) -> None:
    if isinstance(filesystem, LocalFileSystem):  # a store has no directories
        filesystem.makedirs(filesystem._parent(path), exist_ok=True)


@contextlib.contextmanager
def _errors(url: str) -> Iterator[None]:
    """
    Raises:
      UserError: instead of what the library of the store raises, which no class of exceptions is common to.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"there is no {url!r}") from error
    except ImportError as error:
        scheme = url.partition("://")[0]
        raise UserError(f"{url!r} is in a store that needs a library: {error} (for {scheme}://)") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{url!r} cannot be used: {reason}") from error
