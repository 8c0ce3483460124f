"""JSON annotations: lists as ALBEF's, `dataset_*.json` as Karpathy's, captions as COCO's."""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mvlm_jax.data.formats.ids import id_text
from mvlm_jax.data.formats.listed import ListedSource, Row, existing_file, listed, root_of
from mvlm_jax.data.formats.published import json_file
from mvlm_jax.data.skipped import Skipped
from mvlm_jax.errors import UserError

OPTIONS = ("split", "image_root")


def open_json(path: str, *, split: str = "", image_root: str = "") -> ListedSource:
    """Opens one of the three layouts, which it recognises by their keys.

    `split` is one or more of Karpathy's, joined by commas.

    Raises:
      UserError: another layout, no such split, or an entry without an image or with captions that are not text.
    """
    file = existing_file(path)
    content = json_file(file)
    images = content.get("images") if isinstance(content, dict) else None
    left_out = Skipped()
    with layout_checked(file):
        if images and "sentences" in images[0]:
            rows = karpathy_rows(content, splits=split.split(",") if split else [])
        elif split:
            raise UserError(f"{path!r} has no splits, but split={split} was asked for; leave it out")
        elif isinstance(images, list) and isinstance(content.get("annotations"), list):
            rows = coco_rows(content, left_out=left_out)
        elif isinstance(content, list):
            rows = (_albef_row(entry, number) for number, entry in enumerate(content))
        else:
            raise UserError(
                f"{path!r} is none of: a list of {{image, caption}} (ALBEF), images with sentences (Karpathy), "
                "images and annotations (COCO)"
            )
        return listed(rows, root=root_of(file, image_root), left_out=left_out)


@contextlib.contextmanager
def layout_checked(file: Path) -> Iterator[None]:
    """
    Raises:
      UserError: an entry of the file lacks a field, or holds another type of value in it.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{str(file)!r} has an entry of another layout: {_short(error)}") from error


def karpathy_rows(content: Mapping[str, Any], *, splits: list[str]) -> Iterator[Row]:
    """Rows of Karpathy's splits; an image is known by its COCO id or the stem of its file.

    Raises:
      UserError: no split is named, or one that is not there.
    """
    counts = Counter(image["split"] for image in content["images"])
    if not splits or set(splits) - set(counts):
        asked = f"no split {','.join(splits)!r}" if splits else "splits, of which none was chosen"
        there = ", ".join(f"{name} ({count} images)" for name, count in sorted(counts.items()))
        raise UserError(f"{content.get('dataset', 'the file')} has {asked}; add ?split= and one or more of {there}")
    for image in content["images"]:
        if image["split"] in splits:
            yield Row(
                image=str(Path(image.get("filepath", "")) / image["filename"]),
                captions=[caption_text(sentence["raw"]) for sentence in image["sentences"]],
                image_id=id_text(image.get("cocoid")) or Path(image["filename"]).stem,
            )


def coco_rows(content: Mapping[str, Any], *, left_out: Skipped) -> Iterator[Row]:
    """Rows of COCO's captions, images without any caption included; captions of no image are counted in `left_out`."""
    there = {image["id"] for image in content["images"] if id_text(image["id"])}
    captions = defaultdict(list)
    for number, annotation in enumerate(content["annotations"]):
        if annotation["image_id"] in there:
            captions[annotation["image_id"]].append(caption_text(annotation["caption"]))
        else:
            left_out.add("no_such_image", f"annotation {number}")
    for number, image in enumerate(content["images"]):
        identity = id_text(image["id"])
        own = captions[image["id"]] if identity else []
        yield Row(_path(image["file_name"]), own, identity, f"image {number}")


def caption_text(value: Any) -> str:
    """A caption as text; null and NaN become an empty one, which is counted as such.

    Raises:
      TypeError: a list or a mapping.
    """
    if value is None or value != value:  # JSON's null and NaN
        return ""
    if not isinstance(value, str | int | float):
        raise TypeError(f"caption {value!r} is not text")
    return str(value)


def captions_in(value: Any) -> list[str]:
    """The captions in a field that holds one, a list of them, or none.

    Raises:
      TypeError: as `caption_text`.
    """
    return [caption_text(text) for text in (value if isinstance(value, list) else [value])]


def _albef_row(entry: Mapping[str, Any], number: int) -> Row:
    captions = captions_in(entry["caption"])
    return Row(_path(entry["image"]), captions, id_text(entry.get("image_id")), f"entry {number}")


def _path(value: Any) -> str:
    """The path of an image; empty where there is none.

    Raises:
      TypeError: it is not text.
    """
    if value is None or value != value:  # JSON's null and NaN
        return ""
    if not isinstance(value, str):
        raise TypeError(f"the path of an image {value!r} is not text")
    return value


def _short(error: Exception) -> str:
    message = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return message if len(message) < 200 else message[:200] + "…"
