"""What a training run makes of an image: a random crop, a flip, and RandAugment without operations on colour.

The operations and their magnitudes are ALBEF's, which computes them with OpenCV too.
"""

import dataclasses
import functools
import math
import random
import re
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Int, Int16, UInt8

from mvlm_jax.data.images import EncodedImage, ImageSpec

RATIO = (3 / 4, 4 / 3)  # width : height of a random crop
LOG_RATIO = (math.log(RATIO[0]), math.log(RATIO[1]))
GREY = (128, 128, 128)  # fills what a shear, a shift or a turn uncovers
MOST_SHEAR = 0.3  # pixels a row, at magnitude 10
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


class Distortions(NamedTuple):
    """A flip and the operations after it, drawn for one image."""

    flipped: bool
    operations: tuple[tuple[str, int], ...]  # name and sign of each, in order
    level: float  # of each, in [0, 1]

    def __bool__(self) -> bool:
        return self.flipped or bool(self.operations)

    def applied(
        self, image: UInt8[np.ndarray, "S S 3"], *, out: UInt8[np.ndarray, "S S 3"] | None = None
    ) -> UInt8[np.ndarray, "S S 3"]:
        """
        Args:
          out: what the last of them is written to, and what is returned; None: a new array, or `image` itself.
        """
        if self.flipped:
            image = cv2.flip(image, 1, dst=None if self.operations else out)
        last = len(self.operations) - 1
        for number, (name, sign) in enumerate(self.operations):
            image = OPERATIONS[name](image, self.level, sign, out if number == last else None)
        if out is None or image is out:
            return image
        np.copyto(out, image)  # the last operation left the image as it is
        return out


def drawn_distortions(rng: random.Random, *, caption: str, augment: Augment) -> Distortions:
    """A flip with a probability of one half, then random operations, each applied with a probability of one half."""
    # Drawn even where it is not used: two captions of one image then get the same crop and operations.
    flipped = rng.random() < 0.5 and augment.flip and not SIDE_WORDS.search(caption)
    names = [NAMES[int(rng.random() * len(NAMES))] for _ in range(augment.operations)]
    operations = []
    for name in names:
        applied, negative = rng.random() < OPERATION_PROBABILITY, rng.random() < 0.5
        if applied and name != "identity":
            operations.append((name, -1 if negative else 1))
    return Distortions(flipped, tuple(operations), augment.magnitude / 10)


class PlannedImage(NamedTuple):
    """What a training run makes of an image: its header has been read, and its random numbers are drawn."""

    encoded: EncodedImage
    box: tuple[float, float, float, float]
    distortions: Distortions
    size: int  # pixels a side of the result
    decoded: UInt8[np.ndarray, "H W 3"] | None  # None: not decoded yet

    @property
    def scale(self) -> float:
        """Of the image's sides, as far as the crop needs its pixels."""
        return _scale(self.box, size=self.size)

    def made(self, out: UInt8[np.ndarray, "S S 3"] | None = None) -> UInt8[np.ndarray, "S S 3"]:
        """Call it once.

        Args:
          out: what the image is written to; None: a new array.

        Raises:
          UndecodableImage: what is wrong with the body.
        """
        decoded = self.decoded
        if decoded is None:
            decoded = decode_for_crop(self.encoded, box=self.box, size=self.size)
        target = None if self.distortions else out
        crop = resized_crop(decoded, box=self.box, width=self.encoded.width, size=self.size, out=target)
        return self.distortions.applied(crop, out=out)


def planned_image(
    data: bytes, *, rng: random.Random, caption: str, spec: ImageSpec, augment: Augment, decode: bool = False
) -> PlannedImage:
    """Draws the random numbers of an image: of its crop, then of its distortions.

    Args:
      decode: decodes the image between the two. Of an image whose body is broken only the numbers of the crop are then
        drawn, which the ones of an image that replaces it follow.

    Raises:
      UndecodableImage: by the header, and with `decode` also by the body.
    """
    encoded = EncodedImage(data, max_pixels=spec.max_pixels)
    box = random_crop(rng, width=encoded.width, height=encoded.height, min_scale=augment.min_scale)
    decoded = decode_for_crop(encoded, box=box, size=spec.size) if decode else None
    return PlannedImage(encoded, box, drawn_distortions(rng, caption=caption, augment=augment), spec.size, decoded)


