"""Visual Genome (Krishna et al., IJCV 2017) in its published layout."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mvlm_jax.data.builders.karpathy import COCO_LIST, FLICKR30K_LIST, HELD_OUT, read_list
from mvlm_jax.data.collection import Collection
from mvlm_jax.data.formats.annotations import caption_text
from mvlm_jax.data.formats.ids import id_text
from mvlm_jax.data.formats.listed import Row, listed
from mvlm_jax.data.formats.published import json_file
from mvlm_jax.data.paths import check_layout
from mvlm_jax.data.skipped import Skipped
from mvlm_jax.errors import UserError

IMAGES = "image_data.json"
REGIONS = "region_descriptions.json"


def collection(directory: Path, *, coco_list: Path | None = None) -> Collection:
    """Whole images with the descriptions of their regions as captions, each sentence once, as ALBEF has them.

    Images that Karpathy holds out from COCO are left out by their COCO id, and where `dataset_flickr30k.json` is
    there, those that he holds out from Flickr30k by their Flickr id. ALBEF also drops the descriptions of small
    regions; here all of them stay.

    Args:
      coco_list: Karpathy's `dataset_coco.json`; None: the one in the directory.

    Raises:
      UserError: a part is not there or not as it was published.
    """
    coco_list = coco_list or directory / COCO_LIST
    check_layout(directory, dataset="Visual Genome", parts=(IMAGES, REGIONS))
    check_layout(coco_list.parent, dataset="Visual Genome, so that COCO's held-out images are left out,",
                 parts=(COCO_LIST,))  # fmt: skip
    flickr30k_list = directory / FLICKR30K_LIST
    left_out = Skipped()
    try:
        held_out = {"coco": {id_text(image["cocoid"]) for image in _held_out(coco_list)} - {""}}
        if flickr30k_list.is_file():
            held_out["flickr30k"] = {Path(image["filename"]).stem for image in _held_out(flickr30k_list)}
        rows = list(_rows(directory, held_out=held_out, left_out=left_out))
    except (LookupError, TypeError) as error:
        raise UserError(
            f"files of {str(directory)!r} are not as they were published: {type(error).__name__} {error}"
        ) from error
    return Collection(
        splits={"train": listed(rows, root=directory)},
        source=str(directory),
        files=(directory / IMAGES, directory / REGIONS, coco_list, *([flickr30k_list] if len(held_out) > 1 else [])),
        left_out={"train": left_out},
    )


def _held_out(file: Path) -> Iterator[Mapping[str, Any]]:
    return (image for image in read_list(file)["images"] if image["split"] in HELD_OUT)


def _rows(directory: Path, *, held_out: Mapping[str, set[str]], left_out: Skipped) -> Iterator[Row]:
    descriptions = {image["id" if "id" in image else "image_id"]: image for image in json_file(directory / REGIONS)}
    images = json_file(directory / IMAGES)
    listed_images = {image["image_id"] for image in images}
    for number in descriptions:
        if number not in listed_images:
            left_out.add("no_such_image", str(number))
    for image in images:
        identity = str(image["image_id"])
        if id_text(image["coco_id"]) in held_out["coco"]:
            left_out.add("held_out_in_coco", identity)
        elif id_text(image["flickr_id"]) in held_out.get("flickr30k", ()):
            left_out.add("held_out_in_flickr30k", identity)
        else:
            regions = descriptions.get(image["image_id"], {"regions": []})["regions"]
            captions = dict.fromkeys(caption_text(region["phrase"]).strip() for region in regions)
            # The two archives unpack to VG_100K and VG_100K_2; the address tells which.
            folder = Path(urlsplit(image["url"]).path).parent.name
            yield Row(f"{folder}/{identity}.jpg", list(captions), identity)
