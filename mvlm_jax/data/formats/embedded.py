"""Parquet files that hold the images themselves, as Hugging Face's `datasets` writes them."""

import contextlib
import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int32, Int64
from pyarrow import parquet

from mvlm_jax.data.examples import Example
from mvlm_jax.data.formats.annotations import captions_in
from mvlm_jax.data.formats.ids import distinct, id_text
from mvlm_jax.data.formats.listed import counted, read_image, utf8
from mvlm_jax.data.images import AbsentImage
from mvlm_jax.data.paths import listed_path
from mvlm_jax.errors import UserError

KEPT = 2  # row groups in memory: reading in order decompresses each of them once


@dataclasses.dataclass(kw_only=True, eq=False)
class EmbeddedSource:
    """Captions in memory; images are read on demand, a whole row group at once: fast in order, and slow at random."""

    files: Sequence[Path]
    groups: Int64[np.ndarray, "G 2"]  # (file, row group in it)
    starts: Int64[np.ndarray, " G"]  # the first row of each group, counted over all files, as in `rows`
    column: str  # of the images
    root: Path  # where paths begin, in rows that have a path and no bytes
    rows: Int64[np.ndarray, " E"]  # the first one of each example
    captions: pa.Array
    ids: pa.Array

    def __post_init__(self) -> None:
        self._kept: OrderedDict[int, pa.ChunkedArray] = OrderedDict()  # by the number of the row group
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        """
        Raises:
          AbsentImage: the row holds no image, nor the path of one that is there.
          UserError: the file cannot be read, or is damaged.
        """
        row = int(self.rows[index])
        group = int(np.searchsorted(self.starts, row, side="right")) - 1
        value = self._images(group)[row - int(self.starts[group])].as_py()
        image, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if image is None:
            if not path:
                raise AbsentImage(f"{self.example_id(index)} has neither bytes nor a path")
            image = read_image(listed_path(path, root=self.root))
        return {"image": image, "captions": self.captions[index].as_py(), "image_id": self.example_id(index)}

    def example_id(self, index: int) -> str:
        return self.ids[index].as_py()

    def caption_counts(self) -> Int32[np.ndarray, " M"]:
        return counted(self.captions)

    def _images(self, group: int) -> pa.ChunkedArray:
        with self._lock:
            if group in self._kept:
                self._kept.move_to_end(group)
                return self._kept[group]
            number, within = self.groups[group].tolist()
            file = self.files[number]
            try:
                with parquet.ParquetFile(file) as table:
                    images = table.read_row_group(within, columns=[self.column]).column(0)
            except (pa.ArrowException, OSError, UnicodeDecodeError, IndexError) as error:
                reason = str(error).partition("\n")[0]
                raise UserError(f"row group {within} of {str(file)!r} cannot be read: {reason}") from error
            self._kept[group] = images
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return images

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        EmbeddedSource.__init__(self, **state)


def holds_images(file: Path, column: str) -> bool:
    """Whether a column of a parquet file has the bytes of images and not their paths.

    Raises:
      UserError: the file cannot be read.
    """
    with table_errors(file, [column]):
        schema = parquet.read_schema(file)
        return column in schema.names and _has_bytes(schema.field(column).type)


@contextlib.contextmanager
def table_errors(file: Path, columns: Sequence[str]) -> Iterator[None]:
    """
    Raises:
      UserError: instead of Arrow's errors, and for captions that are not text.
    """
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        message = str(error).splitlines()[0]
        raise UserError(f"{str(file)!r} cannot be read with the columns {', '.join(columns)}: {message}") from error
    except TypeError as error:
        raise UserError(f"{str(file)!r}: {error}") from error


def open_embedded(files: Sequence[Path], *, image: str, caption: str, id: str, root: Path) -> EmbeddedSource:
    """Reads everything but the images. A row is an example; rows with the same id are one image with their captions.

    A row without an id is known by its path, or by its file and number.

    Raises:
      UserError: a file cannot be read, lacks a column, or holds captions that are not text.
    """
    groups, starts, rows = [], [], []
    captions: list[list[str]] = []
    keys: list[str] = []
    owners: list[int] = []
    known: dict[str, int] = {}
    total = 0
    for number, file in enumerate(files):
        first = total
        with table_errors(file, [image, caption, *([id] if id else [])]):
            for group, described in enumerate(_described(file, image=image, caption=caption, id=id)):
                groups.append((number, group))
                starts.append(total)
                for identity, path, value in described:
                    texts = list(map(utf8, captions_in(value)))
                    if identity in known:
                        captions[known[identity]] += texts
                    else:
                        if identity:
                            known[identity] = len(keys)
                        keys.append(identity or path or f"{file.stem}/{total - first}")
                        captions.append(texts)
                        owners.append(number)
                        rows.append(total)
                    total += 1
    return EmbeddedSource(
        files=files,
        groups=np.array(groups, np.int64).reshape(-1, 2),
        starts=np.array(starts, np.int64),
        column=image,
        root=root,
        rows=np.array(rows, np.int64),
        captions=pa.array(captions, pa.large_list(pa.large_string())),
        ids=distinct(pa.array(map(utf8, keys), pa.large_string()), files=owners, names=[file.stem for file in files]),
    )


def _described(file: Path, *, image: str, caption: str, id: str) -> Iterator[list[tuple[str, str, Any]]]:
    """(id, path, captions) of the rows of each row group, read without the images."""
    with parquet.ParquetFile(file) as table:
        images = table.schema_arrow.field(image).type
        with_path = pa.types.is_struct(images) and images.get_field_index("path") >= 0
        if not {caption, *([id] if id else [])} <= set(table.schema_arrow.names):
            raise pa.ArrowKeyError(f"it has {', '.join(table.schema_arrow.names)}")
        columns = [caption, *([id] if id else []), *([f"{image}.path"] if with_path else [])]
        for group in range(table.num_row_groups):
            part = table.read_row_group(group, columns=columns)
            values = part[caption].to_pylist()
            ids = part[id].to_pylist() if id else [None] * len(values)
            places = part[image].to_pylist() if with_path else [None] * len(values)
            paths = [id_text(place["path"]) if place else "" for place in places]
            yield list(zip(map(id_text, ids), paths, values))


def _has_bytes(column: pa.DataType) -> bool:
    if pa.types.is_struct(column):
        return column.get_field_index("bytes") >= 0
    return pa.types.is_binary(column) or pa.types.is_large_binary(column)
