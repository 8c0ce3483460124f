"""CSV, TSV and parquet files with the path of an image and its caption in every row."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv, parquet

from mvlm_jax.data.formats.annotations import caption_text
from mvlm_jax.data.formats.listed import ListedSource, Row, existing_file, listed, root_of
from mvlm_jax.errors import UserError

OPTIONS = ("image", "caption", "id", "columns", "image_root")
SUFFIXES = (".csv", ".tsv", ".parquet")


def open_table(
    path: str, *, image: str = "image", caption: str = "caption", id: str = "", columns: str = "", image_root: str = ""
) -> ListedSource:
    """Opens a table.

    Args:
      image, caption, id: names of columns; a parquet column may hold a list of captions. No `id`: the path is it.
      columns: all names, joined by commas, of a CSV or TSV file whose first line is not a header.

    Raises:
      UserError: another kind of file, one that cannot be parsed, or a column that is not there.
    """
    file = existing_file(path)
    if file.suffix not in SUFFIXES:
        raise UserError(f"{path!r} is not one of {', '.join(SUFFIXES)}")
    wanted = [image, caption, *([id] if id else [])]
    try:
        table = _read(file, wanted=wanted, columns=columns.split(",") if columns else None)
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        message = str(error).splitlines()[0]
        raise UserError(f"{path!r} cannot be read with the columns {', '.join(wanted)}: {message}") from error
    try:
        return listed(_rows(table, wanted), root=root_of(file, image_root))
    except TypeError as error:
        raise UserError(f"{path!r}: {error}") from error


def _read(file: Path, *, wanted: list[str], columns: list[str] | None) -> pa.Table:
    if file.suffix == ".parquet":
        if columns:
            raise pa.ArrowInvalid("a parquet file names its columns itself; leave columns= out")
        missing = [name for name in wanted if name not in parquet.read_schema(file).names]
        if missing:
            raise pa.ArrowKeyError(f"it has {', '.join(parquet.read_schema(file).names)}")
        return parquet.read_table(file, columns=wanted)
    tabs = file.suffix == ".tsv"
    table = csv.read_csv(
        file,
        read_options=csv.ReadOptions(column_names=columns),
        # Quotes have no meaning in the published TSV files: a caption may begin with one.
        parse_options=csv.ParseOptions(
            delimiter="\t" if tabs else ",", quote_char=False if tabs else '"', newlines_in_values=not tabs
        ),
        # Whatever looks like a number or like "null" is text here.
        convert_options=csv.ConvertOptions(column_types={name: pa.string() for name in wanted}),
    )
    missing = [name for name in wanted if name not in table.column_names]
    if missing:
        raise pa.ArrowKeyError(f"it has {', '.join(table.column_names)}")
    return table.select(wanted)


def _rows(table: pa.Table, wanted: list[str]) -> Iterator[Row]:
    for batch in table.to_batches(max_chunksize=10_000):
        for path, caption, *identity in zip(*(batch.column(name).to_pylist() for name in wanted)):
            if not path:
                raise UserError(f"a row with the caption {caption!r} has no path of an image")
            captions: list[Any] = caption if isinstance(caption, list) else [caption]
            yield Row(str(path), [caption_text(text) for text in captions], str(identity[0]) if identity else "")