def random_crop(rng: random.Random, *, width: int, height: int, min_scale: float) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) in pixels; the largest centred crop of a legal ratio after ten vain draws."""
    for _ in range(10):
        area = width * height * rng.uniform(min_scale, 1.0)
        ratio = math.exp(rng.uniform(*LOG_RATIO))
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
    return image.pixels(scale=_scale(box, size=size))


def _scale(box: tuple[float, float, float, float], *, size: int) -> float:
    left, top, right, bottom = box
    return min(1.0, size / min(right - left, bottom - top))


def resized_crop(
    image: UInt8[np.ndarray, "H W 3"],
    *,
    box: tuple[float, float, float, float],
    width: int,
    size: int,
    out: UInt8[np.ndarray, "S S 3"] | None = None,
) -> UInt8[np.ndarray, "S S 3"]:
    """What is in a box (left, top, right, bottom) on an image of `width` pixels, of which fewer may be left by now.

    The box is taken to the nearest whole pixels, at least one.

    Args:
      out: what the crop is written to; None: a new array.
    """
    scale = image.shape[1] / width
    left, top, right, bottom = (round(scale * edge) for edge in box)
    left, top = min(left, image.shape[1] - 1), min(top, image.shape[0] - 1)
    crop = image[top : max(bottom, top + 1), left : max(right, left + 1)]
    # The mean over areas where pixels are given up, so that none is passed over; a cubic where they are made up.
    shrinks = min(crop.shape[:2]) >= size
    return cv2.resize(crop, (size, size), dst=out, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


Out = np.ndarray | None  # what an operation writes to; it may return its argument unchanged instead


def _autocontrast(image: np.ndarray, level: float, sign: int, out: Out = None) -> np.ndarray:
    ranges = [cv2.minMaxLoc(plane)[:2] for plane in cv2.split(image)]
    # A channel of one level is left as it is.
    ranges = [(low, high) if high > low else (0, 255) for low, high in ranges]
    if all(range_ == (0, 255) for range_ in ranges):
        return image
    factors = [255 / (high - low) for low, high in ranges]
    # Pillow cuts fractions off where OpenCV rounds.
    shifts = [-low * factor - 0.499 for (low, _), factor in zip(ranges, factors)]
    return cv2.transform(image, np.column_stack([np.diag(factors), shifts]), dst=out)


def _equalize(image: np.ndarray, level: float, sign: int, out: Out = None) -> np.ndarray:
    planes = cv2.split(image)
    counts = np.array([cv2.calcHist([plane], [0], None, [256], [0, 256]).ravel() for plane in planes], np.int64)
    total = image.shape[0] * image.shape[1]
    # As Pillow: the brightest level that occurs is left out of the step.
    brightest = 255 - (counts[:, ::-1] != 0).argmax(1)
    step = (total - counts[CHANNELS, brightest])[:, None] // 255
    darker = np.cumsum(counts, axis=1) - counts
    tables = np.where(step, np.minimum((step // 2 + darker) // np.maximum(step, 1), 255), LEVELS).astype(np.uint8)
    # A table for each plane is looked up faster than one of three channels.
    return cv2.merge([cv2.LUT(plane, table) for plane, table in zip(planes, tables)], dst=out)


def _brightness(image: np.ndarray, level: float, sign: int, out: Out = None) -> np.ndarray:
    return cv2.convertScaleAbs(image, dst=out, alpha=_strength(level))


def _sharpness(image: np.ndarray, level: float, sign: int, out: Out = None) -> np.ndarray:
    # Away from Pillow's blur: the mean of nine pixels, the middle one of which counts five times.
    means = cv2.blur(image, (3, 3), borderType=cv2.BORDER_REPLICATE)
    away = (1 - _strength(level)) / 13
    return cv2.addWeighted(image, _strength(level) + 4 * away, means, 9 * away, 0, dst=out)


def _shear_x(image: np.ndarray, level: float, sign: int, out: Out = None) -> np.ndarray:
    size, rows = len(image), _sheared_rows(sign * MOST_SHEAR * level, len(image))
    padded = cv2.copyMakeBorder(image, 0, 0, rows.left, rows.right, cv2.BORDER_CONSTANT, value=GREY)
    # Every run of size + 1 pixels, of which each row of the result takes one.
    runs = np.ndarray((size * (padded.shape[1] - 1), 3 * (size + 1)), np.uint8, padded, strides=(3, 1))
    pixels = runs[rows.starts].astype(np.int16)
    here, next_ = pixels[:, :-3], pixels[:, 3:]
    mixed = next_ - here
    mixed *= rows.parts
    mixed += 16
    mixed >>= 5
    mixed += here
    if out is None:
        out = np.empty_like(image)
    np.copyto(out.reshape(size, -1), mixed, casting="unsafe")
    return out


def _shear_y(image: np.ndarray, level: float, sign: int, out: Out = None) -> np.ndarray:
    # A shear along the rows and two transpositions take less time than one along the columns.
    return cv2.transpose(_shear_x(cv2.transpose(image), level, sign), dst=out)


def _translate_x(image: np.ndarray, level: float, sign: int, out: Out = None) -> np.ndarray:
    return _shifted(image, level, sign, axis=1, out=out)


def _translate_y(image: np.ndarray, level: float, sign: int, out: Out = None) -> np.ndarray:
    return _shifted(image, level, sign, axis=0, out=out)


def _rotate(image: np.ndarray, level: float, sign: int, out: Out = None) -> np.ndarray:
    middle = (image.shape[0] - 1) / 2
    turn = cv2.getRotationMatrix2D((middle, middle), -sign * 30 * level, 1.0)
    places, weights = _lookup(tuple(map(tuple, turn.tolist())), len(image))
    return cv2.remap(image, places, weights, cv2.INTER_LINEAR, dst=out, borderValue=GREY)


def _strength(level: float) -> float:
    return level * 1.8 + 0.1  # 1 leaves the image as it is


def _shifted(image: np.ndarray, level: float, sign: int, *, axis: int, out: Out) -> np.ndarray:
    """Moved by whole pixels along an axis, towards its start where `sign` is positive."""
    pixels = round(SHIFT * len(image) * level)
    here = (slice(None),) * axis + (slice(pixels, None),)
    there = (slice(None),) * axis + (slice(0, len(image) - pixels),)
    edges = [0, 0, 0, 0]
    edges[2 * axis + (sign > 0)] = pixels
    top, bottom, left, right = edges
    moved = image[here if sign > 0 else there]
    return cv2.copyMakeBorder(moved, top, bottom, left, right, cv2.BORDER_CONSTANT, dst=out, value=GREY)


class _ShearedRows(NamedTuple):
    """Where the rows of a sheared image lie in one with a border of `left` and `right` pixels."""

    left: int
    right: int
    starts: Int[np.ndarray, " S"]  # index of the first pixel of each row
    parts: Int16[np.ndarray, "S 1"]  # how far the row lies towards the next pixel, in 1/32


@functools.lru_cache(maxsize=4)
def _sheared_rows(factor: float, size: int) -> _ShearedRows:
    """What `cv2.remap` would do, as the same for a whole row: in half the time, to the last bit."""
    places, weights = _lookup(((1.0, factor, 0.0), (0.0, 1.0, 0.0)), size)
    shifts, parts = places[:, 0, 0].astype(int), weights[:, :1].astype(np.int16)
    left, right = max(0, -int(shifts.min())), max(0, int(shifts.max())) + 1
    return _ShearedRows(left, right, np.arange(size) * (left + size + right) + left + shifts, parts)


@functools.lru_cache(maxsize=16)
def _lookup(matrix: tuple[tuple[float, ...], ...], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel of the result lies in the image, in OpenCV's fixed-point form.

    A run has one magnitude and hence few such tables; looked up, a warp takes two thirds of its time.
    """
    down, across = np.mgrid[:size, :size].astype(np.float32)
    (a, b, c), (d, e, f) = matrix
    return cv2.convertMaps(a * across + b * down + c, d * across + e * down + f, cv2.CV_16SC2)


LEVELS, CHANNELS = np.arange(256), np.arange(3)
# (square image, level in [0, 1], sign, out) -> image; the largest shear is 0.3, the largest turn 30 degrees.
OPERATIONS: dict[str, Callable[..., np.ndarray]] = {
    "identity": lambda image, level, sign, out=None: image,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
}
NAMES = tuple(OPERATIONS)
