import dataclasses
import random

import cv2
import numpy as np
import pytest
from examples import encoded, picture
from PIL import Image, ImageEnhance, ImageOps

from mvlm_jax.data import augmentation
from mvlm_jax.data.augmentation import (
    OPERATIONS,
    Augment,
    drawn_distortions,
    planned_image,
    random_crop,
    resized_crop,
)
from mvlm_jax.data.images import ImageSpec, UndecodableImage

SPEC = ImageSpec(size=32, max_pixels=10_000_000)
PLAIN = Augment(min_scale=1.0, flip=False, operations=0, magnitude=7)


def made(data: bytes, *, seed: int = 0, caption: str = "a dog", **options) -> np.ndarray:
    augment = dataclasses.replace(PLAIN, **options)
    return planned_image(data, rng=random.Random(seed), caption=caption, spec=SPEC, augment=augment).made()


def red_then_blue() -> bytes:
    """Red on the left, blue on the right."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, :16, 0] = 255
    pixels[:, 16:, 2] = 255
    return encoded(Image.fromarray(pixels))


def test_image_is_a_function_of_its_generator():
    data = encoded(picture())
    options = {"min_scale": 0.2, "flip": True, "operations": 2}
    np.testing.assert_array_equal(made(data, seed=1, **options), made(data, seed=1, **options))
    assert (made(data, seed=1, **options) != made(data, seed=2, **options)).any()


def test_augmentation_switched_off_shows_the_whole_image():
    image = picture(width=32, height=32)
    kept = made(encoded(image))
    np.testing.assert_allclose(kept.astype(int), np.asarray(image), atol=40)  # the crop has a ratio of its own
    assert (kept.shape, kept.dtype) == ((32, 32, 3), np.uint8)


def test_unusable_bytes_keep_their_reason():
    with pytest.raises(UndecodableImage) as caught:
        made(b"<html>404</html>")
    assert caught.value.reason == "unrecognized"


def test_crop_of_a_smaller_decoded_jpeg_is_the_crop_of_the_whole_one():
    smooth = Image.fromarray(np.linspace(0, 255, 16, dtype=np.uint8).reshape(4, 4)).resize((640, 480))
    whole, decoded = (np.asarray(smooth.resize(size).convert("RGB")) for size in ((640, 480), (160, 120)))
    box = (100.0, 80.0, 420.0, 400.0)
    crops = [resized_crop(image, box=box, width=640, size=32).astype(int) for image in (whole, decoded)]
    assert crops[0].std() > 20 and np.abs(crops[0] - crops[1]).max() <= 4


def test_shrinking_passes_no_pixel_over():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::4] = 255  # one column of four
    shrunk = resized_crop(stripes, box=(0.0, 0.0, 256.0, 256.0), width=256, size=32)
    np.testing.assert_allclose(shrunk, 64, atol=1)


def test_crop_has_at_least_one_pixel():
    image = np.full((3, 3, 3), 7, np.uint8)
    assert (resized_crop(image, box=(2.9, 2.9, 3.0, 3.0), width=3, size=8) == 7).all()


def flipped_share(caption: str, *, flip: bool = True) -> float:
    data, rng = red_then_blue(), random.Random(0)
    options = {"rng": rng, "caption": caption, "spec": SPEC, "augment": dataclasses.replace(PLAIN, flip=flip)}
    return np.mean([planned_image(data, **options).made()[16, 4, 2] > 128 for _ in range(200)])


@pytest.mark.parametrize("caption", ["the dog on the LEFT", "a right-hand glove", "leftmost star", "left, right."])
def test_flip_is_never_applied_when_caption_says_left_or_right(caption):
    assert flipped_share(caption) == 0


@pytest.mark.parametrize("caption", ["a bright day", "a cleft rock", ""])
def test_flip_is_applied_to_half_of_the_others(caption):
    assert 0.4 < flipped_share(caption) < 0.6
    assert flipped_share(caption, flip=False) == 0


@pytest.mark.parametrize(("width", "height"), [(640, 480), (100, 1000), (1, 1), (3000, 2)])
def test_crops_stay_inside_with_legal_area_and_ratio(width, height):
    rng = random.Random(0)
    for _ in range(100):
        left, top, right, bottom = random_crop(rng, width=width, height=height, min_scale=0.2)
        assert 0 <= left < right <= width + 1e-9 and 0 <= top < bottom <= height + 1e-9
        assert 0.749 < (right - left) / (bottom - top) < 1.334
        if (width, height) == (640, 480):
            assert 0.199 < (right - left) * (bottom - top) / (640 * 480) <= 1


def affine(matrix):
    def by_pillow(image, sign):
        return image.transform(
            image.size, Image.Transform.AFFINE, matrix(sign), Image.Resampling.BILINEAR, fillcolor=augmentation.GREY
        )

    return by_pillow


# What the operations do at a level of 0.7, said with Pillow.
BY_PILLOW = {
    "identity": lambda image, sign: image,
    "autocontrast": lambda image, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, sign: ImageOps.equalize(image),
    "brightness": lambda image, sign: ImageEnhance.Brightness(image).enhance(1.36),
    "sharpness": lambda image, sign: ImageEnhance.Sharpness(image).enhance(1.36),
    "shear_x": affine(lambda sign: (1, sign * 0.21, 0, 0, 1, 0)),
    "shear_y": affine(lambda sign: (1, 0, 0, sign * 0.21, 1, 0)),
    "translate_x": affine(lambda sign: (1, 0, sign * 3, 0, 1, 0)),  # 10 pixels of 256 at level 1, of 112 at 0.7
    "translate_y": affine(lambda sign: (1, 0, 0, 0, 1, sign * 3)),
    "rotate": lambda image, sign: image.rotate(sign * 21, Image.Resampling.BILINEAR, fillcolor=augmentation.GREY),
}


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_operation_does_what_pillow_does(name, sign):
    blocks = np.random.default_rng(0).integers(60, 180, (28, 28, 3), dtype=np.uint8)
    image = Image.fromarray(blocks).resize((112, 112), Image.Resampling.NEAREST)
    changed = OPERATIONS[name](np.asarray(image), 0.7, sign)
    place = np.zeros_like(changed)
    np.testing.assert_array_equal(OPERATIONS[name](np.asarray(image), 0.7, sign, place), changed)
    assert (place == changed).all() or name == "identity"
    expected = np.asarray(BY_PILLOW[name](image, sign)).astype(int)
    assert (changed.shape, changed.dtype) == ((112, 112, 3), np.uint8)
    # Pillow shears about the middle of a pixel, OpenCV about its corner.
    assert np.abs(changed - expected).mean() < (2 if name.startswith("shear") else 0.75)
    assert np.abs(np.asarray(image) - expected).mean() > 2 or name == "identity"


@pytest.mark.parametrize("size", [16, 224])
@pytest.mark.parametrize("name", ["shear_x", "shear_y"])
def test_shears_are_those_of_opencv_to_the_last_bit(name, size):
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    down, across = np.mgrid[:size, :size].astype(np.float32)
    for level in (magnitude / 10 for magnitude in range(11)):
        for sign in (-1, 1):
            factor = sign * 0.3 * level
            x, y = (across + factor * down, down) if name == "shear_x" else (across, down + factor * across)
            maps = cv2.convertMaps(x, y, cv2.CV_16SC2)
            expected = cv2.remap(image, *maps, cv2.INTER_LINEAR, borderValue=augmentation.GREY)
            np.testing.assert_array_equal(OPERATIONS[name](image, level, sign), expected)


@pytest.mark.parametrize(
    "operations", [(), ("identity",), ("autocontrast",), ("shear_x", "rotate"), ("rotate", "autocontrast")]
)
@pytest.mark.parametrize("flipped", [False, True])
def test_distortions_are_written_where_they_are_wanted(flipped, operations):
    image = np.random.default_rng(0).integers(
        0, 256, (16, 16, 3), dtype=np.uint8
    )  # with nothing for autocontrast to do
    image[0, 0], image[0, 1] = 0, 255
    distortions = augmentation.Distortions(flipped, tuple((name, 1) for name in operations), 0.7)
    place, before = np.zeros_like(image), image.copy()
    assert distortions.applied(image, out=place) is place
    np.testing.assert_array_equal(place, distortions.applied(image))
    np.testing.assert_array_equal(image, before)


def test_one_colour_survives_operations_on_its_histogram():
    image = np.full((16, 16, 3), 90, np.uint8)
    for name in ("autocontrast", "equalize"):
        np.testing.assert_array_equal(OPERATIONS[name](image, 0.7, 1), image)


def test_each_of_the_drawn_operations_is_applied_every_other_time(monkeypatch):
    monkeypatch.setattr(augmentation, "NAMES", sorted(OPERATIONS.keys() - {"identity"}))
    rng, augment = random.Random(0), dataclasses.replace(PLAIN, operations=2)
    applied = [len(drawn_distortions(rng, caption="", augment=augment).operations) for _ in range(400)]
    assert np.abs(np.bincount(applied) / 400 - (0.25, 0.5, 0.25)).max() < 0.08
