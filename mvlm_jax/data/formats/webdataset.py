"""Tar files as img2dataset writes them: members of one example share the part of their name before the first dot."""

import dataclasses
import json
import os
import tarfile
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int32, Int64

from mvlm_jax.data.examples import Example, without_blanks
from mvlm_jax.data.formats.annotations import captions_in
from mvlm_jax.data.formats.ids import distinct
from mvlm_jax.data.formats.listed import utf8
from mvlm_jax.data.formats.texts import compression_of, decoded
from mvlm_jax.data.images import IMAGE_ENDINGS, AbsentImage, UnusableImage
from mvlm_jax.data.paths import hint, matching
from mvlm_jax.data.skipped import Skipped
from mvlm_jax.errors import UserError

MEMBERS = ("image", "txt", "json")  # columns of the index, each (offset, bytes); (0, 0): not there
BLOCK = tarfile.BLOCKSIZE  # bytes; the size of a header, and what all offsets in a tar file are multiples of
CHUNK = 2**20  # bytes that are read at a time


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class WebDatasetSource:
    """Random access to the examples of tar files, by an index of where their members lie."""

    files: list[str]
    keys: pa.Array
    ids: pa.Array
    shards: Int32[np.ndarray, " E"]  # the place in `files` of the one that holds an example
    members: Int64[np.ndarray, "E M 2"]
    left_out: Skipped

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Example:
        """
        Raises:
          AbsentImage: there is no image beside the caption.
          UnusableImage: malformed_json, which should hold the caption.
          UserError: the file cannot be read, or is shorter than it was.
        """
        image = self._read(index, "image")
        if image is None:
            raise AbsentImage(f"{self.keys[index]} in {self.files[self.shards[index]]} has no image")
        return {"image": image, "captions": self._captions(index), "image_id": self.example_id(index)}

    def example_id(self, index: int) -> str:
        return self.ids[index].as_py()

    def caption_counts(self) -> Int32[np.ndarray, " M"]:
        return np.array([self._caption_count(index) for index in range(len(self))], np.int32)

    def _caption_count(self, index: int) -> int:
        try:
            return len(without_blanks(self._captions(index)))
        except UnusableImage:
            return 0

    def _captions(self, index: int) -> list[str]:
        text = self._read(index, "txt")
        if text is not None:
            return [decoded(text)]
        described = self._read(index, "json")
        if described is None:
            return []
        try:
            caption = json.loads(described).get("caption")
            return [] if caption is None else [utf8(text) for text in captions_in(caption)]
        except (ValueError, AttributeError, TypeError) as error:
            raise UnusableImage("malformed_json", f"{self.keys[index]}.json: {error}") from error

    def _read(self, index: int, member: str) -> bytes | None:
        offset, size = (int(number) for number in self.members[index, MEMBERS.index(member)])
        if not offset:
            return None
        path = self.files[self.shards[index]]
        try:
            with open(path, "rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise UserError(f"{path!r} cannot be read: {error.strerror}") from error
        if len(data) < size:
            raise UserError(f"{path!r} ends at byte {offset + len(data)}; it was cut off since it was opened")
        return data


def open_webdataset(pattern: str) -> WebDatasetSource:
    """Reads the headers of all tar files that a pattern with `{000..099}`, `{a,b}` or `*` stands for.

    A key that comes again, in the same file or in another, is another example: its id has the name of its file before
    it. What is in the files and of no use is counted in `left_out` of the source.

    Raises:
      UserError: a file that is not there, is no tar file, is cut off or damaged; or none with an example.
    """
    files = matching(pattern)
    indices = [read_index(file) for file in files]
    keys = pa.chunked_array([index.keys for index in indices], pa.large_string()).combine_chunks()
    if not len(keys):
        raise UserError(f"no tar file of {pattern!r} holds an example; its members should be named as 000000000.jpg")
    left_out = Skipped()
    for index in indices:
        left_out.merge(index.left_out.as_dict())
    shards = np.repeat(np.arange(len(files), dtype=np.int32), [len(index.keys) for index in indices])
    directory = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])
    names = [os.path.splitext(os.path.relpath(file, directory))[0] for file in files]
    return WebDatasetSource(
        files=files,
        keys=keys,
        ids=distinct(keys, files=shards.tolist(), names=names),
        shards=shards,
        members=np.concatenate([index.members for index in indices]),
        left_out=left_out,
    )


class TarIndex(NamedTuple):
    """Where the examples of a tar file lie, in its order."""

    keys: pa.Array
    members: Int64[np.ndarray, "E M 2"]  # (offset, bytes) of each of MEMBERS
    left_out: Skipped


def read_index(file: str) -> TarIndex:
    """The examples of a tar file, or of several that were concatenated (`cat a.tar b.tar`).

    Raises:
      UserError: the file is not there, is no tar file, is cut off or damaged; says at which byte.
    """
    examples, start, head = _Examples(), 0, b""
    try:
        with open(file, "rb") as stream:
            head = stream.read(BLOCK)
            size = os.fstat(stream.fileno()).st_size
            while start < size or start == 0:
                end = _read_archive(stream, examples, start=start, size=size)
                start = _after_zeros(stream, end, size=size)
    except UserError:
        raise
    except (OSError, tarfile.TarError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"{file!r} cannot be read as a tar file: {reason}{hint(file)}{compression_of(head)}") from error
    members = np.array(examples.members, np.int64).reshape(-1, len(MEMBERS), 2)
    return TarIndex(pa.array(map(utf8, examples.keys), pa.large_string()), members, examples.left_out)


class _Examples:
    """Members of a tar file, sorted into examples as they come."""

    def __init__(self) -> None:
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
        self._runs[number] = self._run
        self.members[number][place] = member.offset_data, member.size

    def start_archive(self) -> None:
        self._latest, self._key = {}, ""


def _read_archive(stream: BinaryIO, examples: _Examples, *, start: int, size: int) -> int:
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


def _after_zeros(stream: BinaryIO, end: int, *, size: int) -> int:
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
