"""Where in an image a model finds the words of its caption."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from mvlm_jax.errors import UserError
from mvlm_jax.report.page import Picture, picture

PALE = "#d6d9de"  # what patches without heat fade to


class HeatMap(NamedTuple):
    word: str
    picture: Picture


@dataclasses.dataclass(frozen=True)
class Attended:
    """Where the words of a caption are found in its image."""

    text: str
    remark: str
    image: Picture
    words: list[HeatMap]


def attended(model: Any, images: Sequence[Image.Image], captions: Sequence[str]) -> list[Attended]:
    """Empty for a model without heat maps, and where what it is shown gives none."""
    if "attention" not in model.task.verbs:
        return []
    cards = []
    for image, caption in zip(images, captions, strict=True):
        try:
            heat = model.attention(image, caption)
        except UserError:
            continue
        words = [
            HeatMap(word, picture(painted(heat.image, cells), alt=f"where the model finds: {word}"))
            for word, cells in zip(heat.words, heat.maps, strict=True)
        ]
        whole = picture(Image.fromarray(heat.image), alt=caption)
        cards.append(Attended(caption, f"match {heat.match:.0%}", whole, words))
    return cards


def painted(image: UInt8[np.ndarray, "H W 3"], heat: Float[np.ndarray, "rows columns"]) -> Image.Image:
    """The image in pale grey, with its own colours where it is hottest."""
    shown = Image.fromarray(image)
    strength = heat / heat.max() if heat.max() > 0 else np.zeros_like(heat)
    mask = Image.fromarray(np.uint8(255 * strength)).resize(shown.size, Image.Resampling.NEAREST)
    pale = Image.blend(shown.convert("L").convert("RGB"), Image.new("RGB", shown.size, PALE), 0.75)
    return Image.composite(shown, pale, mask)
