"""Image files that a list names, with their captions."""

import dataclasses
import errno
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int32

from mvlm_jax.data.examples import Example
from mvlm_jax.data.images import AbsentImage
from mvlm_jax.data.paths import check_listed, hint, listed_path, local_path
from mvlm_jax.data.skipped import Skipped
from mvlm_jax.errors import UserError

# What is wrong with one path; whatever else goes wrong is wrong with the disk, and would be with the next one, too.
OF_ONE_PATH = (
    errno.ENOENT,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EACCES,
    errno.EPERM,
)


class Row(NamedTuple):
    """One line of a list; several may speak of the same image."""

    image: str  # path, relative to the root that the list is read with
    captions: list[str]
    image_id: str = ""  # empty: the path
    place: str = ""  # in the list, such as "line 7"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ListedSource:
    """Captions in memory, images read on demand."""

    root: Path
    # Arrow's columns take a tenth of the memory of Python's strings, and are pickled as they lie there.
    images: pa.Array
    captions: pa.Array
    ids: pa.Array
    left_out: Skipped

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        image = read_image(listed_path(self.images[index].as_py(), root=self.root))
        return {"image": image, "captions": self.captions[index].as_py(), "image_id": self.example_id(index)}

    def example_id(self, index: int) -> str:
        return self.ids[index].as_py()

    def caption_counts(self) -> Int32[np.ndarray, " M"]:
        return counted(self.captions)


def listed(rows: Iterable[Row], *, root: Path, left_out: Skipped | None = None) -> ListedSource:
    """Gathers the captions of each image from all its rows; images are in the order of their first row.

    Args:
      left_out: the counts of the reader of the rows; rows without a path are added to them.

    Raises:
      UserError: a row names a URL, or a path of Windows.
    """
    left_out = Skipped() if left_out is None else left_out
    captions: dict[str, list[str]] = {}
    ids: dict[str, str] = {}
    for row in rows:
        if not row.image:
            left_out.add("no_path", row.place)
            continue
        if row.image not in captions:
            check_listed(row.image, root=root)
        ids[row.image] = ids.get(row.image) or row.image_id
        captions.setdefault(row.image, []).extend(row.captions)
    return ListedSource(
        root=root,
        images=pa.array(map(utf8, captions), pa.large_string()),
        captions=pa.array(([*map(utf8, texts)] for texts in captions.values()), pa.large_list(pa.large_string())),
        ids=pa.array((utf8(identity or path) for path, identity in ids.items()), pa.large_string()),
        left_out=left_out,
    )


def counted(captions: pa.Array) -> Int32[np.ndarray, " M"]:
    """How many texts that are not blank each list holds."""
    texts = captions.flatten()
    filled = np.fromiter((bool(text.as_py().strip()) for text in texts), np.int32, len(texts))
    before = np.concatenate([[0], np.cumsum(filled)])
    offsets = captions.offsets.to_numpy() - captions.offsets[0].as_py()
    return np.diff(before[offsets]).astype(np.int32)


def read_image(path: Path) -> bytes:
    """
    Raises:
      AbsentImage: there is no such file, or none that may be read.
      UserError: the disk it is on cannot be read.
    """
    try:
        return path.read_bytes()
    except ValueError as error:  # a null character in the path
        raise AbsentImage(repr(path)) from error
    except OSError as error:
        if error.errno in OF_ONE_PATH:
            raise AbsentImage(f"{path} ({error.strerror})") from error
        raise UserError(f"image {str(path)!r} cannot be read: {error.strerror}") from error


def existing_file(path: str) -> Path:
    """
    Raises:
      UserError: it is no file.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no file {path!r}{hint(path)}")
    return Path(path)


def root_of(file: Path, image_root: str) -> Path:
    """The directory that paths in a list start from: `image_root`, which may start with ~, else the list's own.

    Raises:
      UserError: `image_root` is no directory.
    """
    if not image_root:
        return file.parent
    root = local_path(image_root, name="image_root")
    if not root.is_dir():
        raise UserError(f"image_root={image_root!r} is not a directory")
    return root


def utf8(text: str) -> str:
    """The text with ? for what UTF-8 cannot encode, such as half a surrogate pair, which JSON may hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
