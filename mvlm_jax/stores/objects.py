"""The objects below an address in a store, as TensorStore reads and writes them.

TensorStore is what Orbax keeps checkpoints with. It finds the credentials that the provider's own tools use, tries
again what fails for a moment, and writes under a condition, which is all that a lock in a store can be made of.
"""

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from absl import logging

from mvlm_jax.errors import UserError

DRIVERS = {"gs": "gcs", "s3": "s3"}  # by the scheme of an address
ADDRESS = re.compile(rf"({'|'.join(DRIVERS)})://")
# About two minutes of trying.
RETRIES = {"max_retries": 9, "initial_delay": "500ms", "max_delay": "32s"}
AT_ONCE = 16  # requests that are under way, each with a content in memory
FEW = 4  # of them, where the contents are large
MISSING = b"\x02"  # the generation of an object that is not there
REASONS = {
    "PERMISSION_DENIED": "no permission",
    "UNAUTHENTICATED": "no valid credentials",
    "NOT_FOUND": "no such bucket",
    "UNAVAILABLE": "it cannot be reached",
    "ABORTED": "it cannot be reached",
    "DEADLINE_EXCEEDED": "it does not answer",
}


class StoreError(OSError):
    """A store that refuses, or cannot be reached any more after all tries; `strerror` is the reason in one line."""

    def __init__(self, reason: str, address: str):
        super().__init__(errno.EIO, reason, address)
        self.reason = reason


class Address(NamedTuple):
    """Of a folder or an object."""

    scheme: str
    bucket: str
    path: str  # without slashes at its ends

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.path}"


class Object(NamedTuple):
    """What is read of an object."""

    value: bytes
    generation: bytes  # another one after each write


def is_address(path: object) -> bool:
    """Whether a path is written as one in a store."""
    return ADDRESS.match(str(path)) is not None


def is_relative(name: str) -> bool:
    """Whether a name, which in a store may be anything, is that of a file below a directory."""
    return not {"", ".", ".."} & set(name.split("/")) and "\0" not in name


def parse(text: str, *, name: str = "") -> Address:
    """
    Args:
      name: of the flag or the field that gives it; for the error.

    Raises:
      UserError: it names no folder of a bucket.
    """
    scheme, _, rest = text.partition("://")
    bucket, _, path = rest.partition("/")
    parts = [part for part in path.split("/") if part]
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]+", bucket) or not parts or {".", ".."} & set(parts) or "\0" in path:
        given = f"{name}={text!r}" if name else text
        raise UserError(f"{given} names no folder in a bucket; it is written {scheme}://BUCKET/FOLDER")
    return Address(scheme, bucket, "/".join(parts))


class Store:
    """The objects below an address, by their path from there on. A write replaces an object whole, or not at all."""

    def __init__(self, address: Address):
        self.address = address
        self._kv: Any = None

    def names(self, below: str = "") -> list[str]:
        """Of the objects in a folder and the folders in it, sorted, but for those that could be no files below it."""
        kv = self._open()
        # 0 is the character behind /.
        keys = self._result(kv.list(kv.KeyRange(f"{below}/", f"{below}0") if below else None))
        # Some programs mark a folder by an object whose name ends so.
        names = sorted(key.decode() for key in keys if not key.endswith(b"/"))
        if strange := [name for name in names if not is_relative(name)]:
            logging.warning("%s: %r is no name of a file and is left alone", self.address, strange[0])
        return [name for name in names if is_relative(name)]

    def read(self, name: str) -> Object | None:
        """None where there is no such object."""
        result = self._do(lambda kv: kv.read(name))
        return Object(bytes(result.value), result.stamp.generation) if result.state == "value" else None

    def read_all(self, names: Iterable[str], *, at_once: int = AT_ONCE) -> Iterator[tuple[str, bytes | None]]:
        """Each name with its content, None where it is gone."""
        for name, result in self._each(names, lambda kv, name: kv.read(name), at_once=at_once):
            yield name, bytes(result.value) if result.state == "value" else None

    def write(self, name: str, value: bytes, *, if_generation: bytes | None = None) -> bytes:
        """Returns the new generation.

        Args:
          if_generation: the write is made only if it is that of the object; `MISSING`: only if there is none. Empty is
            returned where another one was found.
        """
        return self._do(lambda kv: kv.write(name, value, if_equal=if_generation)).generation

    def write_all(self, contents: Mapping[str, Callable[[], bytes]], *, at_once: int = AT_ONCE) -> None:
        """A content is read when its turn has come."""
        for _ in self._each(contents, lambda kv, name: kv.write(name, contents[name]()), at_once=at_once):
            pass

    def delete(self, names: Iterable[str]) -> None:
        for _ in self._each(names, lambda kv, name: kv.write(name, None)):
            pass

    def _each(
        self, names: Iterable[str], call: Callable[[Any, str], Any], *, at_once: int = AT_ONCE
    ) -> Iterator[tuple[str, Any]]:
        waiting: list[tuple[str, Any]] = []
        kv = self._open()
        for name in names:
            if len(waiting) == at_once:
                first, future = waiting.pop(0)
                yield first, self._result(future)
            waiting.append((name, call(kv, name)))
        for name, future in waiting:
            yield name, self._result(future)

    def _do(self, call: Callable[[Any], Any]) -> Any:
        return self._result(call(self._open()))

    def _open(self) -> Any:
        if self._kv is None:
            import tensorstore  # takes its time, and few need it

            self._kv = self._result(tensorstore.KvStore.open(_spec(self.address)))
        return self._kv

    def _result(self, future: Any) -> Any:
        try:
            return future.result()
        except Exception as error:  # the library raises ValueError for nearly everything
            raise StoreError(_reason(error), str(self.address)) from error


def _spec(address: Address) -> dict[str, Any]:
    driver = DRIVERS[address.scheme]
    spec: dict[str, Any] = {"driver": driver, "bucket": address.bucket, "path": f"{address.path}/"}
    spec["context"] = {f"{driver}_request_retries": RETRIES}
    if address.scheme == "s3":
        # The library follows the other variables of AWS by itself.
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        spec |= {"endpoint": endpoint} if endpoint else {}
        spec |= {"aws_region": region or "us-east-1"} if region or endpoint else {}
        if os.environ.get("AWS_ACCESS_KEY_ID"):
            # It would look for files first, and complain of each that is not there.
            spec["aws_credentials"] = {"type": "environment"}
    return spec


def _reason(error: Exception) -> str:
    words = " ".join(str(error).split()).partition(" [")[0]  # behind it is the answer as it came
    code = words.partition(":")[0]
    words = words if len(words) <= 200 else f"{words[:200]} …"
    return f"{REASONS[code]} ({words})" if code in REASONS else words
