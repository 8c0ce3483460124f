import jax
import numpy as np
import pytest
from PIL import Image
from tiny import SMALLER, recipe

from mvlm_jax.data.formats.image_folder import open_image_folder, read_class_names, read_templates
from mvlm_jax.data.images import ImageSpec
from mvlm_jax.data.text import train_tokenizer
from mvlm_jax.errors import UserError
from mvlm_jax.evaluation import classification
from mvlm_jax.models.maskvlm import MaskVLM
from mvlm_jax.tasks.pretrain import Pretrain

COLOURS = {"dark_blue": (0, 0, 90), "green": (0, 160, 0), "red": (220, 0, 0)}


@pytest.fixture
def folder(tmp_path):
    for name, colour in COLOURS.items():
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("RGB", (40, 30), colour).save(tmp_path / name / f"{number}.png")
    (tmp_path / "red" / "broken.jpg").write_bytes(b"not an image")
    (tmp_path / "red" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "green" / "folder.png").mkdir()
    (tmp_path / "red" / "notes.txt").write_text("no image at all")
    return tmp_path


@pytest.fixture(scope="module")
def parts():
    config = recipe("demo")
    config.update_from_flattened_dict(SMALLER)
    tokenizer = train_tokenizer(["a photo of a dark blue green red thing"], kind="roberta", vocab_size=400)
    model = Pretrain.build_model(config, pad_id=tokenizer.ids.pad)
    params = jax.jit(model.init)(jax.random.key(0), *Pretrain.model_inputs(config))["params"]
    return model, params, tokenizer


OPTIONS = {"spec": ImageSpec(size=32, max_pixels=10**6), "batch_size": 4}


def test_the_nearest_prompts_decide_and_ties_do_not_help(parts, folder, monkeypatch):
    """Embeddings made up from the colours, so that what is right is known."""
    model, params, tokenizer = parts
    names = [name.replace("_", " ") for name in COLOURS]

    def embed(model, params, image, *, method):
        assert method is MaskVLM.embed_image
        return jax.numpy.asarray(np.asarray(image).mean(axis=(1, 2)) / 255 - 0.3)

    prototypes = {"dark blue": [0, 0, 1.0], "green": [0, 1.0, 0], "red": [0, 1.0, 0]}
    monkeypatch.setattr(classification, "compute", embed)
    monkeypatch.setattr(
        classification, "class_embeddings", lambda *_, **__: np.array([prototypes[name] for name in names])
    )
    prompts = classification.Prompts(tokenizer, max_length=28)
    results = classification.classify_folder(model, params, folder, prompts, **OPTIONS)
    # Red stands where green does: a green image ties between both, a red one is nearer to neither.
    assert results["images"] == 9
    assert results["left_out"] == {"unrecognized": 1, "absent": 2}
    assert results["classes"] == 3
    assert results["top1"] == pytest.approx(100 * 3 / 9)
    assert "top5" not in results  # any of three classes is among the best five
    assert results["class_names"] == names
    # A green image was taken for red, with which it ties; a red one ties with all.
    assert results["confusion"] == [[3, 0, 0], [0, 0, 3], [3, 0, 0]]
    assert {name: values["top1"] for name, values in results["per_class"].items()} == {
        "dark blue": 100,
        "green": 0,
        "red": 0,
    }
    assert results["predictions"][0] == {
        "image": "dark_blue/0.png",
        "class": "dark blue",
        "predicted": "dark blue",
        "rank": 1,
    }
    assert len(results["predictions"]) == 9


def test_the_five_best_are_counted_where_there_are_more_classes(tmp_path):
    images = [(tmp_path / f"{number}.png", 0) for number in range(4)]
    measured = classification._measured(
        np.array([0, 4, 5, 1]), np.array([0, 1, 2, 3]), images, list("abcdef"), directory=tmp_path
    )
    assert (measured["top1"], measured["top5"]) == (25, 75)
    assert measured["confusion"][0] == [1, 1, 1, 1, 0, 0]
    assert measured["per_class"]["b"] == {"images": 0}


def test_embeddings_that_are_no_number_find_no_class(parts, folder, monkeypatch):
    model, params, tokenizer = parts
    monkeypatch.setattr(
        classification, "compute", lambda model, params, image, **_: jax.numpy.full((len(image), 3), jax.numpy.nan)
    )
    monkeypatch.setattr(classification, "class_embeddings", lambda *_, **__: np.eye(3))
    prompts = classification.Prompts(tokenizer, max_length=28)
    assert classification.classify_folder(model, params, folder, prompts, **OPTIONS)["top1"] == 0


def test_a_class_is_the_mean_of_its_prompts(parts):
    model, params, tokenizer = parts

    def embeddings(*templates):
        prompts = classification.Prompts(tokenizer, max_length=28, templates=templates)
        return classification.class_embeddings(model, params, ["red", "green"], prompts, batch_size=4)

    both, single = embeddings("a photo of a {}", "a {}"), [embeddings("a photo of a {}"), embeddings("a {}")]
    mean = sum(single) / 2
    np.testing.assert_allclose(both, mean / np.linalg.norm(mean, axis=1, keepdims=True), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(both, axis=1), 1)


def test_folders_name_their_classes(folder):
    classes, images = open_image_folder(folder)
    assert classes == ["dark blue", "green", "red"]
    assert len(images) == 12
    assert {classes[label] for path, label in images if path.parent.name == "dark_blue"} == {"dark blue"}
    with pytest.raises(UserError, match="holds 0 folders"):
        open_image_folder(folder / "red")
    with pytest.raises(UserError, match="is not a folder"):
        open_image_folder(folder / "nothing")


def test_a_file_gives_the_classes_their_names(folder, tmp_path):
    file = tmp_path / "names.tsv"
    file.write_text("red\tcrimson\n\ndark_blue\tnavy, deep blue\ngreen\tgreen\n")
    classes, images = open_image_folder(folder, names=read_class_names(file))
    assert classes == ["navy, deep blue", "green", "crimson"]
    assert {classes[label] for path, label in images if path.parent.name == "red"} == {"crimson"}
    for lines, message in (
        ("red\tcrimson\ndark_blue\tnavy", "the class names lack 1 folders of .*, the first 'green'"),
        (
            "red\ta\ndark_blue\tb\ngreen\tc\nn01440764\ttench",
            "lacks 1 folders of the class names, the first 'n01440764'",
        ),
    ):
        file.write_text(lines)
        with pytest.raises(UserError, match=message):
            open_image_folder(folder, names=read_class_names(file))
    for lines, message in (
        ("red crimson", "needs lines of a folder, a tab and a name, not 'red crimson'"),
        ("red\t", "needs lines of a folder, a tab and a name, not 'red'"),
        ("", "needs lines of a folder, a tab and a name$"),
        ("red\ta\nred\tb", "name the folder 'red' more than once"),
    ):
        file.write_text(lines)
        with pytest.raises(UserError, match=message):
            read_class_names(file)


def test_templates_have_one_place_for_the_class(tmp_path):
    file = tmp_path / "templates.txt"
    file.write_text("a photo of a {}.\n\nthe {}\n")
    assert read_templates(file) == ["a photo of a {}.", "the {}"]
    file.write_text("a photo\n")
    with pytest.raises(UserError, match="needs lines with one {} each"):
        read_templates(file)
