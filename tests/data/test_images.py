import io
import struct
import time
import zlib

import numpy as np
import pytest
from examples import encoded, picture, png_header, write_tar
from PIL import Image, ImageOps

from mvlm_jax.data.formats.image_folder import open_image_folder
from mvlm_jax.data.images import (
    ENDINGS,
    EncodedImage,
    UndecodableImage,
    decode_image,
    evaluate_transform,
    upright_rgb,
)
from mvlm_jax.data.sources import open_source

LIMIT = 10_000_000


def flat(mode: str, value) -> Image.Image:
    return Image.new(mode, (4, 3), value)


def reason_of(data: bytes, **options) -> str:
    with pytest.raises(UndecodableImage) as caught:
        decode_image(data, **{"max_pixels": LIMIT, **options})
    return caught.value.reason


def halves() -> np.ndarray:
    """Red on the left, blue on the right."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, :16, 0] = 255
    pixels[:, 16:, 2] = 255
    return pixels


def test_lossless_rgb_comes_back_unchanged():
    image = picture()
    np.testing.assert_array_equal(decode_image(encoded(image), max_pixels=LIMIT), np.asarray(image))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(flat("L", 77)), (77, 77, 77)),
        (encoded(flat("1", 1)), (255, 255, 255)),
        (encoded(flat("LA", (100, 0))), (255, 255, 255)),
        (encoded(flat("RGBA", (10, 20, 30, 255))), (10, 20, 30)),
        (encoded(flat("RGBA", (10, 20, 30, 0))), (255, 255, 255)),
        (encoded(flat("P", 0), transparency=0), (255, 255, 255)),
        (encoded(flat("CMYK", (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
        # 16 bits are scaled, not clipped: 0x8000 is half of white.
        (encoded(Image.fromarray(np.full((3, 4), 0x8000, np.uint16))), (128, 128, 128)),
        (encoded(Image.fromarray(np.full((3, 4), 65535, np.uint16))), (255, 255, 255)),
        (encoded(Image.fromarray(np.full((3, 4), 257, np.uint16))), (1, 1, 1)),
    ],
    ids=["grey", "bilevel", "grey-clear", "rgba-opaque", "rgba-clear", "palette-clear", "cmyk", "16-bit-half",
         "16-bit-white", "16-bit-dark"],
)  # fmt: skip
def test_every_mode_becomes_rgb(data, expected):
    pixels = decode_image(data, max_pixels=LIMIT)
    assert pixels.shape == (3, 4, 3)
    np.testing.assert_array_equal(np.unique(pixels.reshape(-1, 3), axis=0), [expected])


def test_cmyk_jpeg_keeps_its_colour():
    pixels = decode_image(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), max_pixels=LIMIT)
    assert abs(pixels.astype(int) - [255, 0, 0]).max() < 8


def test_palette_without_transparency_keeps_its_colours():
    image = picture().convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode_image(encoded(image), max_pixels=LIMIT), expected)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_jpeg_has_the_pixels_that_pillow_reads(mode, subsampling, progressive):
    image = picture(width=101, height=67).convert(mode)
    data = encoded(image, "JPEG", quality=80, subsampling=subsampling, progressive=progressive)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode_image(data, max_pixels=LIMIT), expected)


def test_exif_rotation_is_undone():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it turned by 90 degrees clockwise
    wide = Image.fromarray(halves()).resize((64, 32))
    data = encoded(wide, "JPEG", exif=exif, quality=95)
    pixels = decode_image(data, max_pixels=LIMIT)
    assert pixels.shape == (64, 32, 3) and pixels[8, 16, 0] > 200 and pixels[56, 16, 2] > 200
    image = EncodedImage(data, max_pixels=LIMIT)
    assert (image.width, image.height) == (32, 64)
    assert image.pixels(scale=0.5).shape == (32, 16, 3)


@pytest.mark.parametrize("format_", ["JPEG", "PNG"])
def test_truncated_image_is_refused(format_):
    data = encoded(picture(width=200, height=200), format_)
    assert reason_of(data[: len(data) // 2]) == "truncated"


def test_zero_bytes_and_strangers_have_reasons_of_their_own():
    assert reason_of(b"") == "empty"
    assert reason_of(b"<html>404</html>") == "unrecognized"
    assert reason_of(encoded(Image.new("F", (4, 4)), "TIFF")) == "unsupported_mode"


def test_damage_anywhere_never_raises_anything_else():
    data = encoded(picture(), "JPEG")
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = np.frombuffer(data, np.uint8).copy()
        damaged[rng.integers(2, len(damaged), 4)] = rng.integers(0, 256, 4)
        try:
            decode_image(damaged.tobytes(), max_pixels=LIMIT)
        except UndecodableImage:
            pass


def test_jpeg_over_the_limit_is_refused():
    data = encoded(picture(width=40, height=30), "JPEG")
    assert reason_of(data, max_pixels=40 * 30 - 1) == "too_large"
    assert decode_image(data, max_pixels=40 * 30).shape == (30, 40, 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [4_000, 12_000, 20_000])
def test_bomb_is_refused_by_its_header(side):
    data = png_header(side, side)
    start = time.process_time()
    assert reason_of(data) == "too_large"
    assert time.process_time() - start < 0.5


def test_size_hint_shrinks_a_jpeg_but_not_below_the_hint():
    data = encoded(picture(width=800, height=640), "JPEG")
    assert decode_image(data, max_pixels=LIMIT, size_hint=80).shape == (80, 100, 3)
    assert decode_image(data, max_pixels=LIMIT, size_hint=200).shape == (320, 400, 3)
    assert decode_image(data, max_pixels=LIMIT).shape == (640, 800, 3)


@pytest.mark.parametrize(
    ("scale", "shape"), [(1.0, (67, 101)), (0.51, (67, 101)), (0.5, (34, 51)), (0.26, (34, 51)), (0.01, (9, 13))]
)
def test_jpeg_is_decoded_at_the_smallest_scale_that_holds_enough(scale, shape):
    image = EncodedImage(encoded(picture(width=101, height=67), "JPEG"), max_pixels=LIMIT)
    assert (image.width, image.height) == (101, 67)
    assert image.pixels(scale=scale).shape == (*shape, 3)


def test_other_formats_keep_their_size_at_any_scale():
    image = EncodedImage(encoded(picture(width=50, height=40)), max_pixels=LIMIT)
    assert image.pixels(scale=0.1).shape == (40, 50, 3)


def test_evaluation_squeezes_the_whole_image():
    squeezed = evaluate_transform(np.repeat(halves(), 3, axis=0), size=16)
    assert squeezed.shape == (16, 16, 3)
    assert (squeezed[:, :6, 0] == 255).all() and (squeezed[:, 10:, 2] == 255).all()


def test_pixels_can_be_written_to():
    pixels = decode_image(encoded(picture()), max_pixels=LIMIT)
    pixels[0, 0] = 0


def with_chunk(kind: bytes, content: bytes) -> bytes:
    """A PNG with another chunk before its pixels."""
    data = encoded(picture())
    place = data.index(b"IDAT") - 4
    chunk = kind + content
    return data[:place] + struct.pack(">I", len(content)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[place:]


BROKEN_EXIF = {
    "jpeg": encoded(picture(), "JPEG", quality=95, exif=b"Exif\x00\x00no TIFF header"),
    "webp": encoded(picture(), "WEBP", lossless=True, exif=b"no TIFF header"),
    "png": with_chunk(b"eXIf", b"no TIFF header"),
    "png-cut": with_chunk(b"eXIf", b"MM\x00*\x00\x00\x00\x08\x00\x05\x01"),
    "png-empty": with_chunk(b"eXIf", b""),
    "png-profile": with_chunk(b"zTXt", b"Raw profile type exif\x00\x00" + zlib.compress(b"\nexif\n  10\nzzzz")),
}


@pytest.mark.parametrize("name", BROKEN_EXIF)
def test_image_is_kept_where_only_its_exif_is_damaged(name):
    image = EncodedImage(BROKEN_EXIF[name], max_pixels=LIMIT)
    assert (image.width, image.height) == (40, 30)
    assert abs(image.pixels().astype(int) - np.asarray(picture())).mean() < 8
    opened = Image.open(io.BytesIO(BROKEN_EXIF[name]))
    assert upright_rgb(opened).shape == (30, 40, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turns_are_those_of_pillow(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(), "PNG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(decode_image(data, max_pixels=LIMIT), expected)


def test_endings_are_those_that_pillow_reads_as_these_formats():
    registered = Image.registered_extensions()
    assert {ending: registered[f".{ending}"] for endings in ENDINGS.values() for ending in endings} == {
        ending: kind for kind, endings in ENDINGS.items() for ending in endings
    }


def test_images_of_every_ending_are_found_in_tar_files_and_folders(tmp_path):
    files = {}
    for number, (kind, endings) in enumerate(ENDINGS.items()):
        for ending in endings:
            files[f"{ending}.{ending.upper() if number % 2 else ending}"] = encoded(picture(), kind)
    write_tar(tmp_path / "a.tar", files)
    source = open_source(f"webdataset:{tmp_path}/a.tar", data_dir="")
    assert [source[i]["image"] for i in range(len(source))] == list(files.values())
    for folder in ("one", "two"):
        (tmp_path / "folders" / folder).mkdir(parents=True)
        for name, data in files.items():
            (tmp_path / "folders" / folder / name).write_bytes(data)
    assert len(open_image_folder(tmp_path / "folders")[1]) == 2 * len(files)
