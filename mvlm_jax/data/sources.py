"""Where examples come from: one protocol, opened by URI."""

import glob
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable
from urllib.parse import unquote

import tensorflow_datasets as tfds

from mvlm_jax.data.builders.names import DRAWN, PUBLISHED
from mvlm_jax.data.examples import Example
from mvlm_jax.data.formats import annotations, records, table, webdataset
from mvlm_jax.data.formats.webdataset import expand_braces
from mvlm_jax.errors import UserError
from mvlm_jax.files import user_path

VERSION_INFO = "[0-9]*.[0-9]*.[0-9]*/dataset_info.json"  # what makes a directory below a prepared dataset's a version

ExampleT = TypeVar("ExampleT", covariant=True)


@runtime_checkable
class Source(Protocol[ExampleT]):
    """Random access to examples; pickled into worker processes."""

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
    return opener(path, data_dir=data_dir, **options)


def parse_uri(uri: str) -> tuple[str, str, dict[str, str]]:
    """`scheme:path?option=value&option=value` as scheme, path and options; %xx stands for a character in a value, and ~
    at the start of the path for the home directory.

    Raises:
      UserError: not of this form, or a path that is no local one.
    """
    scheme, _, rest = uri.partition(":")
    if scheme not in OPENERS or not rest:
        raise UserError(f"source {uri!r} is not of the form {', '.join(FORMS)}")
    path, _, query = rest.partition("?")
    if "://" in path or path.startswith("//"):
        raise UserError(f"source {uri!r} does not name a local path; mount or copy the files first")
    options = {}
    for option in filter(None, query.split("&")):
        name, equals, value = option.partition("=")
        if not equals or not value or name in options:
            raise UserError(f"source {uri!r}: {option!r} is not an option=value, given once")
        options[name] = unquote(value)
    return scheme, os.path.expanduser(path), options


def source_files(uri: str) -> tuple[Path, ...]:
    """The local files that a URI names itself, without those that they list."""
    scheme, path, _ = parse_uri(uri)
    if scheme == "tfds":
        return ()
    return tuple(Path(file) for pattern in expand_braces(path) for file in sorted(glob.glob(pattern)))


def split_name(uri: str) -> str:
    """What results over a source are filed under: its split where the URI names one, else its file."""
    scheme, path, options = parse_uri(uri)
    return as_file_name(path.partition(":")[2] if scheme == "tfds" else options.get("split", Path(path).stem))


def as_file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text).strip("_")


def resolved_data_dir(data_dir: str) -> Path:
    """The directory of prepared datasets; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
      UserError: as `local_directory`.
    """
    if data_dir:
        return local_directory(data_dir, name="data_dir")
    return local_directory(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets", name="TFDS_DATA_DIR")


def local_directory(path: str, *, name: str) -> Path:
    """The directory that a flag, a field or a variable of this name says, which may start with ~.

    Raises:
      UserError: it is no local one.
    """
    if "://" in path:
        raise UserError(f"{name}={path!r} is not a local path; mount the bucket and give the path of the mount")
    return user_path(path)


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
    directory, split = newest_version(Path(path).parent), Path(path).name
    if directory is not None and re.fullmatch(r"\w+(\[[^\]]*\])?", split):
        return records.open_dataset(directory, split, features=_features(names))
    return records.open_files(path, features=_features(names))


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
