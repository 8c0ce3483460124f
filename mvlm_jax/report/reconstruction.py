"""A picture of what a model rebuilds: masked images beside their caption, a wrong one and none, and masked captions."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mvlm_jax.errors import UserError
from mvlm_jax.files import atomically
from mvlm_jax.inference import Inference
from mvlm_jax.report.batch import masked_image
from mvlm_jax.tasks.pretrain import Pretrain
from mvlm_jax.training.streams import Streams

COLUMNS = ("image", "what the model sees", "with its caption", "with a wrong caption", "with no caption")
SIDE = 132  # pixels, at least, of an image that is shown
GAP, MARGIN, LINE, FONT = 8, 12, 17, 13  # pixels; of text, the height of a line and of its letters
INK, PALE, RIGHT, WRONG = "#1c2430", "#667080", "#1b7a3d", "#b3261e"


class Filled(NamedTuple):
    """A word of a caption; `guess` is what the model put in its place, None where it was not hidden."""

    word: str
    guess: str | None = None

    @property
    def is_right(self) -> bool:
        """Whether the guess is the word, whose comma was not hidden."""
        return self.guess == self.word.rstrip(",")


class Rebuilt(NamedTuple):
    """One pair: the columns of its row, and the captions below them."""

    images: list[Image.Image]
    caption: str
    wrong_caption: str
    beside_own: list[Filled]
    beside_wrong: list[Filled]
    alone: Sequence[Filled] = ()  # beside no image


def write_reconstruction(
    model: Inference, images: Sequence[Image.Image], captions: Sequence[str], *, file: Path, seed: int = 0
) -> Path:
    """Writes the picture of `rebuild` as a PNG.

    Raises:
      UserError: `file` cannot be written.
    """
    picture = draw(rebuild(model, images, captions, seed=seed))
    try:
        with atomically(file) as partial:
            # 256 colours: the picture goes into a page, and nobody measures it.
            picture.quantize(256, dither=Image.Dither.NONE).save(partial, "PNG", optimize=True)
    except OSError as error:
        raise UserError(f"the picture cannot be written to {str(file)!r}: {error.strerror}") from error
    return file


def rebuild(
    model: Inference, images: Sequence[Image.Image], captions: Sequence[str], *, seed: int = 0
) -> list[Rebuilt]:
    """Each pair with as much of it hidden as in training. The wrong partner is that of the next pair.

    Words are hidden whole, and each is filled by one token. Those that the cut of a long caption takes from the model
    are not hidden.

    Raises:
      UserError: a model of this task rebuilds nothing, or an image cannot be read.
    """
    model.check_verb("reconstruct")
    masking, rng = cast(Pretrain, model.task).masking, np.random.default_rng(seed)
    masks = masking.image_mask(Streams(seed=seed, step=jnp.int32(0)).key("mask"), batch=len(images)).patch_mask
    rebuilt = []
    for index, (image, caption, hidden) in enumerate(zip(images, captions, np.asarray(masks), strict=True)):
        other = (index + 1) % len(images)
        small = model.pixels([image])[0]
        seen = masked_image(small, hidden)
        partners = (caption, captions[other], None)
        grid = hidden.reshape(masking.grid, masking.grid)
        painted = [model.reconstruct(image, partner, grid) for partner in partners]
        words = caption.split()
        readable = words_seen(model, words)
        blanks = set(rng.permutation(readable)[: masking.masked_tokens(readable)].tolist())
        filled = [list(_filled(model, words, blanks, partner)) for partner in (image, images[other], None)]
        columns = [Image.fromarray(small), Image.fromarray(seen), *painted]
        rebuilt.append(Rebuilt(columns, caption, captions[other], *filled))
    return rebuilt


def words_seen(model: Inference, words: Sequence[str]) -> int:
    """How many of the first words the model sees whole; with some of them hidden, no fewer."""
    limit, tokenizer = model.config.text.max_length, model.tokenizer
    beginnings = [" ".join(words[: count + 1]) for count in range(len(words))]
    tokens = tokenizer.encode(beginnings, max_length=limit + 1)
    return int(((tokens != tokenizer.ids.pad).sum(axis=1) <= limit).sum())


def draw(rebuilt: Sequence[Rebuilt]) -> Image.Image:
    """The rows below each other, RGB."""
    scale = -(-SIDE // rebuilt[0].images[0].width)
    side = scale * rebuilt[0].images[0].width
    width = 2 * MARGIN + len(COLUMNS) * side + (len(COLUMNS) - 1) * GAP
    # Drawn twice: how many lines the texts take is known only then.
    height = _paint(Image.new("RGB", (width, 1), "white"), rebuilt, side=side)
    picture = Image.new("RGB", (width, height), "white")
    _paint(picture, rebuilt, side=side)
    return picture


def _paint(picture: Image.Image, rebuilt: Sequence[Rebuilt], *, side: int) -> int:
    """The height that it takes."""
    canvas, y = ImageDraw.Draw(picture), MARGIN
    places = [MARGIN + column * (side + GAP) for column in range(len(COLUMNS))]
    for x, name in zip(places, COLUMNS, strict=True):
        canvas.text((x, y), name, fill=INK, font=_font())
    y += LINE + 2
    for row in rebuilt:
        for x, image in zip(places, row.images, strict=True):
            picture.paste(image.resize((side, side), Image.Resampling.NEAREST), (x, y))
        y += side + 4
        for label, words in (
            ("its caption:", [(word, INK) for word in row.caption.split()]),
            ("the wrong one:", [(word, INK) for word in row.wrong_caption.split()]),
            ("words filled beside its image:", list(_coloured(row.beside_own))),
            ("beside a wrong image:", list(_coloured(row.beside_wrong))),
        ):
            y = _write(canvas, [*((part, PALE) for part in label.split()), *words], y=y, right=picture.width - MARGIN)
        y += GAP
    return y + MARGIN - GAP


def _write(canvas: ImageDraw.ImageDraw, words: Sequence[tuple[str, str]], *, y: int, right: int) -> int:
    """Words of one text, each in its colour, in as many lines as they need; returns where the next text begins."""
    x, space = float(MARGIN), canvas.textlength(" ", font=_font())
    for word, colour in words:
        length = canvas.textlength(word, font=_font())
        if x > MARGIN and x + length > right:
            x, y = float(MARGIN), y + LINE
        canvas.text((x, y), word, fill=colour, font=_font())
        x += length + space
    return y + LINE


def _coloured(filled: Sequence[Filled]) -> Iterator[tuple[str, str]]:
    for one in filled:
        word, guess = one
        if guess is None:
            yield word, INK
        else:
            yield f"[{guess}]", RIGHT if one.is_right else WRONG


def _filled(model: Inference, words: Sequence[str], blanks: set[int], image: Image.Image | None) -> Iterator[Filled]:
    if not blanks:  # nothing of the caption is seen whole
        yield from map(Filled, words)
        return
    # A comma belongs to no word.
    text = " ".join(
        model.mask_token + word[len(word.rstrip(",")) :] if place in blanks else word
        for place, word in enumerate(words)
    )
    guesses = iter(model.fill_mask(text, image, top=1))
    for place, word in enumerate(words):
        yield Filled(word, next(guesses)[0][0] if place in blanks else None)


@functools.cache
def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(FONT)
