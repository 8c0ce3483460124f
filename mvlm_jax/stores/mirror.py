"""Local copies of what lies in a store: a program works on files, and the store is brought up to date.

What a run writes is small but for its checkpoints and the events for TensorBoard. So a folder of the store is copied to
a directory of this process, is read and written there as any directory, and each file that changed is written to the
store as one object. The store is what counts: the copy is removed when the process ends, and a killed run begins with a
new one.
"""

import atexit
import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from mvlm_jax.errors import RunError, UserError
from mvlm_jax.files import atomically, user_cache, user_path
from mvlm_jax.stores.objects import DRIVERS, Store, StoreError, is_address, parse

METRICS = "metrics.jsonl"  # is kept as objects of at most `PART_BYTES`, of which only the last one is written again
PARTS = "metrics"
PART_BYTES = 2**20
CHECKPOINTS = "checkpoints"  # are fetched and written by training/stored_steps.py
NOT_PUSHED = (CHECKPOINTS, "wandb")  # Weights & Biases has its own server
EVENTS = "tfevents"  # in the names of files that only TensorBoard reads
LAST = ("config.json",)  # shows that a folder is a run or an export, so that its other files are to be there
NEW_SECONDS = 60.0
PUSH_SECONDS = 10.0  # between two looks at what has changed

_mirrors: dict[Path, "Mirror"] = {}
_root: Path | None = None


