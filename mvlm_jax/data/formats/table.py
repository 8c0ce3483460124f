"""CSV, TSV and parquet files with an image, or its path, and its caption in every row."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TextIO

import pyarrow as pa
from pyarrow import parquet

from mvlm_jax.data.formats.annotations import captions_in
from mvlm_jax.data.formats.embedded import EmbeddedSource, holds_images, open_embedded, table_errors
from mvlm_jax.data.formats.ids import id_text
from mvlm_jax.data.formats.listed import ListedSource, Row, existing_file, listed, root_of, utf8
from mvlm_jax.data.formats.texts import compression_of, encoding_of
from mvlm_jax.data.paths import matching, warn_of_missing_parts
from mvlm_jax.data.skipped import Skipped
from mvlm_jax.errors import UserError

OPTIONS = ("image", "caption", "id", "columns", "image_root")
SUFFIXES = (".csv", ".tsv", ".parquet")
LONGEST_FIELD = 2**31 - 1  # characters


def open_table(
    path: str, *, image: str = "image", caption: str = "caption", id: str = "", columns: str = "", image_root: str = ""
) -> ListedSource | EmbeddedSource:
    """Opens a table, or several of one directory that a pattern with `*` or `{000..099}` stands for.

    Rows that cannot be used are counted in `left_out` of the source.

    Args:
      image, caption, id: names of columns; of a parquet file `image` may hold the images themselves, as Hugging Face
        writes them, and `caption` lists of captions. No `id`, or none in a row: the path is it.
      columns: all names, joined by commas, of a CSV or TSV file whose first line is not a header.

    Raises:
      UserError: another file format, one that is cut off or cannot be parsed, a column that is not there, or no row
        that can be used.
    """
    files = [existing_file(file) for file in matching(path)]
    if not {file.suffix.lower() for file in files} <= set(SUFFIXES):
        raise UserError(f"{path!r} is not one of {', '.join(SUFFIXES)}")
    if len({file.parent for file in files}) > 1 and not image_root:
        raise UserError(f"{path!r} matches files in several directories; name the one of the images with image_root=")
    warn_of_missing_parts(files)
    wanted = [image, caption, *([id] if id else [])]
    root = root_of(files[0], image_root)
    left_out = Skipped()
    embedded = [_is_parquet(file) and holds_images(file, image) for file in files]
    if all(embedded):
        return open_embedded(files, image=image, caption=caption, id=id, root=root)
    if any(embedded):
        raise UserError(f"{path!r} matches files that hold images in {image!r} and files that hold paths")
    rows = (row for file in files for row in _rows(file, wanted=wanted, columns=columns, left_out=left_out))
    source = listed(rows, root=root, left_out=left_out)
    if left_out.counts and not len(source):
        raise UserError(f"{path!r} has no row that can be used with the columns {', '.join(wanted)} ({left_out})")
    return source


def _is_parquet(file: Path) -> bool:
    return file.suffix.lower() == ".parquet"


def _rows(file: Path, *, wanted: Sequence[str], columns: str, left_out: Skipped) -> Iterator[Row]:
    with table_errors(file, wanted):
        if _is_parquet(file):
            if columns:
                raise pa.ArrowInvalid("a parquet file names its columns itself; leave columns= out")
            yield from _parquet_rows(file, wanted=wanted)
        else:
            names = columns.split(",") if columns else None
            yield from _text_rows(file, wanted=wanted, columns=names, left_out=left_out)


def _parquet_rows(file: Path, *, wanted: Sequence[str]) -> Iterator[Row]:
    with parquet.ParquetFile(file) as table:
        _check_columns(wanted, table.schema_arrow.names)
        number = 0
        for batch in table.iter_batches(batch_size=10_000, columns=list(wanted)):
            for path, caption, *identity in zip(*(batch.column(name).to_pylist() for name in wanted)):
                place = f"row {number} of {file.name}"
                yield Row(id_text(path), captions_in(caption), id_text(identity[0]) if identity else "", place)
                number += 1


def _text_rows(file: Path, *, wanted: Sequence[str], columns: Sequence[str] | None, left_out: Skipped) -> Iterator[Row]:
    """Rows with another number of fields than columns, or with bytes that are no text, are counted in `left_out`.

    Raises:
      UserError: the file is empty, ends within a row, or its quotes are not in pairs; says in which line.
    """
    with file.open("rb") as stream:
        head = stream.read(6)
    if compression := compression_of(head):
        raise UserError(f"{str(file)!r} is not text{compression}")
    lines = _Lines()
    tabs = file.suffix.lower() == ".tsv"
    # Quotes have no meaning in the published TSV files: a caption may begin with one.
    quoting: Literal[0, 3] = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    csv.field_size_limit(LONGEST_FIELD)
    names, places = columns, _places(wanted, columns) if columns else []
    begin = 1  # the line that a record begins in
    with file.open(encoding=encoding_of(head), errors="surrogateescape", newline="") as stream:
        reader = csv.reader(lines.of(stream), delimiter="\t" if tabs else ",", quoting=quoting, strict=True)
        try:
            for fields in reader:
                line, begin = f"line {begin} of {file.name}", reader.line_num + 1
                if not fields:
                    continue
                if names is None:
                    names, places = fields, _places(wanted, fields)
                elif len(fields) == len(names):
                    row = [fields[place] for place in places]
                    if all(field == utf8(field) for field in row):
                        yield Row(row[0], [row[1]], id_text(row[2]) if len(row) > 2 else "", line)
                    else:
                        left_out.add("not_utf8", line)
                elif lines.last.endswith(("\n", "\r")):
                    left_out.add("malformed", line)
                else:
                    raise UserError(f"{str(file)!r} ends within {line}: it was cut off")
        except (csv.Error, UnicodeError) as error:
            what = "a quote is not closed" if "unexpected end" in str(error) else str(error)
            raise UserError(f"{str(file)!r} cannot be read from line {begin} on: {what}") from error
    if names is None:
        raise pa.ArrowInvalid("it is empty")


class _Lines:
    """Lines of a file; keeps the last one."""

    last = ""

    def of(self, stream: TextIO) -> Iterator[str]:
        for line in stream:
            self.last = line
            yield line


def _places(wanted: Sequence[str], names: Sequence[str]) -> list[int]:
    _check_columns(wanted, names)
    return [names.index(name) for name in wanted]


def _check_columns(wanted: Sequence[str], names: Sequence[str]) -> None:
    if not set(wanted) <= set(names):
        raise pa.ArrowKeyError(f"it has {', '.join(map(utf8, names))}")
