"""What an export computes for Pillow images and strings is what training's own evaluation computes."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError
from PIL import Image
from safetensors.numpy import load_file, save_file
from tiny import ROOT

import mvlm_jax
from mvlm_jax import config as config_lib
from mvlm_jax.errors import UserError
from mvlm_jax.evaluation import retrieval
from mvlm_jax.tasks.registry import open_task

BATCH = 5
TIGHT = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def model(export):
    return mvlm_jax.load(export, batch_size=BATCH)


@pytest.fixture(scope="module")
def task(demo_run, demo_dir):
    return open_task(config_lib.from_json((demo_run / "config.json").read_text()), workdir=demo_run)


@pytest.fixture(scope="module")
def pairs(task):
    """Images and captions of the validation split as a user has them."""
    [(pixels, _)] = task.split.image_batches(len(task.split))
    texts = [task.tokenizer.decode(row) for row in task.split.captions]
    np.testing.assert_array_equal(
        task.tokenizer.encode(texts, max_length=task.config.text.max_length), task.split.captions
    )
    return [Image.fromarray(image) for image in pixels], texts


@pytest.fixture(scope="module")
def evaluated(model, task):
    """Embeddings of the split, and features of its captions, by the code that evaluates a run."""
    z_image = retrieval.encode_images(task.model, model.params, task.split, batch_size=12)
    captions = task.split.captions
    z_text, w = retrieval.encode_texts(task.model, model.params, captions, batch_size=12, host_bytes=10**9)
    return z_image, z_text, w


def test_embeddings_are_those_of_the_evaluation(model, pairs, evaluated):
    z_image, z_text, _ = evaluated
    images, texts = pairs
    np.testing.assert_allclose(model.encode_image(images), z_image, **TIGHT)
    np.testing.assert_allclose(model.encode_text(texts), z_text, **TIGHT)
    np.testing.assert_allclose(np.linalg.norm(z_image, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(model.similarity(images, texts[:3]), z_image @ z_text[:3].T, **TIGHT)


def test_matching_is_that_of_the_evaluation(model, task, pairs, evaluated):
    images, texts = pairs
    captions = np.roll(np.arange(12), 1)
    wanted = retrieval.Pairs(captions[:, None], np.argsort(captions)[:, None], captions=12)
    assert len(wanted) == 12
    got = model.match(images, [texts[caption] for caption in captions])
    # With features of the captions at hand, and without.
    for w in (evaluated[2], None):
        odds = retrieval.match_pairs(task.model, model.params, task.split, wanted, w, batch_size=5)
        np.testing.assert_allclose(got, 1 / (1 + np.exp(-wanted.of_images(odds)[:, 0])), **TIGHT)
    assert len(set(got.round(6))) > 1


def test_a_batch_gives_what_single_calls_give(model, pairs):
    images, texts = pairs
    assert len(images) % BATCH  # the last batch is filled up
    for method, rows in ((model.encode_image, (images,)), (model.encode_text, (texts,)), (model.match, pairs)):
        whole = method(*rows)
        single = np.concatenate([method(*([row] for row in pair)) for pair in zip(*rows)])
        np.testing.assert_allclose(single, whole, rtol=1e-5, atol=1e-6)


def test_masks_are_filled_as_the_model_classifies_them(model, task, pairs):
    images, _ = pairs
    length = task.config.text.max_length
    tokens = task.tokenizer.encode(["a red square above a small disc"], max_length=length)
    [place] = [n for n in range(length) if task.tokenizer.decode(tokens[0, n : n + 1]) == "red"]
    tokens[0, place] = task.tokenizer.ids.mask
    text = "a <mask> square above a small disc"

    for image in (images[0], None):
        expected = classified(task.model, model.params, image, tokens, place, task.tokenizer.vocab_size)
        [filled] = model.fill_mask(text, image, top=4)
        best = np.argsort(-expected)[:4]
        np.testing.assert_allclose([p for _, p in filled], expected[best], rtol=1e-4)
        assert [spelled for spelled, _ in filled] == [
            task.tokenizer._tokenizer.decode([int(token)], skip_special_tokens=False).strip() for token in best
        ]
    assert model.fill_mask(text, images[0]) != model.fill_mask(text)


def classified(model, params, image, tokens, place, vocab_size):
    """Probabilities at one place, computed without a batch or a slot."""
    bound = model.bind({"params": params})
    text, slots = jnp.asarray(tokens), jnp.array([[place]])
    v = None if image is None else bound.encode_whole_image(jnp.asarray(np.array(image)[None]))
    fused = bound.fuse_text(bound.encode_text(text), bound.text_mask(text), v, slots)
    return np.asarray(jax.nn.softmax(bound.classify_tokens(fused)[0, 0, :vocab_size]))


def test_several_masks_are_filled_in_order(model):
    filled = model.fill_mask("a <mask> square beside <mask>", top=2)
    assert [len(each) for each in filled] == [2, 2]
    for each in filled:
        assert each[0][1] >= each[1][1] > 0
    everything = model.fill_mask("a <mask>", top=10_000)[0]
    assert len(everything) == model.tokenizer.vocab_size < model.config.text_encoder.vocab_size
    assert sum(p for _, p in everything) == pytest.approx(1, rel=1e-4)


def test_only_masked_patches_are_painted_and_from_the_text(model, pairs):
    images, texts = pairs
    hidden = np.zeros((4, 4), bool)
    hidden[1:3, 0] = True
    painted = np.asarray(model.reconstruct(images[0], texts[0], hidden))
    kept = np.repeat(np.repeat(~hidden, 8, axis=0), 8, axis=1)
    np.testing.assert_array_equal(painted[kept], np.asarray(images[0])[kept])
    assert (painted[~kept] != np.asarray(images[0])[~kept]).any()
    # What is hidden is not seen: other pixels there give the same painting.
    blotted = np.asarray(images[0]).copy()
    blotted[~kept] = 255 - blotted[~kept]
    np.testing.assert_array_equal(np.asarray(model.reconstruct(Image.fromarray(blotted), texts[0], hidden)), painted)


def test_a_painting_is_what_the_objective_scores(model, task, pairs):
    images, texts = pairs
    hidden = np.zeros((1, 16), bool)
    hidden[0, [2, 7, 11]] = True
    bound = task.model.bind({"params": model.params})
    text = jnp.asarray(task.split.captions[:1])
    text_mask, w = bound.text_mask(text), bound.encode_text(text)
    patches = bound.patches(jnp.asarray(np.array(images[0])[None]))
    v = bound.encode_image(patches, jnp.asarray(hidden[:, None]))[:, 0]
    fused = bound.fuse_image(v, w, text_mask)
    predicted = bound.decode_image(fused, w, text_mask, jnp.array([[2, 7, 11]]))[0]
    expected = np.round(np.clip(np.asarray(predicted) * 0.5 + 0.5, 0, 1) * 255)
    painted = np.asarray(model.reconstruct(images[0], texts[0], hidden.reshape(4, 4)))
    for patch, values in zip((2, 7, 11), expected):
        row, column = divmod(patch, 4)
        got = painted[8 * row : 8 * row + 8, 8 * column : 8 * column + 8].reshape(-1)
        np.testing.assert_allclose(got, values, atol=1)  # rounding at .5


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_images_of_any_mode_are_seen(model, pairs, mode):
    images, _ = pairs
    image = Image.new("I;16", (40, 30), 1000) if mode == "I;16" else images[0].resize((50, 37)).convert(mode)
    assert np.isfinite(model.encode_image([image])).all()


def test_transparency_is_white_and_size_does_not_matter(model):
    clear = Image.new("RGBA", (64, 48), (255, 0, 0, 0))
    white = Image.new("RGB", (32, 32), "white")
    np.testing.assert_allclose(model.encode_image([clear]), model.encode_image([white]), **TIGHT)


def test_images_lie_as_their_camera_says(model, pairs, tmp_path):
    upright = pairs[0][0].resize((64, 64))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    upright.rotate(180).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        np.testing.assert_allclose(model.encode_image([turned]), model.encode_image([upright]), **TIGHT)


def test_a_file_that_was_cut_short_is_refused(model, tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-1500])
    with Image.open(tmp_path / "cut.png") as image, pytest.raises(UserError, match="cannot be used: .*trunc"):
        model.encode_image([image])


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda model, image: model.encode_image([]), "images is empty; give at least one"),
        (lambda model, image: model.encode_text([]), "texts is empty; give at least one"),
        (lambda model, image: model.encode_text("a dog"), "texts must be a list of strings; put a single one in"),
        (lambda model, image: model.match([image], ["a", "b"]), "match got 1 images and 2 texts"),
        (lambda model, image: model.encode_image([Image.new("F", (4, 4))]), "unsupported_mode: F"),
        (lambda model, image: model.fill_mask("no blank"), "'no blank' holds no <mask> among its first 36 tokens"),
        (lambda model, image: model.fill_mask("a [MASK]"), "holds no <mask>"),
        (lambda model, image: model.fill_mask("a " * 40 + "<mask>"), "among its first 36 tokens"),
        (
            lambda model, image: model.reconstruct(image, "a", np.zeros((2, 2), bool)),
            "patch_mask has the shape (2, 2); the image has 4 rows of 4 patches",
        ),
    ],
)
def test_a_mistake_is_told_in_one_line(model, call, said):
    with pytest.raises(UserError) as error:
        call(model, Image.new("RGB", (32, 32)))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_signatures_say_what_goes_in(model):
    with pytest.raises(TypeCheckError):
        model.encode_image(Image.new("RGB", (32, 32)))


def test_a_process_of_its_own_computes_the_same(export, model, pairs, tmp_path):
    """Without the tests' checks of types, as a user imports it."""
    images, texts = pairs
    images[0].save(tmp_path / "image.png")
    script = f"""
from PIL import Image
import mvlm_jax
from mvlm_jax.errors import UserError
model = mvlm_jax.load({str(export)!r})
image = Image.open({str(tmp_path / "image.png")!r})
try:
    model.encode_image(image)
except UserError as error:
    print(error)
print(model.similarity([image], [{texts[0]!r}]).item())
"""
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    complaint, similarity = ran.stdout.strip().splitlines()
    assert complaint == "images is a single image; put it in brackets"
    assert float(similarity) == pytest.approx(model.similarity(images[:1], texts[:1]).item(), abs=1e-5)


