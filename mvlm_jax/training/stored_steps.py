"""The checkpoints of a run in a store: written on this machine first, then copied there."""

import itertools
import json
import shutil
import threading
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from absl import logging

from mvlm_jax.errors import RunError
from mvlm_jax.stores.mirror import CHECKPOINTS, Mirror
from mvlm_jax.stores.objects import FEW, StoreError, is_relative

# The object that shows that a step is whole: it is written last and deleted first, and says how long each file is.
MARKER = "uploaded.json"
# Is written first and deleted last: what has it and no marker was left by a kill. A step with neither was copied to the
# store from a disk by other means.
BEGUN = "uploading.json"


class Incomplete(Exception):
    """A step of which the store lacks something."""


class StoredSteps:
    """The steps below `checkpoints/` of a folder in a store, and copies of some of them on this machine.

    A store has no rename, so that a folder is whole when an object in it says so. One process of a run writes, and the
    others keep count.
    """

    def __init__(self, mirror: Mirror, directory: Path, *, writes: bool):
        """
        Args:
          directory: of the copies.
          writes: whether this process writes steps; half-written ones of a killed run are then removed.

        Raises:
          StoreError: the store cannot be read or written.
        """
        self._mirror, self._store, self._directory, self._writes = mirror, mirror.store, directory, writes
        self._coming: set[int] = set()  # the step that the process that writes is copying
        self._fetched: set[str] = set()
        self._files: dict[int, dict[str, int | None]] = {}  # the length of each file by its path; None: not known
        found: dict[int, list[str]] = {}
        for name in self._store.names(CHECKPOINTS):
            _, folder, *file = name.split("/", 2)
            if folder.isdecimal() and file:
                found.setdefault(int(folder), []).append(file[0])
        self._steps = sorted(step for step, files in found.items() if MARKER in files or BEGUN not in files)
        for step, files in found.items():
            if MARKER not in files and BEGUN not in files:
                self._files[step] = dict.fromkeys(files)
            elif MARKER not in files and writes:
                self._remove(step)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._job: Future[None] | None = None
        self._no_more = threading.Event()  # nothing more is written on this machine

    def steps(self) -> list[int]:
        return list(self._steps)

    def fetch(self, step: int, items: Collection[str]) -> None:
        """Copies these items of a step to this machine, where they are not there yet.

        Raises:
          Incomplete: the store lacks a file, or holds another one.
          RunError: the store cannot be read, or nothing can be written here.
        """
        try:
            files = self._files_of(step)
            wanted = [name for name in files if "/" not in name or name.split("/")[0] in items]
            keys = {f"{CHECKPOINTS}/{step}/{name}": name for name in wanted}
            absent = [key for key in keys if key not in self._fetched]
            for key, value in self._store.read_all(absent, at_once=FEW):
                name, length = keys[key], files[keys[key]]
                if value is None or length not in (None, len(value)):
                    received = "is not there" if value is None else f"has {len(value)} bytes, not {length}"
                    raise Incomplete(f"{self._mirror.address}/{key} {received}")
                file = self._directory / str(step) / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(value)
                self._fetched.add(key)
        except StoreError as error:
            raise RunError(f"{self._mirror.address}/{CHECKPOINTS} cannot be read: {error.strerror}") from error
        except OSError as error:  # of this machine, which says nothing about the checkpoint
            raise RunError(
                f"{self._mirror.address}/{CHECKPOINTS} cannot be copied to {self._directory}: {error.strerror}"
            ) from error

    def forget(self, step: int) -> None:
        """Removes the copy of a step from this machine."""
        shutil.rmtree(self._directory / str(step), ignore_errors=True)
        self._fetched = {key for key in self._fetched if not key.startswith(f"{CHECKPOINTS}/{step}/")}

    def publish(self, step: int, *, keep_last: int, keep_every: int) -> None:
        """Copies a step to the store in the background, once it is whole on this machine, and deletes older ones there.

        The one before must be published, in the process that writes: see `wait`.
        """
        if not self._writes:
            self._steps, self._coming = sorted({*self._steps, *self._coming}), {step}
            return

        def publish() -> None:
            folder = self._directory / str(step)
            while not folder.is_dir():
                if self._no_more.wait(0.02) and not folder.is_dir():
                    return  # it could not be written here
            self._mirror.push()  # the log up to this step; without it a run that resumes here would have a gap
            self._upload(step, folder)
            kept = self._steps[-keep_last:] + [each for each in self._steps if keep_every and each % keep_every == 0]
            for old in sorted(set(self._steps) - set(kept)):
                self.delete(old)

        self._job = self._worker.submit(publish)

    def check(self) -> None:
        """
        Raises:
          RunError: a step could not be copied, or the lock is lost.
        """
        self._mirror.check()
        if self._job is not None and self._job.done():
            self.wait()

    def wait(self) -> None:
        """Until the last step is in the store.

        Raises:
          RunError: it could not be copied.
        """
        job, self._job = self._job, None
        if job is None:
            return
        try:
            job.result()
        except OSError as error:
            last = f"the last whole one is of step {self._steps[-1]}" if self._steps else "there is no whole one"
            raise RunError(
                f"a checkpoint cannot be written to {self._mirror.address}/{CHECKPOINTS}: {error.strerror}; {last}"
            ) from error

    def close(self) -> None:
        """Once nothing more is written on this machine: a step that is whole here is still copied, and others are not.

        Raises:
          RunError: it could not be copied.
        """
        self._no_more.set()
        try:
            self.wait()
        finally:
            self._worker.shutdown()

    def delete(self, step: int) -> None:
        self._steps.remove(step)
        self._files.pop(step, None)
        self._remove(step)

    def _remove(self, step: int) -> None:
        names = self._store.names(f"{CHECKPOINTS}/{step}")
        marks = [f"{CHECKPOINTS}/{step}/{mark}" for mark in (MARKER, BEGUN)]
        if names and not set(marks) & set(names):  # copied there by other means; half of it would seem whole
            self._store.write(marks[1], b"{}")
            names.append(marks[1])
        for some in ([marks[0]], sorted(set(names) - set(marks)), [marks[1]]):
            self._store.delete(name for name in some if name in names)

    def move_aside(self, step: int) -> None:
        """Copies what there is of a step to `damaged.<step>.<number>`, and deletes it.

        A process that does not write forgets the step.
        """
        if not self._writes:
            self._steps.remove(step)
            self._files.pop(step, None)
            self.forget(step)
            return
        names = self._store.names(f"{CHECKPOINTS}/{step}")
        aside = next(
            place
            for place in (f"{CHECKPOINTS}/damaged.{step}.{count}" for count in itertools.count(1))
            if not self._store.names(place)
        )
        old = f"{CHECKPOINTS}/{step}/"
        for name, value in self._store.read_all(names, at_once=FEW):
            if value is not None:
                self._store.write(f"{aside}/{name.removeprefix(old)}", value)
        self.delete(step)
        self.forget(step)
        logging.warning("it is now %s/%s; the run stores step %d again when it gets there",
                        self._mirror.address, aside, step)  # fmt: skip

    def _files_of(self, step: int) -> dict[str, int | None]:
        if step not in self._files:
            name = f"{CHECKPOINTS}/{step}/{MARKER}"
            marker = self._store.read(name)
            try:
                files = dict(json.loads(marker.value if marker else b"")["files"])
            except (ValueError, KeyError, TypeError) as error:
                raise Incomplete(f"{self._mirror.address}/{name} cannot be read") from error
            if not all(map(is_relative, files)):
                raise Incomplete(f"{self._mirror.address}/{name} names what is no file of the step")
            self._files[step] = files
        return self._files[step]

    def _upload(self, step: int, folder: Path) -> None:
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        self._files[step] = {name: path.stat().st_size for name, path in files.items()}
        self._store.write(f"{CHECKPOINTS}/{step}/{BEGUN}", b"{}")
        contents = {f"{CHECKPOINTS}/{step}/{name}": path.read_bytes for name, path in files.items()}
        self._store.write_all(contents, at_once=FEW)
        if self._mirror.failure is not None:  # the lock is lost: this is no longer our run
            raise self._mirror.failure
        self._store.write(f"{CHECKPOINTS}/{step}/{MARKER}", json.dumps({"files": self._files[step]}).encode())
        self._steps = sorted({*self._steps, step})
