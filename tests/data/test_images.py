import io
import time

import numpy as np
import pytest
from examples import encoded, picture, png_header
from PIL import Image

from mvlm_jax.data import images
from mvlm_jax.data.images import UndecodableImage, augment, decode_image, evaluate_transform, random_crop

LIMIT = 10_000_000
PLAIN = {"size": 32, "min_scale": 1.0, "flip": False, "operations": 0, "magnitude": 7}


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


def test_exif_rotation_is_undone():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it turned by 90 degrees clockwise
    pixels = decode_image(encoded(Image.fromarray(halves()), "JPEG", exif=exif, quality=95), max_pixels=LIMIT)
    assert pixels[4, 16, 0] > 200 and pixels[28, 16, 2] > 200


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


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [4_000, 12_000, 20_000])
def test_bomb_is_refused_by_its_header(side):
    start = time.perf_counter()
    assert reason_of(png_header(side, side)) == "too_large"
    assert time.perf_counter() - start < 0.5


def test_size_hint_shrinks_a_jpeg_but_not_below_the_hint():
    data = encoded(picture(width=800, height=640), "JPEG")
    assert decode_image(data, max_pixels=LIMIT, size_hint=80).shape == (80, 100, 3)
    assert decode_image(data, max_pixels=LIMIT, size_hint=200).shape == (320, 400, 3)
    assert decode_image(data, max_pixels=LIMIT).shape == (640, 800, 3)


def test_evaluation_squeezes_the_whole_image():
    squeezed = evaluate_transform(np.repeat(halves(), 3, axis=0), size=16)
    assert squeezed.shape == (16, 16, 3)
    assert (squeezed[:, :6, 0] == 255).all() and (squeezed[:, 10:, 2] == 255).all()


def test_augmentation_is_a_function_of_its_generator():
    image = np.asarray(picture())
    options = {**PLAIN, "min_scale": 0.2, "flip": True, "operations": 2, "caption": "a dog"}
    first, again, other = (augment(image, rng=np.random.default_rng(seed), **options) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_augmentation_switched_off_is_the_evaluation_transform():
    image = np.asarray(picture(width=32, height=32))
    kept = augment(image, rng=np.random.default_rng(0), caption="", **PLAIN)
    np.testing.assert_allclose(kept.astype(int), image, atol=40)
    assert (kept.shape, kept.dtype) == ((32, 32, 3), np.uint8)


def flipped_share(caption: str, *, flip: bool = True) -> float:
    rng = np.random.default_rng(0)
    options = {**PLAIN, "flip": flip}
    return np.mean([augment(halves(), rng=rng, caption=caption, **options)[16, 4, 2] > 128 for _ in range(200)])


@pytest.mark.parametrize("caption", ["the dog on the LEFT", "a right-hand glove", "leftmost star", "left, right."])
def test_flip_is_never_applied_when_caption_says_left_or_right(caption):
    assert flipped_share(caption) == 0


@pytest.mark.parametrize("caption", ["a bright day", "a cleft rock", ""])
def test_flip_is_applied_to_half_of_the_others(caption):
    assert 0.4 < flipped_share(caption) < 0.6
    assert flipped_share(caption, flip=False) == 0


@pytest.mark.parametrize(("width", "height"), [(640, 480), (100, 1000), (1, 1), (3000, 2)])
def test_crops_stay_inside_with_legal_area_and_ratio(width, height):
    rng = np.random.default_rng(0)
    for _ in range(100):
        left, top, right, bottom = random_crop(rng, width=width, height=height, min_scale=0.2)
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert 0.749 < (right - left) / (bottom - top) < 1.334
        if (width, height) == (640, 480):
            assert 0.199 < (right - left) * (bottom - top) / (640 * 480) <= 1


@pytest.mark.parametrize("name", sorted(images.OPERATIONS))
def test_operations_keep_size_and_are_the_identity_where_they_should(name):
    image = picture()
    changed = images.OPERATIONS[name](image, 0.7, -1)
    assert (changed.size, changed.mode) == (image.size, "RGB")
    if name == "identity":
        np.testing.assert_array_equal(np.asarray(changed), np.asarray(image))
    elif name not in ("autocontrast", "equalize"):
        assert (np.asarray(changed) != np.asarray(image)).any()


def test_translation_moves_by_the_stated_part_of_the_side():
    image = Image.new("RGB", (256, 4))
    image.putpixel((100, 2), (255, 255, 255))
    moved = images.OPERATIONS["translate_x"](image, 1.0, 1)
    assert moved.getpixel((90, 2)) == (255, 255, 255)
    assert moved.getpixel((250, 2)) == images.GREY


def test_pixels_can_be_written_to():
    pixels = decode_image(encoded(picture()), max_pixels=LIMIT)
    pixels[0, 0] = 0
    assert isinstance(io.BytesIO(pixels.tobytes()).read(1), bytes)