# Folders that are not an export


def copied(export, target):
    target.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (target / name).write_bytes((export / name).read_bytes())
    return target


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda folder: (folder / "config.json").unlink(), "give a folder that mvlm weights export wrote"),
        (lambda folder: (folder / "model.safetensors").unlink(), "there is no "),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json' cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{}"), "cannot be used: missing fields"),
        (lambda folder: cut_short(folder / "model.safetensors"), "is damaged or cut short"),
        (lambda folder: (folder / "checkpoints").mkdir(), "is a run; export it with mvlm weights export --workdir="),
        (lambda folder: without_one(folder / "model.safetensors"), "in 1 parameters, the first is temperature"),
    ],
)
def test_a_spoilt_export_is_refused(export, spoil, said, tmp_path):
    folder = copied(export, tmp_path / "copy")
    spoil(folder)
    with pytest.raises(UserError) as error:
        mvlm_jax.load(folder)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_batch_size_below_one_is_refused(export):
    with pytest.raises(UserError, match="batch_size=0 must be a whole number of at least 1"):
        mvlm_jax.load(export, batch_size=0)


def cut_short(file):
    file.write_bytes(file.read_bytes()[:-10])


def without_one(file):
    save_file({path: value for path, value in load_file(file).items() if path != "temperature"}, file)
