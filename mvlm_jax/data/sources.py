"""Where examples come from: one protocol, opened by URI."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable
from urllib.parse import unquote

import tensorflow_datasets as tfds
from absl import logging

from mvlm_jax.data.builders.names import DRAWN, PUBLISHED
from mvlm_jax.data.examples import Example
from mvlm_jax.data.formats import annotations, records, table, webdataset
from mvlm_jax.data.paths import local_path, matching, split_query
from mvlm_jax.data.skipped import left_out_of
from mvlm_jax.errors import UserError

VERSION_INFO = "[0-9]*.[0-9]*.[0-9]*/dataset_info.json"  # what makes a directory below a prepared dataset's a version

ExampleT = TypeVar("ExampleT", covariant=True)


@runtime_checkable
class Source(Protocol[ExampleT]):
    """Random access to examples; pickled into worker processes.

    A source whose reading leaves something out counts it in a `left_out` of its own (see `left_out_of`).
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> ExampleT:
        """
        Raises:
          UnusableImage: an image is not where the source says, or the record is damaged.
        """
        ...

    def example_id(self, index: int) -> str:
        """How the example is known, of a pair its `image_id`; without reading an image where the format permits."""
        ...


def open_source(uri: str, *, data_dir: str) -> Source[Example]:
    """Opens a collection of captioned images; docs/data.md describes each form.

    An empty `data_dir` means $TFDS_DATA_DIR or ~/tensorflow_datasets; only `tfds:` reads it.

    Raises:
      UserError: another scheme or option, or files that are not there or hold something else.
    """
    scheme, path, options = parse_uri(uri)
    legal, opener = OPENERS[scheme]
    unknown = sorted(set(options) - set(legal))
    if unknown:
        takes = f"takes {', '.join(legal)}" if legal else "takes none"
        raise UserError(f"source {uri!r} has an option {unknown[0]!r}; {scheme}: {takes}")
    source = opener(path, data_dir=data_dir, **options)
    left_out = left_out_of(source)
    if left_out.counts:
        logging.warning("%s: not all of it is used (%s)", uri, left_out)
    return source


def parse_uri(uri: str) -> tuple[str, str, dict[str, str]]:
    """`scheme:path?option=value&option=value` as scheme, path and options; %xx stands for a character in a value, and ~
    at the start of the path for the home directory. A path or a value that exists as it is written is meant so.

    Raises:
      UserError: not of this form, or a path that is no local one.
    """
    scheme, _, rest = uri.partition(":")
    if scheme not in OPENERS or not rest:
        raise UserError(f"source {uri!r} is not of the form {', '.join(FORMS)}")
    if "://" in rest.partition("?")[0] or rest.startswith("//"):
        raise UserError(f"source {uri!r} does not name a local path; mount or copy the files first")
    path, query = split_query(rest)
    path = str(local_path(path, name="source")) if scheme != "tfds" else path
    options = {}
    for option in filter(None, query.split("&")):
        name, equals, value = option.partition("=")
        if not equals or not value or name in options:
            raise UserError(f"source {uri!r}: {option!r} is not an option=value, given once")
        options[name] = value if os.path.exists(os.path.expanduser(value)) else unquote(value)
    return scheme, path, options


def source_files(uri: str) -> tuple[Path, ...]:
    """The local files that a URI names itself, without those that they list."""
    scheme, path, _ = parse_uri(uri)
    if scheme == "tfds":
        return ()
    return tuple(Path(file) for file in _matching_now(scheme, path) if os.path.exists(file))


def _matching_now(scheme: str, path: str) -> list[str]:
    if scheme == "json":
        return [path]
    if scheme == "arrayrecord" and _prepared_split(path) is not None:
        return []
    return matching(path)


def split_name(uri: str) -> str:
    """What results over a source are filed under: its split where the URI names one, else its file."""
    scheme, path, options = parse_uri(uri)
    return as_file_name(path.partition(":")[2] if scheme == "tfds" else options.get("split", Path(path).stem))


def as_file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text).strip("_")


def resolved_data_dir(data_dir: str) -> Path:
    """The directory of prepared datasets; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
      UserError: as `local_path`.
    """
    if data_dir:
        return local_path(data_dir, name="data_dir")
    return local_path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets", name="TFDS_DATA_DIR")


def prepared_dir(name: str, *, data_dir: str) -> Path:
    """Directory of the newest prepared version of a dataset, `name` or as TFDS names some `name/config`.

    Raises:
      UserError: there is none; names the command that makes it where `mvlm prepare` does.
    """
    root = resolved_data_dir(data_dir)
    newest = newest_version(root / name)
    if newest is not None:
        return newest
    configs = sorted({path.parents[1].name for path in (root / name).glob(f"*/{VERSION_INFO}")})
    if configs:
        raise UserError(f"dataset {name!r} in {root} has several forms; write {name}/ and one of {', '.join(configs)}")
    if "/" in name:
        raise UserError(f"dataset {name!r} is not in {root}; TFDS would write it to {root / name}/VERSION")
    source = "" if name in DRAWN else " --source=DIR" if name in PUBLISHED else " --source=URI"
    raise UserError(
        f"dataset {name!r} is not prepared in {root}; make it with: "
        f"mvlm prepare --dataset={name}{source} --data_dir={root}"
    )


def newest_version(directory: Path) -> Path | None:
    """The directory itself where it is a prepared version, else the newest one in it."""
    if (directory / "dataset_info.json").is_file():
        return directory
    versions = [path.parent for path in directory.glob(VERSION_INFO)]
    return max(versions, key=lambda path: tfds.core.Version(path.name), default=None)


def _open_tfds(path: str, *, data_dir: str, **names: str) -> Source[Example]:
    name, _, split = path.partition(":")
    if not re.fullmatch(r"\w+(/\w+)?", name) or not split:
        raise UserError(f"source {'tfds:' + path!r} is not of the form tfds:<name>:<split>")
    return records.open_dataset(prepared_dir(name, data_dir=data_dir), split, features=_features(names))


def _open_arrayrecord(path: str, *, data_dir: str, **names: str) -> Source[Example]:
    prepared = _prepared_split(path)
    if prepared is not None:
        return records.open_dataset(*prepared, features=_features(names))
    return records.open_files(path, features=_features(names))


def _prepared_split(path: str) -> tuple[Path, str] | None:
    """Directory of a prepared dataset, and the split of it; None: the path is of files."""
    directory, split = newest_version(Path(path).parent), Path(path).name
    return (directory, split) if directory is not None and re.fullmatch(r"\w+(\[[^\]]*\])?", split) else None


def _features(names: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(names.get(option, feature) for option, feature in zip(records.OPTIONS, records.FEATURES))


def _local(opener: Callable[..., Source[Example]]) -> Callable[..., Source[Example]]:
    return lambda path, *, data_dir, **options: opener(path, **options)


# (options, opener) by scheme
OPENERS: dict[str, tuple[tuple[str, ...], Callable[..., Source[Example]]]] = {
    "tfds": (records.OPTIONS, _open_tfds),
    "arrayrecord": (records.OPTIONS, _open_arrayrecord),
    "json": (annotations.OPTIONS, _local(annotations.open_json)),
    "webdataset": ((), _local(webdataset.open_webdataset)),
    "table": (table.OPTIONS, _local(table.open_table)),
}
FORMS = (
    "tfds:<name>:<split>",
    "arrayrecord:<files, or a prepared directory/split>",
    "json:<file>",
    "webdataset:<tar files>",
    "table:<csv, tsv or parquet file>",
)
