"""What `Inference.attention` gives: where in an image each word of a text looks."""

import dataclasses

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

SIDE, GAP, LINE, COLUMNS = 132, 8, 18, 6  # pixels of an image and between two; of a word's line; images in a row
INK, PAPER = "#1c2430", "white"
HOT = np.array([214, 39, 40])  # what the hottest patch is painted with


@dataclasses.dataclass(frozen=True)
class WordHeat:
    """The heat of each patch for each word, at least 0 and in no unit: compare patches of one word, not words."""

    words: tuple[str, ...]
    maps: Float[np.ndarray, "words rows columns"]
    match: float  # the probability that the text describes the image
    image: UInt8[np.ndarray, "H W 3"]  # as the model is shown it

    def __repr__(self) -> str:
        rows, columns = self.maps.shape[1:]
        return f"WordHeat({' '.join(self.words)!r}, {rows} x {columns} patches, match={self.match:.3f})"

    def picture(self) -> Image.Image:
        """The image, and once more for each word with its heat painted over it."""
        shown = Image.fromarray(self.image)
        cells = [(f"match {self.match:.2f}", shown)]
        cells += [(word, painted(shown, heat)) for word, heat in zip(self.words, self.maps)]
        columns, rows = min(COLUMNS, len(cells)), -(-len(cells) // COLUMNS)
        canvas = Image.new("RGB", (columns * (SIDE + GAP) + GAP, rows * (SIDE + LINE + GAP) + GAP), PAPER)
        pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
        for place, (word, image) in enumerate(cells):
            row, column = divmod(place, COLUMNS)
            left, top = GAP + column * (SIDE + GAP), GAP + row * (SIDE + LINE + GAP)
            canvas.paste(image.resize((SIDE, SIDE), Image.Resampling.NEAREST), (left, top + LINE))
            pen.text((left, top), word, fill=INK, font=font)
        return canvas


def painted(image: Image.Image, heat: Float[np.ndarray, "rows columns"]) -> Image.Image:
    """The image in grey, its patches the redder the hotter they are; the hottest as red as it gets."""
    strength = heat / heat.max() if heat.max() > 0 else np.zeros_like(heat)
    mask = Image.fromarray((200 * strength).astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
    return Image.composite(Image.new("RGB", image.size, tuple(HOT.tolist())), image.convert("L").convert("RGB"), mask)
