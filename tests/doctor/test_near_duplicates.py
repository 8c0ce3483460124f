import itertools

import numpy as np
import pytest
from examples import encoded, picture
from PIL import Image, ImageEnhance

from mvlm_jax.data.builders.shapes import SHAPES, Scene, Shape, png, render
from mvlm_jax.doctor import near_duplicates
from mvlm_jax.doctor.captions import caption_faults, is_mojibake, is_text, normalized
from mvlm_jax.doctor.images import grey_rest, inspect_image, is_flat
from mvlm_jax.doctor.near_duplicates import MOST_SIGNS, near_pairs, same_files


def shapes_of(count: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**63, (count, 4)).astype(np.uint64)


def with_flips(shape: np.ndarray, bits) -> np.ndarray:
    octets = shape.copy().view(np.uint8)
    for bit in bits:
        octets[bit // 8] ^= np.uint8(1 << bit % 8)
    return octets.view(np.uint64)


def colours_of(count: int) -> np.ndarray:
    return np.tile(np.arange(192, dtype=np.uint8), (count, 1))


def test_all_pairs_that_differ_little_are_found_and_no_others():
    shapes = shapes_of(400)
    rng = np.random.default_rng(1)
    for copy in range(200, 300):  # up to 5 of the lowest 64 frequencies, and others up to the limit in all
        low, high = rng.permutation(64)[: copy % 6], 64 + rng.permutation(192)[: MOST_SIGNS - 5]
        shapes[copy] = with_flips(shapes[copy - 200], [*low, *high])
    shapes[300] = with_flips(shapes[0], range(64, 64 + MOST_SIGNS + 1))
    first, second, signs = near_pairs(shapes, colours_of(400))
    distance = np.bitwise_count(shapes[:, None] ^ shapes[None]).sum(axis=2)
    wanted = [(i, j) for i, j in itertools.combinations(range(400), 2) if distance[i, j] <= MOST_SIGNS]
    assert len(wanted) >= 100 and (0, 300) not in wanted
    assert list(zip(first.tolist(), second.tolist())) == wanted
    assert signs.tolist() == [distance[pair] for pair in wanted]


def test_many_alike_are_joined_without_comparing_all_with_all(monkeypatch):
    monkeypatch.setattr(near_duplicates, "NEIGHBOURS", 4)
    shapes = np.tile(shapes_of(1), (1000, 1))
    first, second, _ = near_pairs(shapes, colours_of(1000))
    assert set(second.tolist()) == set(range(1, 1000))  # each has an earlier one
    assert len(first) <= 4 * 1000


def test_colours_tell_apart_what_has_the_same_shape():
    shapes = np.tile(shapes_of(1), (3, 1))
    colours = colours_of(3)
    colours[1] = 20 + colours[0] // 2  # darker, with less contrast
    colours[2, :96] = colours[0, 95::-1]
    first, second, _ = near_pairs(shapes, colours)
    assert list(zip(first.tolist(), second.tolist())) == [(0, 1)]


def prints(*encoded_images: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The shapes and colours of their fingerprints."""
    found = [inspect_image(data, max_pixels=10**7, shortest_side=1.0).fingerprint for data in encoded_images]
    return np.stack([each.shape for each in found]), np.stack([each.colours for each in found])


def test_a_few_shapes_on_plain_ground_are_no_copies_of_each_other():
    scenes = [Scene((Shape(name, "blue", "small", 48, 16),), "") for name in SHAPES]
    shapes, colours = prints(*map(png, scenes))
    pairs = list(itertools.combinations(range(len(SHAPES)), 2))
    alike = [
        np.bitwise_count(shapes[i] ^ shapes[j]).sum() <= MOST_SIGNS
        and near_duplicates._have_the_same_colours(colours[[i]], colours[[j]])[0]
        for i, j in pairs
    ]
    assert any(alike)  # the hashes and the colours alone would say so
    assert [len(part) for part in near_pairs(shapes, colours)] == [0, 0, 0]


def test_a_hash_without_signs_is_no_evidence():
    shapes, colours = np.zeros((2, 4), np.uint64), colours_of(2)
    assert len(near_pairs(shapes, colours)[0]) == 0
    shapes[:, 0] = 2**32 - 1  # 32 of them
    assert len(near_pairs(shapes, colours)[0]) == 1


def test_copies_of_drawings_and_photographs_are_found():
    drawing = render(Scene(tuple(
        Shape(name, color, "large", x, y)
        for name, color, x, y in (("circle", "red", 16, 16), ("square", "black", 48, 16), ("triangle", "blue", 16, 48),
                                  ("square", "white", 48, 48))
    ), ""))  # fmt: skip
    for image in (drawing, picture(width=320, height=240, seed=3)):
        width, height = image.size
        copies = (
            encoded(image, "JPEG", quality=60),
            encoded(image.resize((width // 2, height // 2)), "PNG"),
            encoded(image.resize((3 * width, 3 * height)), "WEBP"),
            encoded(ImageEnhance.Brightness(image).enhance(0.8), "PNG"),
        )
        first, second, _ = near_pairs(*prints(encoded(image, "PNG"), *copies))
        assert {(0, 1), (0, 2), (0, 3), (0, 4)} <= set(zip(first.tolist(), second.tolist()))


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_is_near_alone(count):
    assert [len(part) for part in near_pairs(shapes_of(count), colours_of(count))] == [0, 0, 0]


def test_same_files_have_the_same_number():
    digests = np.array([[1, 2], [3, 4], [1, 2], [2, 1]], np.uint64)
    one, other, same, last = same_files(digests).tolist()
    assert one == same and len({one, other, last}) == 3


def signs_that_differ(one: bytes, other: bytes) -> int:
    prints = [inspect_image(data, max_pixels=10**7, shortest_side=1.0).fingerprint for data in (one, other)]
    return int(np.bitwise_count(prints[0].shape ^ prints[1].shape).sum())


def test_fingerprint_survives_what_copies_go_through():
    image = picture(width=320, height=240, seed=3)
    original = encoded(image, "JPEG", quality=95)
    for copy in (
        encoded(image, "JPEG", quality=15),
        encoded(image.resize((160, 120)), "PNG"),
        encoded(image.resize((900, 700)), "WEBP"),
        encoded(ImageEnhance.Brightness(image).enhance(0.8), "JPEG"),
        encoded(image.crop((3, 2, 317, 238)), "JPEG"),
    ):
        assert signs_that_differ(original, copy) <= MOST_SIGNS
    for seed in range(4, 12):
        assert signs_that_differ(original, encoded(picture(width=320, height=240, seed=seed))) > 1.5 * MOST_SIGNS


def test_upright_image_and_its_turned_file_have_the_same_fingerprint():
    image = picture(width=320, height=240)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(image.rotate(90, expand=True), "PNG", exif=exif)
    assert signs_that_differ(encoded(image), turned) == 0


def test_grey_rest_is_measured_from_the_edge_it_touches():
    pixels = np.random.default_rng(0).integers(0, 100, (40, 60, 3)).astype(np.uint8)
    assert grey_rest(pixels) == 0
    for cut in (np.s_[30:], np.s_[:10], np.s_[:, 45:], np.s_[:, :15]):
        damaged = pixels.copy()
        damaged[cut] = 128
        assert grey_rest(damaged) == 0.25
    framed = pixels.copy()
    framed[:10] = framed[30:] = 128
    assert grey_rest(framed) == 0


def test_flat_is_one_colour_and_next_to_nothing_else():
    pixels = np.full((64, 64, 3), 200, np.uint8)
    assert is_flat(pixels)
    pixels[:4, :5] = 0  # one in 200
    assert is_flat(pixels)
    pixels[4, :5] = 0
    assert not is_flat(pixels)


@pytest.mark.parametrize(
    "caption",
    ["a dog", "STOP", "两只狗在跑", "दो कुत्ते दौड़ रहे हैं", "Müller & Söhne, 7 m", "<PERSON> in 2019", "“CAFÉ” à NÎMES"],
)
def test_sentences_in_any_script_are_text(caption):
    assert list(caption_faults(caption)) == []


@pytest.mark.parametrize(
    "text", ["1234", "...", "www.example.org/dog", "dog.JPG", "a &quot;dog&quot;", "a<br/>dog", "#@!?"]
)
def test_what_is_no_sentence_is_not_text(text):
    assert not is_text(text)


@pytest.mark.parametrize(
    "text", ["naïve façade", "Ελλάδα", "“quoted”", "£5 – €7", "两只狗在跑", "mañana por la mañana"]
)
def test_mojibake_is_what_can_be_read_back(text):
    assert not is_mojibake(text)
    assert is_mojibake(text.encode().decode("latin-1"))


def test_captions_of_the_same_words_are_the_same():
    assert normalized("A dog runs .") == normalized(" a  Dog, runs!")
    assert normalized("?!") == "?!"
