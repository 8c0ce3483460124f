"""Encoded bytes to upright RGB pixels."""

import contextlib
import dataclasses
import io
import math
import sys
from collections.abc import Iterator

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

ENDINGS = {  # of files, by the format that Pillow reads them as
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"),
    "PNG": ("png", "apng"),
    "WEBP": ("webp",),
    "GIF": ("gif",),
    "BMP": ("bmp",),
    "TIFF": ("tif", "tiff"),
    "PPM": ("ppm", "pgm", "pbm", "pnm"),
    "JPEG2000": ("jp2", "j2k", "jpf", "jpx", "jpc"),
}
FORMATS = tuple(ENDINGS)
IMAGE_ENDINGS = tuple(ending for endings in ENDINGS.values() for ending in endings)  # in lower case
JPEG_START, EXIF_START = b"\xff\xd8\xff", b"Exif\x00\x00"
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # of EXIF: the field, and its values that swap width and height
TURNS = {  # by the value of that field
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PILLOW_PIXELS = Image.MAX_IMAGE_PIXELS or sys.maxsize  # None where the importing program removed Pillow's limit
PARTS = (8, 4, 2)  # JPEG decodes at 1/8, 1/4 and 1/2 of the sides; other scales are no faster than the whole


class UnusableImage(ValueError):
    """An image that is left out and counted; `reason` is the word that it is counted under."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class AbsentImage(UnusableImage):
    """A listed image that does not exist; `reason` is absent."""

    def __init__(self, detail: str) -> None:
        super().__init__("absent", detail)


class UndecodableImage(UnusableImage):
    """`reason` is one of empty, unrecognized, too_large, truncated, unsupported_mode, corrupt."""


class EncodedImage:
    """An image of which only the header has been read."""

    def __init__(self, data: bytes, *, max_pixels: int) -> None:
        """
        Raises:
          UndecodableImage: by the header; also where it says more than `max_pixels`, or twice Pillow's own limit.
        """
        self._data = data
        self._picture = None  # None: a JPEG that simplejpeg decodes without Pillow
        plain = _plain_jpeg_size(data, max_pixels=max_pixels)
        if plain is None:
            self._picture = _opened(data, max_pixels=max_pixels)
            plain = _upright_size(self._picture)
        self.width, self.height = plain  # in pixels, of the upright image

    def asked_size(self, *, scale: float) -> tuple[int, int]:
        """The least (width, height) that the codec is asked for; the pixels depend on `scale` through it alone."""
        if self._picture is None:
            part = next((part for part in PARTS if part * scale <= 1), 1)
            return -(-self.width // part), -(-self.height // part)
        width, height = self._picture.size
        # A PNG comes back whole, whatever it is asked for.
        scale = 1.0 if self._picture.format == "PNG" else min(1.0, scale)
        return math.ceil(scale * width), math.ceil(scale * height)

    def pixels(self, *, scale: float = 1.0) -> UInt8[np.ndarray, "H W 3"]:
        """Upright RGB; call it once. A JPEG may come back smaller, at no less than `scale` of its sides.

        Raises:
          UndecodableImage: what is wrong with the body.
        """
        if self._picture is None:
            width, height = self.asked_size(scale=scale)
            try:
                return simplejpeg.decode_jpeg(self._data, "RGB", min_height=height, min_width=width)
            except ValueError:
                # Pillow reads images with harmless faults, and says what is wrong with the others.
                self._picture = _opened(self._data, max_pixels=self.width * self.height)
        with self._picture as picture:
            if scale < 1:
                with _reasons_given():
                    picture.draft(None, self.asked_size(scale=scale))
            return upright_rgb(picture)


def decode_image(data: bytes, *, max_pixels: int, size_hint: int | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """Upright RGB pixels of an encoded image.

    Transparency is laid on white; 16-bit grey is scaled to 8 bits. With `size_hint`, a JPEG may come back smaller,
    yet with no side below `size_hint` pixels that was not below it before.

    Raises:
      UndecodableImage: always this one, whatever is wrong; more than `max_pixels` (or twice Pillow's own limit)
        is refused by the header, before anything is decoded.
    """
    image = EncodedImage(data, max_pixels=max_pixels)
    return image.pixels(scale=min(1.0, (size_hint or math.inf) / min(image.width, image.height)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """The images that a model takes."""

    size: int  # pixels a side
    max_pixels: int  # an image whose header says more is refused

    def unaugmented(self, data: bytes) -> UInt8[np.ndarray, "S S 3"]:
        """The whole image, as evaluation sees it.

        Raises:
          UndecodableImage: as `decode_image`.
        """
        pixels = decode_image(data, max_pixels=self.max_pixels, size_hint=self.size)
        return evaluate_transform(pixels, size=self.size)


def evaluate_transform(image: UInt8[np.ndarray, "H W 3"], *, size: int) -> UInt8[np.ndarray, "S S 3"]:
    """The whole image squeezed to `size` x `size` pixels, as ALBEF does."""
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def _plain_jpeg_size(data: bytes, *, max_pixels: int) -> tuple[int, int] | None:
    """(width, height) of a JPEG without EXIF in common colours; None for every other image, sound or not."""
    if not data.startswith(JPEG_START) or EXIF_START in data:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colours not in ("YCbCr", "RGB", "Gray") or width * height > min(max_pixels, PILLOW_PIXELS):
        return None
    return width, height


def _opened(data: bytes, *, max_pixels: int) -> Image.Image:
    if not data:
        raise UndecodableImage("empty", "0 bytes")
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UndecodableImage("too_large", str(error)) from error
    except Image.UnidentifiedImageError as error:
        raise UndecodableImage("unrecognized", f"{len(data)} bytes that are none of {', '.join(FORMATS)}") from error
    except Exception as error:  # parsers raise all sorts of exceptions for damaged headers
        raise UndecodableImage("corrupt", str(error)) from error
    if picture.width * picture.height > max_pixels:
        raise UndecodableImage("too_large", f"{picture.width} x {picture.height} is over {max_pixels} pixels")
    return picture


def _upright_size(picture: Image.Image) -> tuple[int, int]:
    with _reasons_given():
        sideways = _orientation(picture) in SIDEWAYS
    return (picture.height, picture.width) if sideways else picture.size


def upright_rgb(picture: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of an open image, turned as its EXIF says; unturned where the EXIF is damaged.

    Raises:
      UndecodableImage: what is wrong with the body.
    """
    with _reasons_given():
        picture.load()
        # ImageOps.exif_transpose would also rewrite the EXIF, which fails where a field of it is damaged.
        turn = TURNS.get(_orientation(picture) or 1)
        return np.array(to_rgb(picture if turn is None else picture.transpose(turn)))


def _orientation(picture: Image.Image) -> int | None:
    if picture.format == "PNG":
        picture.load()  # its EXIF may lie behind the pixels
    try:
        return picture.getexif().get(ORIENTATION)
    except Exception:  # damaged EXIF raises all sorts of exceptions; the pixels are not affected
        return None


@contextlib.contextmanager
def _reasons_given() -> Iterator[None]:
    try:
        yield
    except UndecodableImage:
        raise
    except OSError as error:
        raise UndecodableImage("truncated" if "truncated" in str(error) else "corrupt", str(error)) from error
    except Exception as error:  # parsers raise all sorts of exceptions for damaged bodies
        raise UndecodableImage("corrupt", str(error)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow's own conversion clips at 255 instead of scaling.
        levels: np.ndarray = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise UndecodableImage("unsupported_mode", f"{image.mode} with levels outside 16 bits")
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    if image.mode in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"):
        return image.convert("RGB")
    raise UndecodableImage("unsupported_mode", image.mode)