class Mirror:
    """The copy of one folder."""

    failure: StoreError | None = None  # after which nothing more is written

    def __init__(self, address: str, directory: Path, *, reads: bool = True):
        """Nothing is copied yet.

        Args:
          reads: whether what is there is wanted; False: only what this process writes.
        """
        self.address = address
        self.reads = reads
        self.directory = directory
        self.store = Store(parse(address))
        self._fetched = False
        self._pushed: dict[str, bytes] = {}  # the digest of each object that is as it is here; empty: not known
        self._seen: dict[str, tuple[int, int, float]] = {}  # size and time of each file when it was pushed, and when
        self._writing = threading.Lock()
        directory.mkdir(parents=True, exist_ok=True)

    def fetch(self, *, again: bool = False) -> None:
        """Copies what is there, but for checkpoints and events; where the address is an object, that. Once, unless
        `again`.

        Raises:
          StoreError: it cannot be read.
        """
        if self._fetched and not again:
            return
        names, self._pushed = self.store.names(), {}
        if not names and (value := self._parent_object()) is not None:
            self.directory.rmdir()
            self.directory.write_bytes(value)
            self._fetched = True
            return
        if any(name.startswith(f"{CHECKPOINTS}/") for name in names):
            (self.directory / CHECKPOINTS).mkdir(exist_ok=True)
        wanted = [name for name in names if not name.startswith(f"{CHECKPOINTS}/") and EVENTS not in name]
        parts = []
        for name, value in self.store.read_all(wanted):
            if value is None:  # removed since it was listed
                continue
            self._pushed[name] = _digest(value)
            if name.startswith(f"{PARTS}/"):
                parts.append(value)
                continue
            file = self.directory / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomically(file) as temporary:
                temporary.write_bytes(value)
            self._seen[name] = _state(file)
        if parts:
            with atomically(self.directory / METRICS) as temporary:
                temporary.write_bytes(b"".join(parts))
            self._seen[METRICS] = _state(self.directory / METRICS)
        self._fetched = True

    def exists(self) -> bool:
        """Whether the store holds anything there."""
        return bool(self.store.names()) or self._parent_object() is not None

    def push(self, *, everything: bool = True) -> None:
        """Writes each file that has changed. A file is one object, so that a reader sees it whole or not at all.

        Args:
          everything: also large files that were written not long ago; each time they are written whole.

        Raises:
          StoreError: the store cannot be written to.
        """
        with self._writing:
            if self.failure is not None:
                raise self.failure
            changed = [file for file in self._files() if self._is_due(file, everything=everything)]
            for of_last in (False, True):
                self._push([file for file in changed if (file.name in LAST) == of_last])

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """While the block runs, what changes is pushed in the background, and at its end what is left.

        Raises:
          RunError: the store cannot be written to; see `check` too.
        """
        keeper = Keeper(self)
        try:
            yield
        except BaseException:
            keeper.end()
            with contextlib.suppress(OSError):  # the error that is being raised came first
                self.push()
            raise
        keeper.end()
        try:
            self.push()
        except StoreError as error:
            self.failure = error
        self.check()

    def check(self) -> None:
        """
        Raises:
          RunError: the store could not be written to in the background.
        """
        if self.failure is not None:
            raise RunError(
                f"{self.address} cannot be written to any more: {self.failure.strerror}; "
                "once that is mended, the same command continues from the last checkpoint"
            ) from self.failure

    def close(self, *, failed: bool = False) -> None:
        """Pushes what is left, and removes the copy.

        Args:
          failed: an error came first, so that one of this is of no interest.

        Raises:
          RunError: the store cannot be written to.
        """
        _mirrors.pop(self.directory, None)
        try:
            self.push()
        except OSError as error:
            if not failed:
                raise RunError(f"{self.address} cannot be written to: {error.strerror}") from error
        finally:
            _remove(self.directory)

    def _parent_object(self) -> bytes | None:
        folder, _, name = self.address.rpartition("/")
        if folder.count("/") < 3:
            return None
        found = Store(parse(folder)).read(name)
        return found.value if found else None

    def _files(self) -> Iterator[Path]:
        if self.directory.is_file():
            return
        for folder, folders, names in os.walk(self.directory):
            folders[:] = [name for name in folders if name[0] != "." and Path(folder, name) not in _mirrors]
            if Path(folder) == self.directory:
                folders[:] = [name for name in folders if name not in NOT_PUSHED]
            yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))

    def _is_due(self, file: Path, *, everything: bool) -> bool:
        size, changed, _ = _state(file)
        before = self._seen.get(self._name(file))
        if before is None or (size, changed) == before[:2]:
            return before is None
        return everything or time.monotonic() - before[2] >= PUSH_SECONDS * max(1.0, size / PART_BYTES)

    def _push(self, files: Iterable[Path]) -> None:
        contents: dict[str, Path | bytes] = {}
        states: dict[str, tuple[int, int, float]] = {}
        digests: dict[str, bytes] = {}
        for file in files:
            name = self._name(file)
            states[name] = _state(file)
            if name == METRICS:
                contents |= self._metrics(file.read_bytes())
            else:
                contents[name] = file
        if contents:
            self._pushed |= dict.fromkeys(contents, b"")
            self.store.write_all({name: partial(_content, name, it, digests) for name, it in contents.items()})
        # Only now: where a write failed, or a file is gone meanwhile, the next push makes up for all of them.
        self._pushed |= digests
        self._seen |= states

    def _metrics(self, log: bytes) -> dict[str, bytes]:
        """The parts that are not as they are in the store. Those behind the last one are removed from there."""
        parts = {f"{PARTS}/{number:06d}.jsonl": part for number, part in enumerate(parts_of(log))}
        surplus = [name for name in self._pushed if name.startswith(f"{PARTS}/") and name not in parts]
        for name in sorted(surplus, reverse=True):  # a kill leaves no gap
            self.store.delete([name])
            del self._pushed[name]
        return {name: part for name, part in parts.items() if self._pushed.get(name) != _digest(part)}

    def _name(self, file: Path) -> str:
        return file.relative_to(self.directory).as_posix()


class Keeper:
    """The thread that pushes a mirror every `PUSH_SECONDS`."""

    def __init__(self, mirror: Mirror):
        self._mirror = mirror
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="store")
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(PUSH_SECONDS):
            try:
                self._mirror.push(everything=False)
            except StoreError as error:
                self._mirror.failure = error
                return
            except OSError:  # a file that was replaced meanwhile; the next look finds it
                continue


def local_path(path: str | Path, *, name: str = "", as_file: bool = False) -> Path:
    """As `user_path`, and for an address in a store the place of its copy on this disk; copies nothing.

    Args:
      as_file: whether it is the address of a file, which is written and not read.

    Raises:
      UserError: as `user_path`, or an address that names nothing in a bucket.
    """
    if not is_address(path):
        return user_path(path, name=name)
    address = parse(str(path), name=name)
    directory = root() / address.scheme / address.bucket / address.path
    mirror = mirror_of(directory)
    if mirror is None or not (mirror.reads or as_file or mirror.directory == directory):
        folder = parse(str(address).rpartition("/")[0], name=name) if as_file else address
        place = root() / folder.scheme / folder.bucket / folder.path
        _mirrors[place] = Mirror(str(folder), place, reads=not as_file)
    return directory


