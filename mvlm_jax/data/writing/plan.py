"""What a dataset will consist of, known before any image is read: which examples go to which file, and from what."""

import dataclasses
import json
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mvlm_jax.data import stores
from mvlm_jax.data.collection import Codec, Collection
from mvlm_jax.data.examples import Source
from mvlm_jax.data.writing.place import Place
from mvlm_jax.data.writing.shards import ImageChecks, sha256
from mvlm_jax.errors import UserError

SMALLEST_SHARD, MOST_SHARDS = 512, 256  # examples in a shard; shards of a split
HOLDS_IMAGES = re.compile(r"\.(tar|array_record)\b")  # names of files that hold the images themselves


class Shard(NamedTuple):
    """Some consecutive examples of a split, and the name of the file they go to."""

    split: str
    indices: range
    file: str


@dataclasses.dataclass(frozen=True)
class Job:
    """What writing a shard needs beside the shard: the same bytes come of it in any process, on any machine."""

    splits: Mapping[str, Source]
    codec: Codec
    checks: ImageChecks
    place: Place
    plan: Mapping[str, Any]

    def write(self, shard: Shard) -> None:
        """Writes a shard, and the report that marks it as finished.

        Raises:
          UserError: the source cannot be read, or another command writes the place by another plan.
          OSError, RuntimeError: the place cannot be written.
        """
        if self.place.plan() != self.plan:  # the command that started this one was killed, and another has started over
            raise UserError(f"{self.place.name} is written by another mvlm prepare now")
        source = self.splits[shard.split]
        self.place.write_shard(shard.file, source, shard.indices, codec=self.codec, checks=self.checks)


# Writes all of some shards, and yields each when it is finished.
Engine = Callable[[Sequence[Shard], Job], Generator[Shard, None, None]]


def origin_of(collection: Collection, *, checks: ImageChecks) -> dict[str, Any]:
    """What the files that are written depend on.

    Raises:
      UserError: a list cannot be read.
    """
    urls = [file for file in collection.files if isinstance(file, str)]
    states = dict(zip(urls, stores.states(urls)))
    files: dict[str, list[int | str]] = {}
    for file in collection.files:
        if isinstance(file, str):
            files[file] = list(states[file])
        else:
            files[str(file.absolute())] = _stamp(file)
    return {"source": collection.source, "checks": dataclasses.asdict(checks), "files": files}


def plan_of(collection: Collection, *, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Two plans are equal where the same shards come of them. JSON holds a plan as it is."""
    sizes = {split: len(source) for split, source in collection.splits.items()}
    return json.loads(json.dumps({**origin, "splits": sizes}))


def difference(planned: Mapping[str, Any], seen: Mapping[str, Any]) -> str:
    """The first thing in which two plans differ, in words; empty: they are equal."""
    for field, value in planned.items():
        here = seen.get(field)
        if here == value:
            continue
        if not isinstance(value, dict) or not isinstance(here, dict):
            return f"{field} is {here!r} and not {value!r}"
        name = next(name for name in [*value, *here] if here.get(name) != value.get(name))
        return f"{field} has {name} as {here.get(name)!r} and not {value.get(name)!r}"
    return ""


def shards_of(collection: Collection, *, name: str) -> list[Shard]:
    shards = []
    for split, source in collection.splits.items():
        size = max(SMALLEST_SHARD, -(-len(source) // MOST_SHARDS))
        starts = range(0, max(1, len(source)), size)
        for number, start in enumerate(starts):
            file = f"{name}-{split}.array_record-{number:05d}-of-{len(starts):05d}"
            shards.append(Shard(split, range(start, min(start + size, len(source))), file))
    return shards


def _stamp(file: Path) -> list[int | str]:
    """Size and digest of a list; of a file with images, which takes long to read, size and time of modification."""
    try:
        status = file.stat()
        return [status.st_size, status.st_mtime_ns if HOLDS_IMAGES.search(file.name) else sha256(file)]
    except OSError as error:
        raise UserError(f"{str(file)!r} cannot be read: {error.strerror}") from error
