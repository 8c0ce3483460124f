"""COCO (Lin et al., ECCV 2014) and Flickr30k (Young et al., TACL 2014) in Karpathy's splits."""

from pathlib import Path
from typing import Any

from mvlm_jax.data.collection import Collection
from mvlm_jax.data.formats.annotations import karpathy_rows, layout_checked
from mvlm_jax.data.formats.listed import listed
from mvlm_jax.data.formats.published import json_file
from mvlm_jax.data.paths import check_layout
from mvlm_jax.errors import UserError

COCO_LIST = "dataset_coco.json"
FLICKR30K_LIST = "dataset_flickr30k.json"
FLICKR30K_IMAGES = "flickr30k-images"
HELD_OUT = ("val", "test")
# Karpathy's "restval" is the part of COCO's validation images that everybody trains on (113,287 images in all).
SPLITS = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}


def coco(directory: Path) -> Collection:
    """COCO 2014: `dataset_coco.json` beside `train2014/` and `val2014/`.

    Raises:
      UserError: a part is not there, or the list is another one.
    """
    check_layout(directory, dataset="COCO", parts=(COCO_LIST, "train2014", "val2014"))
    return _collection(directory, list_file=directory / COCO_LIST, root=directory)


def flickr30k(directory: Path) -> Collection:
    """Flickr30k: `dataset_flickr30k.json` beside `flickr30k-images/`.

    Raises:
      UserError: a part is not there, or the list is another one.
    """
    check_layout(directory, dataset="Flickr30k", parts=(FLICKR30K_LIST, FLICKR30K_IMAGES))
    return _collection(directory, list_file=directory / FLICKR30K_LIST, root=directory / FLICKR30K_IMAGES)


def read_list(file: Path) -> dict[str, Any]:
    """One of Karpathy's lists.

    Raises:
      UserError: it is none.
    """
    content = json_file(file)
    images = content.get("images") if isinstance(content, dict) else None
    fields = {"split", "filename", "sentences"}
    if not images or not all(isinstance(image, dict) and fields <= set(image) for image in images):
        raise UserError(f"{str(file)!r} is not one of Karpathy's lists: images with filename, split and sentences")
    return content


def _collection(directory: Path, *, list_file: Path, root: Path) -> Collection:
    content = read_list(list_file)
    there = {image["split"] for image in content["images"]}
    with layout_checked(list_file):
        splits = {
            split: listed(karpathy_rows(content, splits=[name for name in names if name in there]), root=root)
            for split, names in SPLITS.items()
            if there & set(names)
        }
    return Collection(splits=splits, source=str(directory), files=(list_file,))