def fetched(path: str | Path, *, name: str = "") -> Path:
    """As `local_path`; what is in the store is copied there, but for checkpoints. A copy of before is not renewed.

    Raises:
      UserError: as `local_path`.
      StoreError: the store cannot be read.
    """
    local = local_path(path, name=name)
    if (mirror := mirror_of(local)) is not None:
        mirror.fetch()
    return local


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[Path]:
    """The directory to work in, as `local_path`; for an address it is closed at the end, unless it was open before.

    Raises:
      UserError: as `local_path`.
      RunError: as `Mirror.close`.
    """
    known = set(_mirrors)
    local = local_path(path)
    try:
        yield local
    except BaseException:
        _close(set(_mirrors) - known if is_address(path) else (), failed=True)
        raise
    _close(set(_mirrors) - known if is_address(path) else (), failed=False)


def mirror_of(path: Path) -> Mirror | None:
    """That of a copy, or of what lies in it."""
    if _root is None or _root not in path.parents:
        return None
    return next((_mirrors[place] for place in (path, *path.parents) if place in _mirrors), None)


def shown(text: object) -> str:
    """A text in which copies are called by the addresses that they are of."""
    words = str(text)
    if _root is not None:
        for scheme in DRIVERS:
            words = words.replace(f"{_root}/{scheme}/", f"{scheme}://")
    return words


def close_all(*, failed: bool) -> None:
    """Closes every mirror.

    Raises:
      RunError: as `Mirror.close`; the others are closed all the same.
    """
    _close(list(_mirrors), failed=failed)


def _close(places: Iterable[Path], *, failed: bool) -> None:
    failure = None
    for place in places:
        try:
            _mirrors[place].close(failed=failed or failure is not None)
        except RunError as error:
            failure = error
    if failure is not None:
        raise failure


def cache_directory() -> Path:
    """Of the user, for what is kept between two starts."""
    try:
        directory = user_cache().absolute() / "stores"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return directory
    except (OSError, RuntimeError):  # no home that can be written to: a directory that no other user has made
        directory = Path(tempfile.gettempdir(), f"mvlm-jax-{os.getuid()}").absolute()
        directory.mkdir(mode=0o700, exist_ok=True)
        if directory.lstat().st_uid != os.getuid():
            raise UserError(f"{directory} belongs to another user; XDG_CACHE_HOME=DIR names another place") from None
        return directory


def root() -> Path:
    """The directory of this process's copies. Those that killed processes have left behind are removed."""
    global _root
    if _root is None:
        # A network file system locks no directory for other hosts, so each host looks after its own.
        cache = cache_directory() / socket.gethostname()
        cache.mkdir(mode=0o700, exist_ok=True)
        for left in cache.glob("copy-*"):
            with contextlib.suppress(OSError):
                # One that is new may not be held yet.
                if time.time() - left.stat().st_mtime > NEW_SECONDS:
                    _remove_left(left)
        directory = Path(tempfile.mkdtemp(prefix="copy-", dir=cache))
        held = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)  # while it is held, the process lives
        fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        _root = directory
        atexit.register(_remove_own, directory, os.getpid())
    return _root


def parts_of(log: bytes) -> list[bytes]:
    """A log cut behind lines, into parts of `PART_BYTES` or little more; a last line without an end is left out."""
    parts, start = [], 0
    while start < len(log):
        end = log.find(b"\n", start + PART_BYTES - 1)
        end = log.rfind(b"\n", start) if end < 0 else end
        if end < 0:
            break
        parts.append(log[start : end + 1])
        start = end + 1
    return parts


def _remove_own(directory: Path, process: int) -> None:
    if os.getpid() == process:  # and not one that was forked from it
        shutil.rmtree(directory, ignore_errors=True)


def _remove_left(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where its process lives
        shutil.rmtree(directory, ignore_errors=True)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _content(name: str, content: Path | bytes, digests: dict[str, bytes]) -> bytes:
    value = content if isinstance(content, bytes) else content.read_bytes()
    digests[name] = _digest(value)
    return value


def _digest(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=16).digest()


def _state(file: Path) -> tuple[int, int, float]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns, time.monotonic()
