"""What a search found, as one page of thumbnails."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from mvlm_jax.data.formats.listed import read_image, utf8
from mvlm_jax.data.images import UnusableImage, decode_image
from mvlm_jax.report.page import THUMBNAIL, Picture, render, thumbnail, write_page
from mvlm_jax.search.query import Found


class Card(NamedTuple):
    picture: Picture
    name: str
    scores: str


def write_search(
    file: Path, results: Mapping[str, Sequence[Found]], *, folder: Path, facts: Sequence[str], max_pixels: int
) -> Path:
    """
    Args:
      results: by the query.
      facts: about the folder, a line each.
      max_pixels: an image whose header says more is not drawn.

    Raises:
      UserError: the page cannot be written.
    """
    queries = [(utf8(query), [_card(found, folder, max_pixels) for found in hits]) for query, hits in results.items()]
    html = render("search.html", title=f"Search in {utf8(folder.name)}", queries=queries, facts=facts)
    return write_page(file, html, flag="--page")


def _card(found: Found, folder: Path, max_pixels: int) -> Card:
    name = utf8(str(found.path.relative_to(folder)))
    scores = f"cosine {found.similarity:.3f}"
    if found.match is not None:
        scores = f"match {found.match:.1%}, {scores}"
    return Card(thumbnail(_image(found.path, max_pixels), name), name, scores)


def _image(path: Path, max_pixels: int) -> Image.Image:
    try:
        return Image.fromarray(decode_image(read_image(path), max_pixels=max_pixels, size_hint=THUMBNAIL))
    except UnusableImage:  # it was removed since
        return Image.new("RGB", (THUMBNAIL, THUMBNAIL), "grey")
