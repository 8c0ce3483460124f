"""Tar files as img2dataset writes them: members of one example share the part of their name before the first dot."""

import glob
import itertools
import json
import os
import re
import tarfile
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from jaxtyping import Int32, Int64

from mvlm_jax.data.examples import Example
from mvlm_jax.data.images import AbsentImage
from mvlm_jax.errors import UserError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
MEMBERS = ("image", "txt", "json")  # columns of the index, each (offset, bytes); (0, 0): not there


class WebDatasetSource:
    """Random access to the examples of tar files, by an index of where their members lie."""

    def __init__(
        self,
        files: list[str],
        *,
        keys: pa.Array,
        shards: Int32[np.ndarray, " E"],
        members: Int64[np.ndarray, "E M 2"],
    ) -> None:
        self._files, self._keys, self._shards, self._members = files, keys, shards, members

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Example:
        key = self.example_id(index)
        image = self._read(index, "image")
        if image is None:
            raise AbsentImage(f"{key} in {self._files[self._shards[index]]} has no image")
        return {"image": image, "captions": self._captions(index), "image_id": key}

    def example_id(self, index: int) -> str:
        return self._keys[index].as_py()

    def _captions(self, index: int) -> list[str]:
        text = self._read(index, "txt")
        if text is not None:
            return [text.decode("utf-8", "replace")]
        described = self._read(index, "json")
        try:
            caption = json.loads(described or b"{}").get("caption")
        except (ValueError, AttributeError):
            caption = None
        return [caption] if isinstance(caption, str) else []

    def _read(self, index: int, member: str) -> bytes | None:
        offset, size = (int(number) for number in self._members[index, MEMBERS.index(member)])
        if not offset:
            return None
        path = self._files[self._shards[index]]
        try:
            with open(path, "rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise UserError(f"{path!r} cannot be read: {error.strerror}") from error


def open_webdataset(pattern: str) -> WebDatasetSource:
    """Reads the headers of all tar files that a pattern with `{000..099}`, `{a,b}` or `*` stands for.

    Raises:
      UserError: a file that is not there or is no tar file, or none with an example.
    """
    files = list(itertools.chain.from_iterable(map(_matching, expand_braces(pattern))))
    indices = [read_index(file) for file in files]
    keys = pa.chunked_array([keys for keys, _ in indices], pa.large_string())
    if not len(keys):
        raise UserError(f"no tar file of {pattern!r} holds an example; its members should be named as 000000000.jpg")
    return WebDatasetSource(
        files,
        keys=keys.combine_chunks(),
        shards=np.repeat(np.arange(len(files), dtype=np.int32), [len(keys) for keys, _ in indices]),
        members=np.concatenate([members for _, members in indices]),
    )


def read_index(file: str) -> tuple[pa.Array, Int64[np.ndarray, "E M 2"]]:
    """Keys of the examples in the order of the file, and (offset, bytes) of each of their MEMBERS.

    Raises:
      UserError: the file is not there, is no tar file, or is cut off.
    """
    examples: dict[str, list[tuple[int, int]]] = {}
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                # Otherwise the list of all members seen so far grows with the file.
                tar.members = []  # type: ignore[attr-defined]  # public, but not in the stubs
                directory, name = os.path.split(member.name)
                key, _, suffix = name.partition(".")
                column = "image" if suffix.lower() in IMAGE_SUFFIXES else suffix.lower()
                if not member.isfile() or column not in MEMBERS or not key:
                    continue
                places = examples.setdefault(os.path.join(directory, key), [(0, 0)] * len(MEMBERS))
                places[MEMBERS.index(column)] = member.offset_data, member.size
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{file!r} cannot be read as a tar file: {error}") from error
    members = np.array(list(examples.values()), np.int64).reshape(-1, len(MEMBERS), 2)
    return pa.array(examples, pa.large_string()), members


def expand_braces(pattern: str) -> Iterator[str]:
    """`a{08..10}` as a08, a09, a10 and `{x,y}` as x, y; ranges keep their leading zeros.

    Raises:
      UserError: braces that are neither.
    """
    first = re.search(r"\{([^{}]*)\}", pattern)
    if first is None:
        yield pattern
        return
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", first[1])
    if bounds is None and "," not in first[1]:
        raise UserError(f"{first[0]} in {pattern!r} is neither a range such as {{000..099}} nor a list such as {{a,b}}")
    if bounds is None:
        middles = first[1].split(",")
    else:
        middles = [f"{i:0{len(bounds[1])}d}" for i in range(int(bounds[1]), int(bounds[2]) + 1)]
    for middle in middles:
        yield from expand_braces(pattern[: first.start()] + middle + pattern[first.end() :])


def _matching(path: str) -> list[str]:
    found = sorted(glob.glob(path)) if glob.has_magic(path) else [path]
    if not found:
        raise UserError(f"no file matches {path!r}")
    return found
