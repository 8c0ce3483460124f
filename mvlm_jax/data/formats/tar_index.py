"""Where the examples of a tar file lie: found by reading the headers of all its members once, and kept in a file.

Members of one example share the part of their name before the first dot, as img2dataset writes them.
"""

import contextlib
import hashlib
import json
import os
import random
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from absl import logging
from jaxtyping import Int64

from mvlm_jax.data import stores
from mvlm_jax.data.formats.annotations import captions_in
from mvlm_jax.data.formats.listed import utf8
from mvlm_jax.data.formats.texts import compression_of, decoded
from mvlm_jax.data.images import IMAGE_ENDINGS
from mvlm_jax.data.paths import hint
from mvlm_jax.data.skipped import Skipped
from mvlm_jax.errors import UserError
from mvlm_jax.files import atomically

MEMBERS = ("image", "txt", "json")  # columns of the index, each (offset, bytes); (0, 0): not there
BLOCK = tarfile.BLOCKSIZE  # bytes; the size of a header, and what all offsets in a tar file are multiples of
CHUNK = 2**20  # bytes that are read at a time
VERSION = 1  # of the files that keep an index


class TarIndex(NamedTuple):
    """Where the examples of a tar file lie, in its order."""

    keys: pa.Array
    members: Int64[np.ndarray, "E M 2"]  # (offset, bytes) of each of MEMBERS
    left_out: Skipped
    captions: pa.Array | None = None  # lists of text; null where they cannot be read; None: not read yet


def read_indices(urls: Sequence[str], *, kept_in: str) -> list[TarIndex]:
    """The indices of objects in a store, with captions; those that are not kept yet are made and kept.

    Each of these objects is read once as a whole. Several processes that begin at the same time share the work.

    Args:
      kept_in: a directory or URL.

    Raises:
      UserError: as `read_index`, or the store cannot be read.
    """
    states = stores.states(urls)
    kept = {url: f"{kept_in}/{_name(url, state)}" for url, state in zip(urls, states, strict=True)}
    with ThreadPoolExecutor(stores.THREADS) as pool:
        found = zip(kept, pool.map(_kept, kept.values()))
        indices = {url: index for url, index in found if index is not None}
    missing = [url for url in kept if url not in indices]
    if missing:
        size = sum(state.size for url, state in zip(urls, states) if url not in indices)
        logging.info("reading %d tar files (%d MB) once for their index, kept in %s", len(missing), size >> 20, kept_in)
        # In another order in each process, so that what one has made the others find.
        random.SystemRandom().shuffle(missing)

        def made(url: str) -> TarIndex:
            index = _kept(kept[url])
            if index is None:
                with stores.opened(url) as (stream, size):
                    index = _read(stream, size=size, name=url, with_captions=True)
                _keep(index, kept[url])
            return index

        with ThreadPoolExecutor(stores.THREADS) as pool:
            indices |= zip(missing, pool.map(made, missing))
    return [indices[url] for url in urls]


def read_index(file: str) -> TarIndex:
    """The examples of a tar file on a disk, or of several that were concatenated (`cat a.tar b.tar`).

    Raises:
      UserError: the file is not there, is no tar file, is cut off or damaged; says at which byte.
    """
    try:
        with open(file, "rb") as stream:
            return _read(stream, size=os.fstat(stream.fileno()).st_size, name=file)
    except OSError as error:
        raise _unreadable(file, error, head=b"") from error


def captions_of(*, txt: bytes | None, described: bytes | None) -> list[str]:
    """The captions in the members of an example.

    Raises:
      ValueError, AttributeError, TypeError: the JSON is malformed.
    """
    if txt is not None:
        return [decoded(txt)]
    if described is None:
        return []
    caption = json.loads(described).get("caption")
    return [] if caption is None else [utf8(text) for text in captions_in(caption)]


def _read(stream: Any, *, size: int, name: str, with_captions: bool = False) -> TarIndex:
    """`stream`: a binary file, or what fsspec gives for one."""
    examples, start, head = _Examples(stream if with_captions else None), 0, b""
    try:
        head = stream.read(BLOCK)
        while start < size or start == 0:
            end = _read_archive(stream, examples, start=start, size=size)
            start = _after_zeros(stream, end, size=size)
    except UserError:
        raise
    except (OSError, tarfile.TarError, ValueError) as error:
        raise _unreadable(name, error, head=head) from error
    members = np.array(examples.members, np.int64).reshape(-1, len(MEMBERS), 2)
    captions = pa.array(examples.captions(), pa.large_list(pa.large_string())) if with_captions else None
    return TarIndex(pa.array(map(utf8, examples.keys), pa.large_string()), members, examples.left_out, captions)


def _unreadable(name: str, error: Exception, *, head: bytes) -> UserError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UserError(f"{name!r} cannot be read as a tar file: {reason}{hint(name)}{compression_of(head)}")


def _name(url: str, state: stores.State) -> str:
    known = hashlib.sha256(f"{VERSION} {url} {state.size} {state.key}".encode()).hexdigest()
    return f"{Path(url).name}-{known[:32]}.arrow"


def _keep(index: TarIndex, file: str) -> None:
    metadata = {"left_out": json.dumps(index.left_out.as_dict())}
    numbers = index.members.reshape(len(index.keys), -1)
    columns = {"key": index.keys, "captions": index.captions}
    columns |= {f"member{place}": pa.array(numbers[:, place]) for place in range(numbers.shape[1])}
    batch = pa.record_batch(columns).replace_schema_metadata(metadata)
    with pa.BufferOutputStream() as buffer:
        with pa.ipc.new_file(buffer, batch.schema) as writer:
            writer.write_batch(batch)
        data = buffer.getvalue().to_pybytes()
    if stores.is_url(file):
        stores.write(file, data)
        return
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        with atomically(Path(file)) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        logging.warning("the index of a tar file cannot be kept in %s (%s): it is made again next time", file, error)


