"""Brings an index up to date with its folder."""

import hashlib
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import UInt8

from mvlm_jax.data.formats.listed import read_image
from mvlm_jax.data.images import AbsentImage, ImageSpec, UnusableImage
from mvlm_jax.data.processes import available_cpus
from mvlm_jax.evaluation.batching import index_batches
from mvlm_jax.inference import Inference, image_files
from mvlm_jax.search.index import DIGEST_BYTES, Entry, Index

RECENT = 2 * 10**9  # nanoseconds, within which a file system may give two contents the same time
SECONDS = 30.0  # between two writes of the index while images are embedded, at least
SHARE = 20  # and at least so many times as long as a write takes


class Updated(NamedTuple):
    """What an update found."""

    kept: int  # files that are as they were
    read: int  # files that were read, since they are new or changed
    embedded: int  # images among them whose content was not known
    removed: int  # files that are there no more
    left_out: dict[str, int]  # files that cannot be used, by reason


class _Read(NamedTuple):
    path: str
    entry: Entry  # without an embedding
    pixels: UInt8[np.ndarray, "S S 3"] | None  # None: the content is known, or no image


def update(index: Index, model: Inference, folder: Path, *, file: Path, rehash: bool = False) -> Updated:
    """Embeds what is new in the folder, forgets what is there no more, and writes the index.

    A file is taken for unchanged by its size and time; where one differs, by its content, so that a file that was moved
    or touched is not embedded again. What is embedded when the process is interrupted is kept.

    Args:
      file: that the index is written to.
      rehash: read every file, whatever its size and time.

    Raises:
      UserError: the folder, a disk or the file cannot be read or written.
    """
    paths = [str(path.relative_to(folder)) for path in image_files(folder)]
    removed = len(index.entries.keys() - set(paths))
    known, absent = {entry.digest: entry for entry in index.entries.values()}, Counter[str]()
    changed = [path for path in paths if rehash or not _unchanged(folder / path, index.entries.get(path))]
    index.entries = {path: index.entries[path] for path in paths if path in index.entries}
    embedded, writes = 0, _Writes(index, file)
    if changed:
        logging.info("reading %d of %d files in %s", len(changed), len(paths), folder)
    try:
        with ThreadPoolExecutor(available_cpus()) as pool:
            for indices in index_batches(len(changed), model.batch_size):
                batch = [changed[place] for place in indices.tolist()]
                results = list(pool.map(lambda path: _read(folder, path, known, model.reader.spec), batch))
                for path, result in zip(batch, results, strict=True):
                    if isinstance(result, str):
                        index.entries.pop(path, None)
                        absent[result] += 1
                read = [result for result in results if not isinstance(result, str)]
                pixels = [result.pixels for result in read if result.pixels is not None]
                embeddings = iter(model.encode_image(np.stack(pixels)).astype(np.float32) if pixels else ())
                for path, entry, shown in read:
                    entry = entry if shown is None else entry._replace(embedding=next(embeddings))
                    index.entries[path] = known[entry.digest] = entry
                embedded += len(pixels)
                writes.tick(done=int(indices[-1]) + 1, of=len(changed))
    finally:
        if changed or removed or not file.exists():
            index.write(file)
    reasons = Counter(entry.reason for entry in index.entries.values() if entry.reason) + absent
    return Updated(len(paths) - len(changed), len(changed), embedded, removed, dict(sorted(reasons.items())))


def _unchanged(path: Path, entry: Entry | None) -> bool:
    if entry is None:
        return False
    try:
        status = path.stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (entry.size, entry.modified)


def _read(folder: Path, path: str, known: dict[bytes, Entry], spec: ImageSpec) -> _Read | str:
    """The reason where the file cannot be read at all."""
    file = folder / path
    try:
        status = file.stat()
        content = read_image(file)
    except (AbsentImage, OSError):
        return "absent"
    recent = time.time_ns() - status.st_mtime_ns < RECENT
    digest = hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()
    entry = Entry(len(content), -1 if recent else status.st_mtime_ns, digest, None)
    if digest in known:
        return _Read(path, entry._replace(embedding=known[digest].embedding, reason=known[digest].reason), None)
    try:
        return _Read(path, entry, spec.unaugmented(content))
    except UnusableImage as error:
        return _Read(path, entry._replace(reason=error.reason), None)


class _Writes:
    """Writes an index now and then, and says how far it is."""

    def __init__(self, index: Index, file: Path) -> None:
        self._index, self._file, self._took, self._last = index, file, 0.0, time.monotonic()

    def tick(self, *, done: int, of: int) -> None:
        start = time.monotonic()
        if done == of or start - self._last < max(SECONDS, SHARE * self._took):
            return
        self._index.write(self._file)
        self._last = time.monotonic()
        self._took = self._last - start
        logging.info("%d of %d files are embedded", done, of)
