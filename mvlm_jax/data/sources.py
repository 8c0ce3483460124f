"""Sources of examples, opened by URI: `scheme:path?option=value&option=value`."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import tensorflow_datasets as tfds
from absl import logging

from mvlm_jax.config_migration import modern_uri
from mvlm_jax.data import stores
from mvlm_jax.data.examples import Example, Source
from mvlm_jax.data.formats import annotations, records, table, webdataset
from mvlm_jax.data.formats.nlvr2 import open_nlvr2
from mvlm_jax.data.formats.snli_ve import open_snli_ve
from mvlm_jax.data.formats.vqa import open_vqa
from mvlm_jax.data.labelled import LabelledRecords, LabelledSource
from mvlm_jax.data.paths import local_path, matching, split_query
from mvlm_jax.data.skipped import left_out_of
from mvlm_jax.errors import UserError
from mvlm_jax.stores import datasets
from mvlm_jax.stores.objects import is_address

FRACTION = "fraction"  # the option, of every scheme, for the part of a training source that a run uses
IN_STORES = ("webdataset",)  # schemes whose paths may be URLs
VERSION_INFO = "[0-9]*.[0-9]*.[0-9]*/dataset_info.json"  # below a prepared dataset, in each of its versions


class Reader(NamedTuple):
    """What opens the URIs of a scheme."""

    form: str  # of the URIs, for errors
    options: tuple[str, ...]
    open: Callable[..., Source]  # (path, *, data_dir, **options)


def open_source(uri: str, *, data_dir: str) -> Source[Example]:
    """Opens a collection of captioned images; docs/data.md describes each form.

    An empty `data_dir` means $TFDS_DATA_DIR or ~/tensorflow_datasets; only `tfds:` reads it.

    Raises:
      UserError: another scheme or option, or files that are not there or hold something else.
    """
    return _open(uri, CAPTIONED, content="captioned images", data_dir=data_dir)


def open_labelled(uri: str, *, data_dir: str) -> LabelledSource:
    """Opens questions, statements or hypotheses with their images.

    Raises:
      UserError: as `open_source`.
    """
    source = _open(uri, LABELLED, content="labelled examples", data_dir=data_dir)
    assert isinstance(source, LabelledSource)
    return source


def parse_uri(uri: str) -> tuple[str, str, dict[str, str]]:
    """Scheme, path and options; %xx stands for a character in a value, and ~ at the start of the path for the home
    directory. A path or a value that exists as it is written is meant so.

    Raises:
      UserError: not of this form, or a path that is no local one.
    """
    scheme, _, rest = uri.partition(":")
    if scheme not in CAPTIONED | LABELLED or not rest:
        raise UserError(f"source {uri!r} is not of the form {_forms(CAPTIONED | LABELLED)}")
    remote = stores.is_url(rest) and scheme in IN_STORES
    if not remote and ("://" in rest.partition("?")[0] or rest.startswith("//")):
        raise UserError(f"source {uri!r} does not name a local path; mount or copy the files first")
    path, query = split_query(rest)
    path = path if scheme == "tfds" or remote else str(local_path(path, name="source"))
    if modern_uri(uri) != uri and not os.path.exists(path):
        raise UserError(f"source {uri!r} names its split as earlier versions did; write {modern_uri(uri)}")
    options = {}
    for option in filter(None, query.split("&")):
        name, equals, value = option.partition("=")
        if not equals or not value or name in options:
            raise UserError(f"source {uri!r}: {option!r} is not an option=value, given once")
        options[name] = value if os.path.exists(os.path.expanduser(value)) else unquote(value)
    return scheme, path, options


def without_option(uri: str, name: str) -> tuple[str, str | None]:
    """The URI without one of its options, and the value of that option; None: it is not given.

    Raises:
      UserError: as `parse_uri`.
    """
    value = parse_uri(uri)[2].get(name)
    if value is None:
        return uri, None
    scheme, _, rest = uri.partition(":")
    path, query = split_query(rest)
    others = "&".join(option for option in query.split("&") if option.partition("=")[0] != name)
    return f"{scheme}:{path}" + (f"?{others}" if others else ""), value


def source_files(uri: str) -> tuple[Path | str, ...]:
    """The files that a URI names itself, without those that they list; those in a store as URLs."""
    scheme, path, _ = parse_uri(uri)
    if scheme == "tfds":
        return ()
    if stores.is_url(path):
        return tuple(stores.matching(path))
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
    name = path.partition(":")[2] if scheme == "tfds" else options.get("split", Path(path).stem)
    return re.sub(r"[^\w.-]+", "_", name).strip("_")


def resolved_data_dir(data_dir: str) -> Path:
    """The directory of prepared datasets; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
      UserError: as `local_path`.
    """
    if data_dir:
        return local_path(data_dir, name="data_dir")
    return local_path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets", name="TFDS_DATA_DIR")


def prepared_dir(name: str, *, data_dir: str, split: str = "") -> Path:
    """Directory of the newest prepared version of a dataset, `name` or as TFDS names some `name/config`.

    Args:
      data_dir: or the address of a folder in a store; the dataset's description and the files of `split` are copied.

    Raises:
      UserError: there is none; names the command that makes it where `mvlm prepare` does.
    """
    if is_address(place := data_dir or os.environ.get("TFDS_DATA_DIR", "")):
        return datasets.prepared(place, name, split=split)
    root = resolved_data_dir(data_dir)
    newest = newest_version(root / name)
    if newest is not None:
        return newest
    configs = sorted({path.parents[1].name for path in (root / name).glob(f"*/{VERSION_INFO}")})
    if configs:
        raise UserError(f"dataset {name!r} in {root} has several forms; write {name}/ and one of {', '.join(configs)}")
    if "/" in name:
        raise UserError(f"dataset {name!r} is not in {root}; TFDS would write it to {root / name}/VERSION")
    from mvlm_jax.data.builders import registry  # which opens sources itself

    source = "" if name in registry.DRAWN else " --source=DIR" if name in registry.PUBLISHED else " --source=URI"
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


def _open(uri: str, readers: Mapping[str, Reader], *, content: str, data_dir: str) -> Any:
    scheme, path, options = parse_uri(uri)
    if scheme not in readers:
        raise UserError(f"source {uri!r} does not hold {content}; they are read from {_forms(readers)}")
    reader = readers[scheme]
    unknown = sorted(set(options) - set(reader.options))
    if FRACTION in unknown:
        raise UserError(f"source {uri!r} is used whole; {FRACTION}=… is an option of the sources in config.data.train")
    if unknown:
        takes = f"takes {', '.join(reader.options)}" if reader.options else "takes none"
        raise UserError(f"source {uri!r} has an option {unknown[0]!r}; {scheme}: {takes}")
    source = reader.open(path, data_dir=data_dir, **options)
    left_out = left_out_of(source)
    if left_out.counts:
        logging.warning("%s: not all of it is used (%s)", uri, left_out)
    return source


def _forms(readers: Mapping[str, Reader]) -> str:
    return ", ".join(reader.form for reader in readers.values())


def _prepared(path: str, *, data_dir: str) -> tuple[Path, str]:
    """Directory and split of a prepared dataset."""
    name, _, split = path.partition(":")
    if not re.fullmatch(r"\w+(/\w+)?", name) or not split:
        raise UserError(f"source {'tfds:' + path!r} is not of the form {TFDS}")
    return prepared_dir(name, data_dir=data_dir, split=split), split


def _open_tfds(path: str, *, data_dir: str, **names: str) -> Source[Example]:
    return records.open_dataset(*_prepared(path, data_dir=data_dir), features=_features(names))


def _open_labelled_tfds(path: str, *, data_dir: str) -> Source:
    return records.open_dataset(*_prepared(path, data_dir=data_dir), reader=LabelledRecords)


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


def _local(opener: Callable[..., Source]) -> Callable[..., Source]:
    return lambda path, *, data_dir, **options: opener(path, **options)


def _published(opener: Callable[[Path, str], Source]) -> Callable[..., Source]:
    return lambda path, *, data_dir, split="": opener(Path(path), split)


TFDS = "tfds:<name>:<split>"
CAPTIONED = {
    "tfds": Reader(TFDS, records.OPTIONS, _open_tfds),
    "arrayrecord": Reader("arrayrecord:<files, or a prepared directory/split>", records.OPTIONS, _open_arrayrecord),
    "json": Reader("json:<file>", annotations.OPTIONS, _local(annotations.open_json)),
    "webdataset": Reader("webdataset:<tar files>", webdataset.OPTIONS, _local(webdataset.open_webdataset)),
    "table": Reader("table:<csv, tsv or parquet file>", table.OPTIONS, _local(table.open_table)),
}
PUBLISHED = {"vqa": open_vqa, "nlvr2": open_nlvr2, "snli_ve": open_snli_ve}
LABELLED = {
    "tfds": Reader(TFDS, (), _open_labelled_tfds),
    **{
        name: Reader(f"{name}:<directory>?split=<split>", ("split",), _published(opener))
        for name, opener in PUBLISHED.items()
    },
}
