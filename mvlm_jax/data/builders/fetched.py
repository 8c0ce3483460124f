"""Web images that img2dataset fetched: CC3M (Sharma et al., ACL 2018) and SBU (Ordonez et al., NeurIPS 2011)."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import parquet

from mvlm_jax.data.collection import Collection
from mvlm_jax.data.examples import Source
from mvlm_jax.data.formats.annotations import captions_in
from mvlm_jax.data.formats.ids import id_text
from mvlm_jax.data.formats.listed import Row, listed
from mvlm_jax.data.formats.texts import decoded
from mvlm_jax.data.formats.webdataset import open_webdataset
from mvlm_jax.data.images import IMAGE_ENDINGS
from mvlm_jax.data.paths import check_layout
from mvlm_jax.errors import UserError

SBU_URLS = "SBU_captioned_photo_dataset_urls.txt"
SBU_CAPTIONS = "SBU_captioned_photo_dataset_captions.txt"
SBU_IMAGES = "images"


def cc3m(directory: Path) -> Collection:
    """What img2dataset made of `Train_GCC-training.tsv`; the validation part, where there is one, in `val/`.

    Raises:
      UserError: no output of img2dataset is there.
    """
    source, files = open_fetched(directory)
    splits = {"train": source}
    if (directory / "val").is_dir():
        splits["val"], more = open_fetched(directory / "val")
        files += more
    return Collection(splits=splits, source=str(directory), files=files)


def sbu(directory: Path) -> Collection:
    """The published lists of addresses and captions beside `images/`, whose files are named as the addresses end; or
    what img2dataset made of them.

    Raises:
      UserError: neither is there, or the lists differ in length.
    """
    lists = (directory / SBU_URLS, directory / SBU_CAPTIONS)
    if not lists[0].is_file():
        source, files = open_fetched(directory)
        return Collection(splits={"train": source}, source=str(directory), files=files)
    check_layout(directory, dataset="SBU", parts=(SBU_URLS, SBU_CAPTIONS, SBU_IMAGES))
    urls, captions = (decoded(file.read_bytes()).rstrip("\r\n").split("\n") for file in lists)
    if len(urls) != len(captions):
        raise UserError(f"{SBU_URLS} has {len(urls)} lines but {SBU_CAPTIONS} {len(captions)}; they belong together")
    names = (Path(urlsplit(url.strip()).path).name for url in urls)
    rows = (
        Row(name, [caption.strip()], Path(name).stem, f"line {number}")
        for number, (name, caption) in enumerate(zip(names, captions), start=1)
    )
    source = listed(rows, root=directory / SBU_IMAGES)
    return Collection(splits={"train": source}, source=str(directory), files=lists)


def open_fetched(directory: Path) -> tuple[Source, tuple[Path, ...]]:
    """Output of img2dataset in its formats `webdataset` (tar files) and `files` (directories beside parquet files).

    Raises:
      UserError: neither is there, or a part is there without the other one that img2dataset writes with it.
    """
    tars, tables = sorted(directory.glob("*.tar")), sorted(directory.glob("*.parquet"))
    if tars:
        parts = {table.stem for table in tables if table.stem.isdecimal()}
        _check_parts(directory, missing=parts - {tar.stem for tar in tars}, ending="tar")
        return open_webdataset(f"{glob.escape(str(directory))}/*.tar"), tuple(tars)
    if tables:
        folders = {path.name for path in directory.iterdir() if path.is_dir() and path.name.isdecimal()}
        _check_parts(directory, missing=folders - {table.stem for table in tables}, ending="parquet")
        return listed(_fetched_rows(tables), root=directory), tuple(tables)
    raise UserError(
        f"--source={str(directory)!r} has no 00000.tar or 00000.parquet; fetch the images with img2dataset, "
        "--output_format=webdataset or files"
    )


def _check_parts(directory: Path, *, missing: set[str], ending: str) -> None:
    if missing:
        raise UserError(
            f"{str(directory)!r} lacks {len(missing)} files that img2dataset writes at the end of a part, the first "
            f"{min(missing)}.{ending}; let it finish, or remove the files of that part"
        )


def _fetched_rows(tables: list[Path]) -> Iterator[Row]:
    known: set[str] = set()
    for file in tables:
        try:
            table = parquet.read_table(file, columns=["key", "caption"])
        except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
            raise UserError(f"{str(file)!r} is not a table of img2dataset's: {str(error).splitlines()[0]}") from error
        images = _images_by_key(file.with_suffix(""))
        for number, (value, caption) in enumerate(zip(table["key"].to_pylist(), table["caption"].to_pylist())):
            key = id_text(value)
            identity = key if key not in known else f"{file.stem}/{key}"
            known.add(key)
            # Addresses that failed are rows too; their images are counted as absent.
            path = f"{file.stem}/{images.get(key, f'{key}.jpg')}" if key else ""
            try:
                yield Row(path, captions_in(caption), identity, f"row {number} of {file.name}")
            except TypeError as error:
                raise UserError(f"row {number} of {str(file)!r}: {error}") from error


def _images_by_key(directory: Path) -> dict[str, str]:
    """The names of the images that were fetched; the format is an option of img2dataset."""
    if not directory.is_dir():
        return {}
    names = (name.rpartition(".") for name in sorted(os.listdir(directory)))
    return {key: f"{key}.{ending}" for key, _, ending in names if ending.lower() in IMAGE_ENDINGS}
