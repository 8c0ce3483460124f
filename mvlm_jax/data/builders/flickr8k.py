"""Flickr8k (Hodosh, Young, Hockenmaier, JAIR 2013) in its published layout."""

import io
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from mvlm_jax.data.builders.reporting import ReportingBuilder, Tally
from mvlm_jax.data.images import UndecodableImage, decode_image
from mvlm_jax.errors import UserError

IMAGES = "Flicker8k_Dataset"
CAPTIONS = "Flickr8k.token.txt"
# Held-out lists first: an image that is listed twice stays held out.
LISTS = {
    "test": "Flickr_8k.testImages.txt",
    "dev": "Flickr_8k.devImages.txt",
    "train": "Flickr_8k.trainImages.txt",
}


class Flickr8k(ReportingBuilder):
    """Photographs with five captions each; the splits whose list is present are prepared.

    Images keep their bytes; each is decoded once to know that it can be.

    Raises:
      UserError: `source` lacks a part of the layout, or a split of it has no usable image.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, source: str | Path, max_pixels: int = Image.MAX_IMAGE_PIXELS, **kwargs: Any) -> None:
        self._source = Path(source)
        self._max_pixels = max_pixels
        self._seen: set[str] = set()
        self._bad_lines = Tally()
        check_layout(self._source)
        super().__init__(**kwargs)

    def report(self) -> dict[str, Any]:
        return {**super().report(), "caption_lines_skipped": self._bad_lines.as_dict()}

    def _info(self) -> tfds.core.DatasetInfo:
        return self.pair_features()

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        captions = read_captions(self._source / CAPTIONS, skipped=self._bad_lines)
        present = [split for split, name in LISTS.items() if (self._source / name).is_file()]
        return {split: self._generate_examples(split, captions) for split in present}

    def _generate_examples(self, split: str, captions: dict[str, list[str]]) -> Iterator[tuple[int, dict[str, Any]]]:
        names = (self._source / LISTS[split]).read_text(encoding="utf-8", errors="replace").split()
        yield from self.counted(split, self._usable(split, names, captions))
        if not self._examples[split]:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(self.skipped(split).items()))
            raise UserError(f"none of the {len(names)} images listed in {LISTS[split]} can be used ({reasons})")

    def _usable(self, split: str, names: list[str], captions: dict[str, list[str]]) -> Iterator[dict[str, Any]]:
        for name in names:
            if name in self._seen:
                self.skip(split=split, reason="listed_twice", identity=name)
                continue
            self._seen.add(name)
            said = [caption for caption in captions.get(name, []) if caption]
            for _ in range(len(captions.get(name, [])) - len(said)):
                self.skip(split=split, reason="empty_caption", identity=name)
            if not said:
                self.skip(split=split, reason="no_captions", identity=name)
                continue
            data = self._image(name)
            if data is None:
                self.skip(split=split, reason="absent", identity=name)
                continue
            try:
                decode_image(data, max_pixels=self._max_pixels)
            except UndecodableImage as error:
                self.skip(split=split, reason=error.reason, identity=name)
                continue
            # Neither bytes nor a path will do: TFDS 4.9 would ask TensorFlow for its file system.
            yield {"image": io.BytesIO(data), "captions": said, "image_id": Path(name).stem}

    def _image(self, name: str) -> bytes | None:
        if Path(name).name != name:  # a list that points out of the directory
            return None
        try:
            return (self._source / IMAGES / name).read_bytes()
        except FileNotFoundError:
            return None


def check_layout(source: Path) -> None:
    """Refuses a directory without images, captions or any list.

    Raises:
      UserError: says what is not there.
    """
    if not source.is_dir():
        raise UserError(
            f"--source={str(source)!r} is not a directory; give the one that holds {IMAGES}/ and {CAPTIONS}"
        )
    missing = [name for name in (IMAGES, CAPTIONS) if not (source / name).exists()]
    if missing:
        raise UserError(f"--source={str(source)!r} has no {' and no '.join(missing)}, which Flickr8k is published with")
    if not any((source / name).is_file() for name in LISTS.values()):
        raise UserError(f"--source={str(source)!r} has none of the lists {', '.join(LISTS.values())}")


def read_captions(path: Path, *, skipped: Tally) -> dict[str, list[str]]:
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
