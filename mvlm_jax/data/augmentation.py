"""What a training run makes of an image: a random crop, a flip, and RandAugment without operations on colour.

The operations and their magnitudes are ALBEF's, which computes them with OpenCV too.
"""

import dataclasses
import functools
import math
import random
import re
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import UInt8

from mvlm_jax.data.images import EncodedImage, ImageSpec

RATIO = (3 / 4, 4 / 3)  # width : height of a random crop
GREY = (128, 128, 128)  # fills what a shear, a shift or a turn uncovers
SHIFT = 10 / 256  # of the side, at magnitude 10: ALBEF's 10 pixels of 256
OPERATION_PROBABILITY = 0.5
SIDE_WORDS = re.compile(r"\b(?:left|right)(?:most|wards?|hand(?:ed)?|side)?\b", re.IGNORECASE)

# Images are worked on side by side, by Grain's threads or processes: more threads for each would only get in the way.
cv2.setNumThreads(0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
    """How training images are augmented; the fields of config.data.augment."""

    min_scale: float  # smallest area of the crop, as a part of the image
    flip: bool  # half of the images, except where the text says left or right
    operations: int  # of RandAugment
    magnitude: int  # of each operation, 0 to 10


def training_image(
    data: bytes, *, rng: random.Random, caption: str, spec: ImageSpec, augment: Augment
) -> UInt8[np.ndarray, "S S 3"]:
    """A random crop, flipped and distorted. Of a JPEG no more pixels are decoded than the crop needs.

    Raises:
      UndecodableImage: as `decode_image`.
    """
    size, encoded = spec.size, EncodedImage(data, max_pixels=spec.max_pixels)
    box = random_crop(rng, width=encoded.width, height=encoded.height, min_scale=augment.min_scale)
    picture = resized_crop(decode_for_crop(encoded, box=box, size=size), box=box, width=encoded.width, size=size)
    if SIDE_WORDS.search(caption):
        augment = dataclasses.replace(augment, flip=False)
    return distorted(picture, rng=rng, augment=augment)


def random_crop(rng: random.Random, *, width: int, height: int, min_scale: float) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) in pixels; the largest centred crop of a legal ratio after ten vain draws."""
    for _ in range(10):
        area = width * height * rng.uniform(min_scale, 1.0)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return left, top, left + w, top + h
    ratio = min(max(width / height, RATIO[0]), RATIO[1])
    w, h = min(width, height * ratio), min(height, width / ratio)
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h


def decode_for_crop(
    image: EncodedImage, *, box: tuple[float, float, float, float], size: int
) -> UInt8[np.ndarray, "H W 3"]:
    """The whole image, with no more pixels than a crop of it to `size` pixels a side needs, where the codec permits."""
    left, top, right, bottom = box
    return image.pixels(scale=min(1.0, size / min(right - left, bottom - top)))


def resized_crop(
    image: UInt8[np.ndarray, "H W 3"], *, box: tuple[float, float, float, float], width: int, size: int
) -> UInt8[np.ndarray, "S S 3"]:
    """What is in a box (left, top, right, bottom) on an image of `width` pixels, of which fewer may be left by now.

    The box is taken to the nearest whole pixels, at least one.
    """
    scale = image.shape[1] / width
    left, top, right, bottom = (round(scale * edge) for edge in box)
    left, top = min(left, image.shape[1] - 1), min(top, image.shape[0] - 1)
    crop = image[top : max(bottom, top + 1), left : max(right, left + 1)]
    # The mean over areas where pixels are given up, so that none is passed over; a cubic where they are made up.
    shrinks = min(crop.shape[:2]) >= size
    return cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def distorted(image: UInt8[np.ndarray, "S S 3"], *, rng: random.Random, augment: Augment) -> UInt8[np.ndarray, "S S 3"]:
    """Flipped with a probability of one half, then distorted by random operations."""
    # Drawn even where it is not used: two captions of one image then get the same crop and operations.
    if (rng.random() < 0.5) and augment.flip:
        image = cv2.flip(image, 1)
    for name in rng.choices(NAMES, k=augment.operations):
        applied, negative = rng.random() < OPERATION_PROBABILITY, rng.random() < 0.5
        if applied:
            image = OPERATIONS[name](image, augment.magnitude / 10, -1 if negative else 1)
    return image


def _autocontrast(image: np.ndarray, level: float, sign: int) -> np.ndarray:
    ranges = [cv2.minMaxLoc(plane)[:2] for plane in cv2.split(image)]
    # A channel of one level is left as it is.
    ranges = [(low, high) if high > low else (0, 255) for low, high in ranges]
    if all(range_ == (0, 255) for range_ in ranges):
        return image
    factors = [255 / (high - low) for low, high in ranges]
    # Pillow cuts fractions off where OpenCV rounds.
    shifts = [-low * factor - 0.499 for (low, _), factor in zip(ranges, factors)]
    return cv2.transform(image, np.column_stack([np.diag(factors), shifts]))


def _equalize(image: np.ndarray, level: float, sign: int) -> np.ndarray:
    counts = np.stack([cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel() for channel in range(3)])
    counts = counts.astype(np.int64)
    total = image.shape[0] * image.shape[1]
    # As Pillow: the brightest level that occurs is left out of the step.
    brightest = 255 - (counts[:, ::-1] != 0).argmax(1)
    step = (total - counts[CHANNELS, brightest])[:, None] // 255
    darker = np.cumsum(counts, axis=1) - counts
    table = np.where(step, np.minimum((step // 2 + darker) // np.maximum(step, 1), 255), LEVELS)
    return cv2.LUT(image, np.ascontiguousarray(table.T, np.uint8)[None])


def _sharpness(image: np.ndarray, level: float, sign: int) -> np.ndarray:
    # Away from Pillow's blur: the mean of nine pixels, the middle one of which counts five times.
    means = cv2.blur(image, (3, 3), borderType=cv2.BORDER_REPLICATE)
    away = (1 - _strength(level)) / 13
    return cv2.addWeighted(image, _strength(level) + 4 * away, means, 9 * away, 0)


def _rotate(image: np.ndarray, level: float, sign: int) -> np.ndarray:
    middle = (image.shape[0] - 1) / 2
    turn = cv2.getRotationMatrix2D((middle, middle), -sign * 30 * level, 1.0)
    return _warped(image, tuple(map(tuple, turn.tolist())))


def _strength(level: float) -> float:
    return level * 1.8 + 0.1  # 1 leaves the image as it is


def _shifted(image: np.ndarray, level: float, sign: int) -> np.ndarray:
    """Moved by whole pixels along the first axis, towards its start where `sign` is positive."""
    pixels = round(SHIFT * len(image) * level)
    moved = np.full_like(image, GREY[0])
    here, there = slice(pixels, None), slice(0, len(image) - pixels)
    moved[there if sign > 0 else here] = image[here if sign > 0 else there]
    return moved


def _warped(image: np.ndarray, matrix: tuple[tuple[float, ...], ...]) -> np.ndarray:
    places, weights = _lookup(matrix, len(image))
    return cv2.remap(image, places, weights, cv2.INTER_LINEAR, borderValue=GREY)


@functools.lru_cache(maxsize=16)
def _lookup(matrix: tuple[tuple[float, ...], ...], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel of the result lies in the image, in OpenCV's fixed-point form.

    A run has one magnitude and hence six such tables; looked up, a warp takes two thirds of its time.
    """
    down, across = np.mgrid[:size, :size].astype(np.float32)
    (a, b, c), (d, e, f) = matrix
    return cv2.convertMaps(a * across + b * down + c, d * across + e * down + f, cv2.CV_16SC2)


LEVELS, CHANNELS = np.arange(256), np.arange(3)
# (square image, level in [0, 1], sign) -> image; the largest shear is 0.3, the largest turn 30 degrees.
OPERATIONS: dict[str, Callable[[np.ndarray, float, int], np.ndarray]] = {
    "identity": lambda image, level, sign: image,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "brightness": lambda image, level, sign: cv2.convertScaleAbs(image, alpha=_strength(level)),
    "sharpness": _sharpness,
    "shear_x": lambda image, level, sign: _warped(image, ((1.0, sign * 0.3 * level, 0.0), (0.0, 1.0, 0.0))),
    "shear_y": lambda image, level, sign: _warped(image, ((1.0, 0.0, 0.0), (sign * 0.3 * level, 1.0, 0.0))),
    "translate_x": lambda image, level, sign: _shifted(image.swapaxes(0, 1), level, sign).swapaxes(0, 1),
    "translate_y": _shifted,
    "rotate": _rotate,
}
NAMES = tuple(OPERATIONS)
