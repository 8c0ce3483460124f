"""Reading of published annotation files."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from mvlm_jax.data.formats.ids import id_text
from mvlm_jax.data.formats.texts import compression_of
from mvlm_jax.errors import UserError

Row = TypeVar("Row")


def json_lines(file: Path) -> Iterator[Any]:
    """The value of each line that is not empty.

    Raises:
      UserError: no such file, or a line that is not JSON.
    """
    for number, line in enumerate(_bytes(file).splitlines(), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise UserError(f"line {number} of {str(file)!r} is not JSON: {error}") from error


def json_file(file: Path) -> Any:
    """
    Raises:
      UserError: no such file, or it is not JSON.
    """
    data = _bytes(file)
    try:
        return json.loads(data)
    except ValueError as error:
        raise UserError(f"{str(file)!r} is not JSON: {error}{compression_of(data)}") from error


def read_rows(entries: Iterable[Any], make: Callable[[Any], Row], *, file: Path) -> list[Row]:
    """One row for each entry.

    Raises:
      UserError: an entry lacks a field that the file is published with.
    """
    rows = []
    for number, entry in enumerate(entries):
        try:
            rows.append(make(entry))
        except UserError:
            raise
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"entry {number} of {str(file)!r} is not as it was published: {type(error).__name__} {error}"
            ) from error
    return rows


def text_in(entry: Mapping[str, Any], name: str) -> str:
    """A field as text.

    Raises:
      KeyError, ValueError: it is not there, or null.
    """
    if not (text := id_text(entry[name])):
        raise ValueError(f"{name} is {entry[name]!r}")
    return text


def chosen(files: dict[str, Any], split: str, *, dataset: str) -> Any:
    """
    Raises:
      UserError: no such split.
    """
    if not split:
        raise UserError(f"{dataset} has several splits; add ?split= and one of {', '.join(files)}")
    if split not in files:
        raise UserError(f"{dataset} has no split {split!r}; its splits are {', '.join(files)}")
    return files[split]


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        hint = "; it is published under this name" if isinstance(error, FileNotFoundError) else ""
        raise UserError(f"{str(file)!r} cannot be read ({error.strerror}){hint}") from error