def _kept(file: str) -> TarIndex | None:
    try:
        if stores.is_url(file):
            data = stores.read(file) if stores.exists(file) else b""
        else:
            data = Path(file).read_bytes()
        batch = pa.ipc.open_file(pa.BufferReader(data)).get_batch(0)
        batch.validate(full=True)
        left_out = Skipped()
        left_out.merge(json.loads(batch.schema.metadata[b"left_out"]))
        places = range(len(MEMBERS) * 2)
        numbers = np.stack([batch.column(f"member{place}").to_numpy() for place in places], axis=1)
        return TarIndex(batch["key"], numbers.reshape(-1, len(MEMBERS), 2), left_out, batch["captions"])
    except (OSError, pa.ArrowException, ValueError, LookupError, TypeError):
        return None  # not there, or damaged: it is made again


class _Examples:
    """Members of a tar file, sorted into examples as they come."""

    def __init__(self, stream: Any) -> None:
        """`stream`: what captions are read from as they come; None: they are not read."""
        self._stream = stream
        self._texts: list[dict[int, bytes]] = []  # by example, the members that hold its captions
        self.keys: list[str] = []
        self.members: list[list[tuple[int, int]]] = []
        self.left_out = Skipped()
        self._latest: dict[str, int] = {}  # by key, of the examples with it
        self._runs: list[int] = []  # by example, the last run of members with one key that belongs to it
        self._run, self._key = 0, ""

    def add(self, member: tarfile.TarInfo) -> None:
        if member.isdir():
            return
        if not member.isreg() or member.issparse():
            self.left_out.add("link_member", utf8(member.name))
            return
        directory, name = os.path.split(member.name)
        stem, _, ending = name.partition(".")
        column = "image" if ending.lower() in IMAGE_ENDINGS else ending.lower()
        if column not in MEMBERS or not stem:
            self.left_out.add("unused_member", utf8(member.name))
            return
        key, place = os.path.join(directory, stem), MEMBERS.index(column)
        if key != self._key:
            self._run, self._key = self._run + 1, key
        number = self._latest.get(key)
        if number is not None and self.members[number][place][0]:
            if self._runs[number] == self._run:
                # Beside the first one, with the same caption.
                self.left_out.add("repeated_member", utf8(member.name))
                return
            number = None  # members of another key lie between: this is another example
        if number is None:
            number = self._latest[key] = len(self.keys)
            self.keys.append(key)
            self.members.append([(0, 0)] * len(MEMBERS))
            self._runs.append(self._run)
            self._texts.append({})
        self._runs[number] = self._run
        self.members[number][place] = member.offset_data, member.size
        if self._stream is not None and column != "image":
            self._stream.seek(member.offset_data)
            self._texts[number][place] = self._stream.read(member.size)

    def captions(self) -> Iterator[list[str] | None]:
        """Of each example; None where its JSON is malformed."""
        for texts in self._texts:
            captions = None
            with contextlib.suppress(ValueError, AttributeError, TypeError):
                txt, described = (texts.get(MEMBERS.index(column)) for column in ("txt", "json"))
                captions = captions_of(txt=txt, described=described)
            yield captions

    def start_archive(self) -> None:
        self._latest, self._key = {}, ""


def _read_archive(stream: Any, examples: _Examples, *, start: int, size: int) -> int:
    """Adds the members of one archive, and returns at which byte there is no further header.

    Raises:
      TarError: its first header is none, or a member ends after the end of the file.
    """
    stream.seek(start)
    examples.start_archive()
    end = start
    try:
        tar = tarfile.open(fileobj=stream, mode="r:")
    except tarfile.ReadError as error:
        raise tarfile.ReadError(f"{error} at byte {start}") from error
    # `tarfile` stops at any block that is no header; the caller finds out what it is.
    with tar:
        while (member := _next(tar, end)) is not None:
            # Otherwise the list of all members read so far grows with the file.
            tar.members = []  # type: ignore[attr-defined]  # public, but not in the stubs
            if not end < tar.offset <= size:
                within = f"the member {member.name!r} that begins at byte {member.offset}"
                raise tarfile.ReadError(f"unexpected end at byte {size}, within {within}")
            end = tar.offset
            examples.add(member)
    return end


def _next(tar: tarfile.TarFile, end: int) -> tarfile.TarInfo | None:
    try:
        return tar.next()
    except tarfile.TarError as error:
        raise tarfile.ReadError(f"{error}, after byte {end}") from error


def _after_zeros(stream: Any, end: int, *, size: int) -> int:
    """The end of the zeros that close an archive: `size`, or where another archive begins.

    Raises:
      TarError: there are none.
    """
    if end >= size:
        raise tarfile.ReadError(f"unexpected end at byte {size}, before the empty block that closes an archive")
    position = end
    stream.seek(end)
    while chunk := stream.read(CHUNK):
        rest = chunk.lstrip(b"\0")
        if rest:
            position += len(chunk) - len(rest)
            position -= position % BLOCK
            if position == end:
                if size - end < BLOCK:
                    raise tarfile.ReadError(
                        f"unexpected end at byte {size}, within the header that begins at byte {end}"
                    )
                raise tarfile.ReadError(f"there is no header at byte {end}, where the next member should begin")
            return position
        position += len(chunk)
    return size
