"""What a loaded model is given, how it ranks and classifies, and where it runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mvlm_jax
from mvlm_jax.data.builders import shapes
from mvlm_jax.evaluation.classification import Prompts, class_embeddings
from mvlm_jax.inference.boxes import patches_in
from mvlm_jax.models.maskvlm import MaskVLM

TEXTS = ["a red circle", "a small blue star", "a large green cross"]
TIGHT = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module")
def model(export):
    return mvlm_jax.load(export, batch_size=5)


@pytest.fixture(scope="module")
def images():
    return [shapes.render(scene) for _, scene in shapes.scenes(counts={"val": 7, "test": 0, "train": 0}, seed=3)]


def test_an_image_may_be_a_file_or_an_array_and_all_of_them_a_folder_or_a_generator(model, images, tmp_path):
    expected = model.encode_image(images)
    (tmp_path / "more").mkdir()
    (tmp_path / ".hidden").mkdir()
    files = [tmp_path / ("more" if number == 6 else ".") / f"{number}.png" for number in range(7)]
    for image, file in zip(images, files, strict=True):
        image.save(file)
    images[0].save(tmp_path / ".hidden" / "0.png")
    (tmp_path / "notes.txt").write_text("no image")
    assert mvlm_jax.inference.image_files(tmp_path) == [tmp_path / file.relative_to(tmp_path) for file in files]
    pixels = np.stack([np.asarray(image) for image in images])
    ways = (files, list(map(str, files)), tmp_path, str(tmp_path), list(pixels), pixels, jnp.asarray(pixels))
    for way in (*ways, iter(images), (file for file in files)):
        np.testing.assert_allclose(model.encode_image(way), expected, **TIGHT)
    mixed = [images[0], files[1], str(files[2]), pixels[3]]
    np.testing.assert_allclose(model.encode_image(mixed), expected[:4], **TIGHT)
    np.testing.assert_allclose(model.match(tmp_path, ["a"] * 7), model.match(images, ["a"] * 7), **TIGHT)


def test_no_more_than_two_batches_of_images_are_held(model, images):
    given = []

    def endless():
        while True:
            given.append(1)
            yield images[0]

    embedded = model.encode_image_batches(endless())
    for number in range(1, 4):
        assert len(next(embedded)) == 5
        assert len(given) <= 5 * (number + 1)


def test_ranking_is_by_similarity_and_then_by_matching(model, images):
    cosine = model.similarity(images, TEXTS).T
    for text, hits in zip(range(3), model.rank(images, TEXTS, top=7, rerank=0), strict=True):
        assert [hit.image for hit in hits] == np.argsort(-cosine[text]).tolist()
        assert all(hit.match is None for hit in hits)
    temperature = float(model.model.apply({"params": model.params}, method=MaskVLM.temperature))
    for text, hits in zip(range(3), model.rank(images, TEXTS, top=6, rerank=4), strict=True):
        first = np.argsort(-cosine[text])[:4]
        match = model.match([images[index] for index in first], [TEXTS[text]] * 4)
        added = np.log(match / (1 - match)) + cosine[text][first] / temperature  # config.eval.rerank_by=itm+itc
        assert [hit.image for hit in hits[:4]] == first[np.argsort(-added)].tolist()
        np.testing.assert_allclose([hit.match for hit in hits[:4]], match[np.argsort(-added)], rtol=1e-4)
        assert [hit.image for hit in hits[4:]] == np.argsort(-cosine[text])[4:6].tolist()
    assert model.reranked_by_default == 3  # config.eval.rerank
    assert [hit.match is None for hit in model.rank(images, TEXTS[:1])[0]] == [False] * 3 + [True] * 4


def test_classes_have_the_softmax_of_the_cosines_with_their_prompts(model, images):
    labels, templates = ["red", "blue {x}"], ["a {} thing", "{}"]
    prompts = Prompts(model.tokenizer, model.config.text.max_length, templates)
    classes = class_embeddings(model.model, model.params, labels, prompts, batch_size=5)
    temperature = float(model.model.apply({"params": model.params}, method=MaskVLM.temperature))
    expected = jax.nn.softmax(model.encode_image(images) @ classes.T / temperature)
    got = model.classify(iter(images), labels, templates=templates)
    assert [list(row) for row in got] == [labels] * 7
    np.testing.assert_allclose([list(row.values()) for row in got], expected, rtol=1e-4)


@pytest.mark.slow
def test_lists_give_what_single_calls_give(model, images):
    texts = [
        "a <mask> circle",
        "a <mask> <mask> <mask> left",
        "a red <mask>",
        "<mask>",
        "a <mask>",
        "the <mask>",
        "<mask> a",
    ]
    for given in (None, images):
        single = [model.fill_mask(text, given and given[place], top=3) for place, text in enumerate(texts)]
        for one, other in zip(single, model.fill_mask(texts, given, top=3), strict=True):
            assert [[word for word, _ in row] for row in one] == [[word for word, _ in row] for row in other]
            np.testing.assert_allclose(
                [[p for _, p in row] for row in one], [[p for _, p in row] for row in other], rtol=1e-4
            )
    assert [len(rows) for rows in model.fill_mask(texts)] == [1, 3, 1, 1, 1, 1, 1]
    hidden = np.random.default_rng(0).random((7, 4, 4)) < 0.5
    for texts in (None, ["a red circle"] * 7):
        painted = model.reconstruct(images, texts, hidden)
        for place in range(7):
            alone = model.reconstruct(images[place], texts and texts[place], hidden[place])
            np.testing.assert_allclose(np.asarray(painted[place], int), np.asarray(alone, int), atol=1)
    shared = model.reconstruct(images, None, hidden[0])
    np.testing.assert_array_equal(np.asarray(shared[0]), np.asarray(model.reconstruct(images[:1], None, hidden[0])[0]))


def test_a_box_hides_the_patches_that_it_touches(model, images):
    def rows(*box):
        return ["".join(".x"[patch] for patch in row) for row in model.patch_mask(box).astype(int)]  # 4 x 4 patches

    assert rows(0.5, 0, 1, 0.5) == ["..xx", "..xx", "....", "...."]
    assert rows(0.24, 0.75, 0.26, 1) == ["....", "....", "....", "xx.."]
    assert rows(0, 0, 1, 1) == ["xxxx"] * 4
    # In floating point 0.29 * 100 is less than 29, and 0.07 * 100 more than 7.
    assert np.argwhere(patches_in([0.29, 0, 1, 0.07], side=100)).sum() == 7 * sum(range(29, 100)) + 71 * sum(range(7))
    both = model.patch_mask((0.5, 0, 1, 0.5)) | model.patch_mask((0, 0.5, 0.5, 1))
    painted = np.asarray(model.reconstruct(images[0], "a red circle", both))
    changed = (painted != model.pixels(images[:1])[0]).reshape(4, 8, 4, 8, 3).any(axis=(1, 3, 4))
    np.testing.assert_array_equal(changed, both)


def test_each_word_has_a_heat_map_and_a_picture(model, images):
    text = "a small, dark-blue circle"
    heat = model.attention(images[0], text, of="word")
    assert heat.words == ("a", "small", "dark", "blue", "circle")
    assert heat.maps.shape == (5, 4, 4) and heat.maps.min() >= 0 and np.isfinite(heat.maps).all()
    assert heat.match == pytest.approx(model.match(images[:1], [text])[0], rel=1e-4)
    assert heat.picture().width > 6 * 100 and "\n" not in repr(heat)
    with pytest.raises(ValueError, match="attention needs of='word' for this model"):
        model.attention(images[0], text)


def test_it_says_what_it_is_in_three_lines(model):
    lines = repr(model).splitlines()
    assert len(lines) == 3 and max(map(len, lines)) < 140
    assert "config.task=pretrain" in lines[0] and "float32" in lines[0] and "encode_image" in lines[2]
    assert str(sum(leaf.size for leaf in jax.tree.leaves(model.params)))[:2] in lines[0]


def test_every_method_is_compiled_by_a_warm_up(model):
    assert list(model.warm_up()) == list(model.task.verbs)
    [(verb, seconds)] = model.warm_up("match").items()
    assert verb == "match" and 0 < seconds < 10


def test_the_device_and_the_type_are_arguments(export, model, images):
    other = mvlm_jax.load(export, batch_size=5, device="cpu:3", dtype="bfloat16")
    assert {device for leaf in jax.tree.leaves(other.params) for device in leaf.devices()} == {jax.devices("cpu")[3]}
    assert other.model.dtype == jnp.bfloat16 and "bfloat16" in repr(other)
    expected = model.encode_image(images)
    np.testing.assert_allclose(other.encode_image(images), expected, atol=0.05)
    assert (other.encode_image(images) != expected).any()
    assert other.fingerprint == model.fingerprint
    changed = jax.tree.map(lambda leaf: leaf * 1.5, model.params)
    assert type(model)(model.task, changed, 5).fingerprint != model.fingerprint
