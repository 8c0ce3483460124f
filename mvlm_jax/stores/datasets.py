"""Prepared datasets in a store. ArrayRecord reads local files at random places: what is needed is copied here once."""

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import logging

from mvlm_jax.errors import UserError
from mvlm_jax.files import atomically
from mvlm_jax.stores.mirror import cache_directory
from mvlm_jax.stores.objects import FEW, Store, StoreError, parse

INFO = "dataset_info.json"  # as TFDS writes it; a directory that has it is a prepared dataset
COPIED = ".copied.json"  # the size of each file that was copied whole
SHARD = re.compile(r".+-(?P<split>\w+)\.[a-z_]+-\d{5}-of-\d{5}")


def prepared(data_dir: str, name: str, *, split: str = "") -> Path:
    """The directory of the copy of a dataset's newest version in the user's cache.

    A file is copied once. Where the description of the dataset in the store is another one than that of the copy, all
    is copied again. Several processes may ask for the same at once: one copies, the others wait.

    Args:
      data_dir: address of the folder that `name` lies in.
      split: whose shards are needed, as in `train[:10%]`; empty: the description alone.

    Raises:
      UserError: no such dataset there, a store that cannot be read, or no room here.
    """
    address = f"{data_dir.rstrip('/')}/{name}"
    store = Store(parse(address, name="data_dir"))
    try:
        versions = _versions(store.names())
        if not versions:
            raise UserError(
                f"dataset {name!r} is not in {data_dir}; mvlm prepare --data_dir={data_dir} writes it there, or copy "
                "its folder with gcloud storage cp --recursive or aws s3 cp --recursive"
            )
        newest = max(versions, key=lambda version: tuple(map(int, version.split(".") if version else ())))
        folder = f"{newest}/" if newest else ""
        files = [file.removeprefix(folder) for file in versions[newest]]
        target = cache_directory() / "data" / store.address.scheme / store.address.bucket / store.address.path / newest
        target.mkdir(parents=True, exist_ok=True)
        with _locked(target):
            _copy(store, folder, files=_needed(files, split=split), target=target)
        return target
    except StoreError as error:
        raise UserError(f"{address} cannot be read: {error.strerror}") from error
    except OSError as error:
        raise UserError(
            f"{address} cannot be copied to {cache_directory()}: {error.strerror}; "
            "XDG_CACHE_HOME=DIR names another place for it"
        ) from error


def _versions(names: list[str]) -> dict[str, list[str]]:
    """The files of each version, by its name; the empty one where the folder itself is a version."""
    if INFO in names:
        return {"": [name for name in names if "/" not in name]}
    found = [name.rpartition("/")[0] for name in names if re.fullmatch(rf"\d+\.\d+\.\d+/{INFO}", name)]
    return {version: [name for name in names if name.rpartition("/")[0] == version] for version in found}


def _needed(files: list[str], *, split: str) -> list[str]:
    """The description, and the shards of the splits that are named; all where a split is not found."""
    splits = {file: match["split"] for file in files if (match := SHARD.fullmatch(file))}
    wanted = set(filter(None, re.split(r"\[[^\]]*\]|\+", split)))
    if not wanted <= set(splits.values()):
        return files
    return [file for file in files if file not in splits or splits[file] in wanted]


def _copy(store: Store, folder: str, *, files: list[str], target: Path) -> None:
    described = store.read(f"{folder}{INFO}")
    value = described.value if described else b""
    copied = _read(target / COPIED)
    if copied and ((target / INFO).read_bytes() if (target / INFO).is_file() else b"") != value:
        for old in (COPIED, *copied):  # first of all what says that the others are whole
            (target / old).unlink(missing_ok=True)
        copied = {}
    absent = [file for file in files if not _is_whole(target / file, copied.get(file))]
    absent.sort(key=lambda file: file != INFO)  # without it the others would be copied again after a kill
    if not absent:
        return
    shards = [file for file in absent if SHARD.fullmatch(file)]
    if shards:
        _check_room(value, {match["split"] for file in shards if (match := SHARD.fullmatch(file))}, target=target)
        logging.info("copying %d files of %s to %s, once", len(shards), store.address, target)
    for name, content in store.read_all((f"{folder}{file}" for file in absent), at_once=FEW):
        if content is None:
            raise UserError(f"{store.address}/{name} is gone since it was listed; start again")
        file = name.removeprefix(folder)
        with atomically(target / file) as temporary:
            temporary.write_bytes(content)
        copied[file] = len(content)
        with atomically(target / COPIED) as temporary:
            temporary.write_text(json.dumps(copied))


def _check_room(described: bytes, splits: set[str], *, target: Path) -> None:
    """
    Raises:
      UserError: the splits are larger than what is free, by their description.
    """
    needed = 0
    with contextlib.suppress(ValueError, KeyError, TypeError):
        needed = sum(int(each["numBytes"]) for each in json.loads(described)["splits"] if each["name"] in splits)
    free = shutil.disk_usage(target).free
    if needed > free:
        raise UserError(
            f"{target} has {free / 1e9:.1f} GB left, and a copy of {' and '.join(sorted(splits))} needs "
            f"{needed / 1e9:.1f} GB; XDG_CACHE_HOME=DIR names another place for it"
        )


def _is_whole(file: Path, size: int | None) -> bool:
    return size is not None and file.is_file() and file.stat().st_size == size


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """While the block runs, no other process copies to the directory."""
    descriptor = os.open(target / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
