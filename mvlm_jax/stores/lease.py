"""A lock in a store, where no kernel releases the lock of a process that has ended: a lease that must be renewed."""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import logging

from mvlm_jax.errors import UserError
from mvlm_jax.lock import in_use
from mvlm_jax.stores.mirror import Mirror
from mvlm_jax.stores.objects import MISSING, Object, StoreError

NAME = "lock.json"
LEASE_SECONDS = 60.0  # after which a lease that was not renewed is void
RENEW_SECONDS = 15.0


@contextlib.contextmanager
def only_one(mirror: Mirror, *, command: str) -> Iterator[None]:
    """Holds `lock.json` in the store while the block runs.

    The object is written under the condition that nobody has written it since it was read. A process that was killed on
    this machine is recognised; for one on another machine its lease has to run out, which is waited for. No clocks are
    compared.

    A process that is stopped for longer than its lease, and goes on then, learns that it has lost the lock when it next
    renews it; `Mirror.check` tells it. What it writes before that, it writes beside the new holder.

    Raises:
      UserError: another process holds it; says which one, and on which host.
      StoreError: the store cannot be read or written.
    """
    lease = _Lease(mirror, command=command)
    lease.take()
    ended = threading.Event()
    thread = threading.Thread(target=lease.renew, args=(ended,), daemon=True, name="lease")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        lease.give_back()


class _Lease:
    def __init__(self, mirror: Mirror, *, command: str):
        self._mirror, self._store, self._command = mirror, mirror.store, command
        self._owner = _here() | {"process": os.getpid(), "started": _started(os.getpid()), "id": secrets.token_hex(8)}
        self._renewals = 0
        self._generation = b""

    def take(self) -> None:
        found = self._store.read(NAME)
        if found is not None and not _is_over(_holder(found)):
            logging.info(
                "%s is held by %s; waiting %g s to see whether that one has ended",
                self._mirror.address, _named(_holder(found)), LEASE_SECONDS,
            )  # fmt: skip
            found = self._waited(found)
        if not self._write(MISSING if found is None else found.generation):
            found = self._store.read(NAME)
            if not self._adopted(found):
                raise self._in_use(found)

    def renew(self, ended: threading.Event) -> None:
        last = time.monotonic()
        while not ended.wait(RENEW_SECONDS):
            try:
                if not self._write(self._generation):
                    found = self._store.read(NAME)
                    if not self._adopted(found):
                        other = _named(_holder(found)) if found else "another process"
                        self._lost(f"{other} has taken the lock from this one")
                        return
                last = time.monotonic()
            except StoreError as error:
                if time.monotonic() - last > LEASE_SECONDS:
                    self._lost(error.reason)
                    return

    def give_back(self) -> None:
        with contextlib.suppress(StoreError):
            found = self._store.read(NAME)
            if found is not None and _holder(found).get("id") == self._owner["id"]:
                self._store.delete([NAME])

    def _waited(self, found: Object) -> Object | None:
        """What is there at last: nothing, or a lease that was not renewed while it ran."""
        deadline = time.monotonic() + LEASE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(min(2.0, LEASE_SECONDS / 10))
            now = self._store.read(NAME)
            if now is None:
                return None
            if now.value != found.value:
                raise self._in_use(now)
        return found

    def _write(self, generation: bytes) -> bool:
        self._renewals += 1
        value = json.dumps(self._owner | {"renewals": self._renewals}).encode()
        self._generation = self._store.write(NAME, value, if_generation=generation)
        return bool(self._generation)

    def _adopted(self, found: Object | None) -> bool:
        """Whether what was refused had been written: the answer was lost, and the library tried again."""
        if found is None or _holder(found).get("id") != self._owner["id"]:
            return False
        self._generation = found.generation
        return True

    def _in_use(self, found: Object | None) -> UserError:
        holder = _named(_holder(found)) if found else ""
        return in_use(self._mirror.address, command=self._command, holder=holder)

    def _lost(self, reason: str) -> None:
        self._mirror.failure = StoreError(reason, self._mirror.address)


def _holder(found: Object) -> dict[str, Any]:
    try:
        holder = json.loads(found.value)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _named(holder: dict[str, Any]) -> str:
    return f"process {holder.get('process', 'of unknown number')} on {holder.get('host', 'an unknown host')}"


def _is_over(holder: dict[str, Any]) -> bool:
    """Whether it was a process of this machine that no longer runs."""
    here, process = _here(), holder.get("process")
    if any(holder.get(name) != value for name, value in here.items()) or not isinstance(process, int):
        return False
    return _started(process) != holder.get("started")


def _here() -> dict[str, str]:
    """What says that a process number means the same process: machine, start of the machine, and its container."""
    boot, container = "", ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        container = os.readlink("/proc/self/ns/pid")
    return {"host": socket.gethostname(), "boot": boot, "container": container}


def _started(process: int) -> str:
    """When it was started, in ticks since the machine was; empty: there is no such process, or it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
