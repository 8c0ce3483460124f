"""Flickr8k (Hodosh, Young, Hockenmaier, JAIR 2013) in its published layout."""

from collections import defaultdict
from pathlib import Path

from mvlm_jax.data.collection import Collection
from mvlm_jax.data.formats.listed import Row, listed
from mvlm_jax.data.formats.texts import decoded
from mvlm_jax.data.paths import check_layout
from mvlm_jax.data.skipped import Skipped
from mvlm_jax.errors import UserError

IMAGES = "Flicker8k_Dataset"
CAPTIONS = "Flickr8k.token.txt"
# Held-out lists first: an image that is listed twice stays held out.
LISTS = {
    "test": "Flickr_8k.testImages.txt",
    "dev": "Flickr_8k.devImages.txt",
    "train": "Flickr_8k.trainImages.txt",
}


def collection(directory: Path) -> Collection:
    """Photographs with five captions each; the splits whose list is present.

    Raises:
      UserError: the directory lacks a part of the layout.
    """
    check_layout(directory, dataset="Flickr8k", parts=(IMAGES, CAPTIONS))
    lists = {split: directory / name for split, name in LISTS.items() if (directory / name).is_file()}
    if not lists:
        raise UserError(f"--source={str(directory)!r} has none of the lists {', '.join(LISTS.values())}")
    bad_lines, listed_before, splits = Skipped(), set(), {}
    captions = read_captions(directory / CAPTIONS, skipped=bad_lines)
    left_out = {split: Skipped() for split in lists}
    for split, file in lists.items():
        rows = []
        for name in decoded(file.read_bytes()).split():
            if name in listed_before:
                left_out[split].add("listed_twice", Path(name).stem)
            elif Path(name).name != name:  # it points out of the directory
                left_out[split].add("absent", name)
            else:
                rows.append(Row(name, captions.get(name, []), Path(name).stem))
            listed_before.add(name)
        splits[split] = listed(rows, root=directory / IMAGES)
    return Collection(
        splits=splits,
        source=str(directory),
        files=(directory / CAPTIONS, *lists.values()),
        left_out=left_out,
        lines_left_out=bad_lines,
    )


def read_captions(path: Path, *, skipped: Skipped) -> dict[str, list[str]]:
    """Captions by image file name, empty ones included; lines that cannot be read are counted in `skipped`."""
    captions: dict[str, list[str]] = defaultdict(list)
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            skipped.add("not_utf8", f"line {number}")
            continue
        key, tab, caption = text.partition("\t")
        name, mark, _ = key.rpartition("#")
        if not tab or not mark:
            skipped.add("malformed", f"line {number}")
            continue
        captions[name].append(caption.strip())
    return captions
