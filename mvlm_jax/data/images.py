"""Encoded bytes to pixels, and pixels to what a model sees."""

import io
import math
import re
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
RATIO = (3 / 4, 4 / 3)  # width : height of a random crop
GREY = (128, 128, 128)  # fills what a shear, a shift or a turn uncovers
SHIFT = 10 / 256  # of the side, at magnitude 10: ALBEF's 10 pixels of 256
OPERATION_PROBABILITY = 0.5
SIDE_WORDS = re.compile(r"\b(?:left|right)(?:most|wards?|hand(?:ed)?|side)?\b", re.IGNORECASE)


class UndecodableImage(ValueError):
    """`reason` is one of absent, empty, unrecognized, too_large, truncated, unsupported_mode, corrupt."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


def decode_image(data: bytes, *, max_pixels: int, size_hint: int | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """Upright RGB pixels of an encoded image.

    Transparency is laid on white; 16-bit grey is scaled to 8 bits. With `size_hint`, a JPEG may come back smaller,
    yet with no side below `size_hint` pixels that was not below it before.

    Raises:
      UndecodableImage: always this one, whatever is wrong; more than `max_pixels` (or twice Pillow's own limit)
        is refused by the header, before anything is decoded.
    """
    if not data:
        raise UndecodableImage("empty", "0 bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UndecodableImage("too_large", str(error)) from error
    except Image.UnidentifiedImageError as error:
        raise UndecodableImage("unrecognized", f"{len(data)} bytes that are none of {', '.join(FORMATS)}") from error
    except Exception as error:  # parsers of damaged headers raise whatever they trip over
        raise UndecodableImage("corrupt", str(error)) from error
    with image:
        if image.width * image.height > max_pixels:
            raise UndecodableImage("too_large", f"{image.width} x {image.height} is over {max_pixels} pixels")
        try:
            if size_hint is not None:
                image.draft(None, (size_hint, size_hint))
            image.load()
            upright = ImageOps.exif_transpose(image)
        except OSError as error:
            reason = "truncated" if "truncated" in str(error) else "corrupt"
            raise UndecodableImage(reason, str(error)) from error
        except Exception as error:  # as above, for damaged bodies
            raise UndecodableImage("corrupt", str(error)) from error
        return np.array(to_rgb(upright))


def evaluate_transform(image: UInt8[np.ndarray, "H W 3"], *, size: int) -> UInt8[np.ndarray, "S S 3"]:
    """The whole image squeezed to `size` x `size` pixels, as ALBEF does."""
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def augment(
    image: UInt8[np.ndarray, "H W 3"],
    *,
    rng: np.random.Generator,
    caption: str,
    size: int,
    min_scale: float,
    flip: bool,
    operations: int,
    magnitude: int,
) -> UInt8[np.ndarray, "S S 3"]:
    """Random crop of at least `min_scale` of the area, flip, and RandAugment without colour, to `size` pixels a side.

    `magnitude` is 0 to 10. An image whose caption says left or right is never flipped.
    """
    picture = Image.fromarray(image)
    box = random_crop(rng, width=picture.width, height=picture.height, min_scale=min_scale)
    picture = picture.resize((size, size), Image.Resampling.BICUBIC, box=box)
    # Drawn even where it is not used: two captions of one image then get the same crop and operations.
    turned = rng.random() < 0.5
    if flip and turned and not SIDE_WORDS.search(caption):
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for name in rng.choice(sorted(OPERATIONS), size=operations):
        applied, negative = rng.random(2) < (OPERATION_PROBABILITY, 0.5)
        if applied:
            picture = OPERATIONS[name](picture, magnitude / 10, -1 if negative else 1)
    return np.array(picture)


def random_crop(
    rng: np.random.Generator, *, width: int, height: int, min_scale: float
) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) in pixels; the largest centred crop of a legal ratio after ten vain draws."""
    for _ in range(10):
        area = width * height * rng.uniform(min_scale, 1.0)
        ratio = math.exp(rng.uniform(*np.log(RATIO)))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return _inside(left, top, left + w, top + h, width=width, height=height)
    ratio = min(max(width / height, RATIO[0]), RATIO[1])
    w, h = min(width, height * ratio), min(height, width / ratio)
    left, top = (width - w) / 2, (height - h) / 2
    return _inside(left, top, left + w, top + h, width=width, height=height)


def _inside(
    left: float, top: float, right: float, bottom: float, *, width: int, height: int
) -> tuple[float, float, float, float]:
    # Pillow refuses a box that rounding pushed over the border by one part in 1e16.
    return max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow's own conversion clips at 255 instead of scaling.
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise UndecodableImage("unsupported_mode", f"{image.mode} with levels outside 16 bits")
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert("RGB")
    try:
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, layer).convert("RGB")
        if image.mode in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"):
            return image.convert("RGB")
    except (OSError, ValueError) as error:
        raise UndecodableImage("corrupt", str(error)) from error
    raise UndecodableImage("unsupported_mode", image.mode)


def _affine(picture: Image.Image, matrix: tuple[float | int, ...]) -> Image.Image:
    return picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR, fillcolor=GREY
    )


def _enhanced(enhancer: Callable[[Image.Image], ImageEnhance._Enhance], picture: Image.Image, level: float):
    return enhancer(picture).enhance(level * 1.8 + 0.1)


# (picture, level in [0, 1], sign) -> picture; the largest shear is 0.3, the largest turn 30 degrees.
OPERATIONS: dict[str, Callable[[Image.Image, float, int], Image.Image]] = {
    "identity": lambda picture, level, sign: picture,
    "autocontrast": lambda picture, level, sign: ImageOps.autocontrast(picture),
    "equalize": lambda picture, level, sign: ImageOps.equalize(picture),
    "brightness": lambda picture, level, sign: _enhanced(ImageEnhance.Brightness, picture, level),
    "sharpness": lambda picture, level, sign: _enhanced(ImageEnhance.Sharpness, picture, level),
    "shear_x": lambda picture, level, sign: _affine(picture, (1, sign * 0.3 * level, 0, 0, 1, 0)),
    "shear_y": lambda picture, level, sign: _affine(picture, (1, 0, 0, sign * 0.3 * level, 1, 0)),
    "translate_x": lambda picture, level, sign: _affine(picture, (1, 0, sign * SHIFT * picture.width * level, 0, 1, 0)),
    "translate_y": lambda picture, level, sign: _affine(
        picture, (1, 0, 0, 0, 1, sign * SHIFT * picture.height * level)
    ),
    "rotate": lambda picture, level, sign: picture.rotate(
        sign * 30 * level, resample=Image.Resampling.BILINEAR, fillcolor=GREY
    ),
}
