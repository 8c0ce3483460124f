"""Which patches of an image count where the gain of its caption is measured."""

import io

import numpy as np
from PIL import Image

from mvlm_jax.data.builders.shapes import BACKGROUND, collection
from mvlm_jax.data.images import ImageSpec
from mvlm_jax.evaluation.informative import informative, rule_of


def drawing(*, ground=(170, 170, 170)):
    """16 patches of 4 pixels; a bar fills the second and third of a row, and half of the fourth."""
    image = np.full((16, 16, 3), ground, np.uint8)
    image[4:8, 4:14] = (220, 30, 30)
    return image


def test_of_a_drawing_the_patches_count_that_hold_a_part_of_a_shape():
    expected = np.zeros((4, 4), bool)
    expected[1, 1:] = True  # also the two that are of one colour
    for ground in ((170, 170, 170), (255, 255, 255), (0, 0, 0)):
        found = informative(drawing(ground=ground), patch=4)
        assert found.plain
        np.testing.assert_array_equal(found.ground.reshape(4, 4), expected)


def test_what_a_codec_changes_of_the_ground_does_not_count():
    noisy = drawing() + np.random.default_rng(0).integers(0, 9, (16, 16, 3)).astype(np.uint8)
    noisy[0, :9] = noisy[-1] = 170  # the commonest colour
    np.testing.assert_array_equal(informative(noisy, patch=4).ground, informative(drawing(), patch=4).ground)


def test_of_a_photograph_the_most_varied_tenth_counts():
    rng = np.random.default_rng(0)
    image = rng.integers(100, 110, (24, 24, 3)).astype(np.uint8)
    image[:, ::2] += 60  # stripes everywhere, so that the frame has no colour of its own
    for row, column in ((0, 0), (2, 5), (3, 1), (5, 5)):
        image[4 * row : 4 * row + 4, 4 * column : 4 * column + 2] = 255
        image[4 * row : 4 * row + 4, 4 * column + 2 : 4 * column + 4] = 0
    found = informative(image, patch=4)
    assert not found.plain and found.ground.all()
    # ceil(36 / 10)
    assert np.flatnonzero(found.variance).tolist() == [0, 2 * 6 + 5, 3 * 6 + 1, 5 * 6 + 5]


def test_drawn_scenes_are_measured_on_their_shapes():
    source = collection(train=1, val=40, test=1).splits["val"]
    for index in range(len(source)):
        with Image.open(io.BytesIO(source[index]["image"])) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        is_shape = (pixels != BACKGROUND).any(axis=2).reshape(8, 8, 8, 8).any(axis=(1, 3))
        found = informative(pixels, patch=8)
        assert found.plain
        np.testing.assert_array_equal(found.ground, is_shape.ravel())


def test_drawn_scenes_are_known_as_drawings_at_the_size_of_the_demo():
    source = collection(train=1, val=40, test=1).splits["val"]
    spec = ImageSpec(size=48, max_pixels=10_000)
    images = [spec.unaugmented(source[index]["image"]) for index in range(len(source))]
    assert rule_of(np.array([informative(image, patch=8).plain for image in images])) == "ground"


def test_a_few_photographs_on_plain_ground_do_not_make_a_split_of_drawings():
    assert rule_of(np.array([True] * 8 + [False] * 2)) == "variance"
    assert rule_of(np.array([True] * 9 + [False])) == "ground"
