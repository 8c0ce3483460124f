"""Tar files as img2dataset writes them, on a disk or in a store: members of one example share their name."""

import dataclasses
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int32, Int64

from mvlm_jax.data import stores
from mvlm_jax.data.examples import Example, without_blanks
from mvlm_jax.data.formats.ids import distinct
from mvlm_jax.data.formats.tar_index import MEMBERS, captions_of, read_index, read_indices
from mvlm_jax.data.images import AbsentImage, UnusableImage
from mvlm_jax.data.paths import local_path, matching
from mvlm_jax.data.skipped import Skipped
from mvlm_jax.errors import UserError
from mvlm_jax.files import user_cache

OPTIONS = ("buffer", "index")


class FetchedImages(threading.local):
    """Images that a thread has fetched and not used yet, by their examples."""

    def __init__(self) -> None:
        self.images: dict[int, bytes] = {}

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return FetchedImages, ()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class WebDatasetSource:
    """Random access to the examples of tar files, by an index of where their members lie."""

    files: list[str]
    keys: pa.Array
    ids: pa.Array
    shards: Int32[np.ndarray, " E"]  # the place in `files` of the one that holds an example
    members: Int64[np.ndarray, "E M 2"]
    left_out: Skipped
    window: int = 0  # see `InFiles`

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

    def texts(self, index: int) -> list[str]:
        """The captions of an example, without its image.

        Raises:
          UnusableImage: as `__getitem__`.
        """
        if not self.members[index, MEMBERS.index("image"), 0]:
            raise AbsentImage(f"{self.keys[index]} in {self.files[self.shards[index]]} has no image")
        return self._captions(index)

    def file_starts(self) -> Int64[np.ndarray, " F"]:
        return np.flatnonzero(np.diff(self.shards, prepend=-1))

    def _caption_count(self, index: int) -> int:
        try:
            return len(without_blanks(self._captions(index)))
        except UnusableImage:
            return 0

    def _captions(self, index: int) -> list[str]:
        txt = self._read(index, "txt")
        try:
            return captions_of(txt=txt, described=self._read(index, "json") if txt is None else None)
        except (ValueError, AttributeError, TypeError) as error:
            raise UnusableImage("malformed_json", f"{self.keys[index]}.json: {error}") from error

    def _range(self, index: int, member: str) -> stores.Range:
        offset, size = (int(number) for number in self.members[index, MEMBERS.index(member)])
        return stores.Range(self.files[self.shards[index]], offset, size)

    def _read(self, index: int, member: str) -> bytes | None:
        wanted = self._range(index, member)
        if not wanted.start:
            return None
        try:
            with open(wanted.url, "rb") as file:
                file.seek(wanted.start)
                return _whole(file.read(wanted.size), wanted)
        except OSError as error:
            raise UserError(f"{wanted.url!r} cannot be read: {error.strerror}") from error


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StoredWebDatasetSource(WebDatasetSource):
    """The same in a store: captions in memory, images by ranges of bytes, many of them at once where it is told
    which ones come next."""

    captions: pa.Array  # lists of text; null: they cannot be read
    fetched: FetchedImages = dataclasses.field(default_factory=FetchedImages)

    @property
    def reads_ahead(self) -> bool:
        return True

    def read_ahead(self, indices: Sequence[int]) -> None:
        """Fetches images; those that lie close together in one request."""
        wanted = [index for index in dict.fromkeys(indices) if self._range(index, "image").start]
        ranges = [self._range(index, "image") for index in wanted]
        images = map(_whole, stores.read_ranges(ranges), ranges)
        self.fetched.images = dict(zip(wanted, images, strict=True))

    def _captions(self, index: int) -> list[str]:
        known = self.captions[index].as_py()
        return super()._captions(index) if known is None else known

    def _read(self, index: int, member: str) -> bytes | None:
        if member == "image" and index in self.fetched.images:
            return self.fetched.images[index]
        wanted = self._range(index, member)
        if not wanted.start:
            return None
        [data] = stores.read_ranges([wanted])
        return _whole(data, wanted)


def open_webdataset(pattern: str, *, buffer: str = "", index: str = "") -> WebDatasetSource:
    """Reads the headers of all tar files that a pattern with `{000..099}`, `{a,b}` or `*` stands for.

    A key that comes again, in the same file or in another, is another example: its id has the name of its file before
    it. What is in the files and of no use is counted in `left_out` of the source.

    Args:
      buffer: examples that training shuffles together, in a random order of the files; empty: all of them.
      index: directory or URL that keeps what was read of files in a store; empty: the user's cache.

    Raises:
      UserError: a file that is not there, is no tar file, is cut off or damaged; or none with an example.
    """
    if not (buffer.isdecimal() or not buffer) or buffer and int(buffer) < 1:
        raise UserError(f"buffer={buffer!r} is not a number of examples, 1 or more")
    if stores.is_url(pattern):
        files = stores.matching(pattern)
        kept_in = index if stores.is_url(index) else str(_index_directory(index))
        indices = read_indices(files, kept_in=kept_in)
    elif index:
        raise UserError(
            f"index={index!r} is of tar files in a store; {pattern!r} is on a disk, and its headers are read"
        )
    else:
        files = matching(pattern)
        indices = [read_index(file) for file in files]
    keys = pa.chunked_array([each.keys for each in indices], pa.large_string()).combine_chunks()
    if not len(keys):
        raise UserError(f"no tar file of {pattern!r} holds an example; its members should be named as 000000000.jpg")
    left_out = Skipped()
    for each in indices:
        left_out.merge(each.left_out.as_dict())
    shards = np.repeat(np.arange(len(files), dtype=np.int32), [len(each.keys) for each in indices])
    fields: dict[str, Any] = {
        "files": files,
        "keys": keys,
        "ids": distinct(keys, files=shards.tolist(), names=_names(files)),
        "shards": shards,
        "members": np.concatenate([each.members for each in indices]),
        "left_out": left_out,
        "window": int(buffer or 0),
    }
    if not stores.is_url(pattern):
        return WebDatasetSource(**fields)
    captions = pa.chunked_array([each.captions for each in indices], pa.large_list(pa.large_string()))
    return StoredWebDatasetSource(**fields, captions=captions.combine_chunks())


def _index_directory(index: str) -> Path:
    return local_path(index, name="index") if index else user_cache() / "tar_index"


def _names(files: Sequence[str]) -> list[str]:
    """Of the files, without what all have in common."""
    paths = [file if stores.is_url(file) else os.path.abspath(file) for file in files]
    directory = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.splitext(os.path.relpath(path, directory))[0] for path in paths]


def _whole(data: bytes, wanted: stores.Range) -> bytes:
    if len(data) < wanted.size:
        raise UserError(f"{wanted.url!r} ends at byte {wanted.start + len(data)}; it was cut off since it was opened")
    return data
