"""Faults of one image, and a fingerprint to find copies of it by."""

import hashlib
import io
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8, UInt64
from PIL import Image

from mvlm_jax.data.images import FORMATS, UndecodableImage, decode_image

SIDE, FREQUENCIES, CELLS = 64, 16, 8  # a side, of the copy that is hashed, of its spectrum and of its colours
WEAKEST_WAVE = 0.2  # levels; a codec changes what is weaker, and in smooth pictures most waves are
LARGEST_ASPECT = 4.0
BLANK_PART, BLANK_LEVELS = 0.995, 8  # so much of a blank image is so near its commonest colour
GREY_PART = 1 / 16  # of a JPEG: less of it missing cannot be told from a border
WITH_FRAMES = ("GIF", "PNG", "WEBP", "TIFF")  # the second picture of a JPEG is another size of the first
_WAVES = np.cos(np.pi / SIDE * (np.arange(SIDE) + 0.5) * np.arange(FREQUENCIES)[:, None]).astype(np.float32)


class Fingerprint(NamedTuple):
    """`shape` and `colours` survive scaling, re-encoding and changes of brightness; `digest` survives nothing."""

    digest: UInt64[np.ndarray, "2"]  # of the encoded bytes
    shape: UInt64[np.ndarray, "4"]  # where the 256 lowest waves of the brightness are positive, the 64 lowest first
    colours: UInt8[np.ndarray, "192"]  # of 8 x 8 cells, RGB
    flat: bool  # blank: its shape is only noise


class Inspection(NamedTuple):
    """The faults of an encoded image; no fingerprint where it cannot be decoded."""

    faults: list[tuple[str, str]]  # (fault, detail)
    fingerprint: Fingerprint | None


def inspect_image(data: bytes, *, max_pixels: int, shortest_side: float) -> Inspection:
    """Decodes an image, as coarsely as its codec permits.

    Args:
      shortest_side: in pixels; an image with a shorter one is tiny.
    """
    try:
        pixels = decode_image(data, max_pixels=max_pixels, size_hint=2 * SIDE)
    except UndecodableImage as error:
        fault = error.reason if error.reason in ("truncated", "too_large") else "undecodable"
        return Inspection([(fault, str(error))], None)
    with Image.open(io.BytesIO(data), formats=FORMATS) as header:
        width, height, file_format = *header.size, header.format
        frames = _frames(header) if file_format in WITH_FRAMES else 1
    copy = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    flat = is_flat(np.asarray(copy))
    faults = []
    if min(width, height) < shortest_side:
        faults.append(("tiny", f"{width} x {height} pixels"))
    if max(width, height) > LARGEST_ASPECT * min(width, height):
        faults.append(("extreme_aspect", f"{width} x {height} pixels"))
    if flat:
        faults.append(("blank", "one colour"))
    if frames > 1:
        faults.append(("animated", f"{frames} frames"))
    lost = grey_rest(pixels) if file_format in ("JPEG", "MPO") and not flat else 0.0
    if lost >= GREY_PART:
        faults.append(("truncated", f"the last {lost:.0%} of it is grey"))
    return Inspection(faults, fingerprint(data, copy, flat=flat))


def fingerprint(data: bytes, copy: Image.Image, *, flat: bool) -> Fingerprint:
    """Of encoded bytes and their picture at SIDE x SIDE pixels."""
    brightness = np.asarray(copy.convert("L"), np.float32)
    signs = _WAVES @ brightness @ _WAVES.T > WEAKEST_WAVE * SIDE * SIDE / 4
    signs[0, 0] = False  # the mean, which is always positive
    lowest = np.zeros_like(signs)
    lowest[: FREQUENCIES // 2, : FREQUENCIES // 2] = True
    bits = np.packbits(np.concatenate([signs[lowest], signs[~lowest]]))
    colours = np.asarray(copy.resize((CELLS, CELLS), Image.Resampling.BOX)).reshape(-1)
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return Fingerprint(np.frombuffer(digest, np.uint64), bits.view(np.uint64), colours, flat)


def is_flat(pixels: UInt8[np.ndarray, "H W 3"]) -> bool:
    """Whether next to nothing differs from the commonest colour."""
    commonest = np.median(pixels, axis=(0, 1))
    return bool((np.abs(pixels - commonest).max(axis=2) <= BLANK_LEVELS).mean() >= BLANK_PART)


def grey_rest(pixels: UInt8[np.ndarray, "H W 3"]) -> float:
    """The part of a JPEG that its decoder made up: mid-grey lines to one edge, and not also to the opposite one.

    Any edge: the image may have been turned upright since.
    """
    lost = 0.0
    for axis in (0, 1):
        grey = (pixels == 128).all(axis=(2, 1 - axis))
        ends = [_leading(lines) / len(lines) for lines in (grey, grey[::-1])]
        if min(ends) == 0.0:
            lost = max(lost, *ends)
    return lost


def _leading(lines: np.ndarray) -> int:
    return len(lines) if lines.all() else int(np.argmin(lines))


def _frames(header: Image.Image) -> int:
    try:
        return getattr(header, "n_frames", 1)
    except Exception:  # the first frame is sound; damaged others raise all sorts of exceptions
        return 1
