"""Every public call of a loaded model with inputs that it cannot use: one line, a ValueError, nothing else."""

from pathlib import Path

import jaxtyping
import numpy as np
import pytest
from PIL import Image
from tiny import recipe

import mvlm_jax
from mvlm_jax.errors import UserError
from mvlm_jax.inference import Inference, image_files
from mvlm_jax.tasks.registry import describe_task

GOOD = Image.new("RGB", (32, 32))
# Neither one image nor a list of them.
NO_IMAGES = {
    "None": None,
    "a number": 3,
    "bytes": b"\x89PNG",
    "an empty list": [],
    "an empty generator": iter(()),
    "a single image": GOOD,
    "the pixels of one": np.zeros((8, 8, 3), np.uint8),
    "a missing file": "no such file.jpg",
    "a list with a missing file": ["no such file.jpg"],
    "an array of floats": np.zeros((2, 8, 8, 3), np.float32),
    "an array of strings": np.array(["a.jpg", "b.jpg"]),
    "grey pixels": [np.zeros((8, 8), np.uint8)],
    "a list with None": [GOOD, None],
    "a list of lists": [[GOOD], [[GOOD]]],
    "a mapping": {"image": GOOD},
    "an image without pixels": [Image.new("RGB", (0, 4))],
    "a generator with a number": (number for number in (1, 2)),
    "an address": ["https://example.com/dog.jpg"],
    "a null character": ["a\0.jpg"],
}
NO_IMAGE = {name: value for name, value in NO_IMAGES.items() if name not in ("a single image", "the pixels of one")} | {
    "a list": [GOOD],
    "a list with a good text": [GOOD, GOOD],
}
GENERATORS = {"a generator": (image for image in (GOOD, GOOD)), "a set": {1, 2}}
NO_TEXTS = {
    "None": None,
    "one string": "a dog",
    "a number": 3,
    "bytes": b"a dog",
    "an empty list": [],
    "an array of strings": np.array(["a dog", "a cat"]),
    "a generator": (text for text in ("a dog", "a cat")),
    "a list with None": ["a dog", None],
    "a list of lists": [["a dog"]],
    "a set": {"a dog"},
    "a mapping": {"a dog": 1},
    "a list of bytes": [b"a dog"],
}
NO_TEXT = {name: value for name, value in NO_TEXTS.items() if name != "one string"} | {"a list of one": ["a dog"]}
NO_GRID = {
    "None": None,
    "another shape": np.zeros((2, 2), bool),
    "three axes": np.zeros((3, 4, 4), bool),
    "numbers": np.full((4, 4), 7),
    "floats": np.full((4, 4), 0.5),
    "strings": np.full((4, 4), "x"),
    "a ragged list": [[True], [True, False]],
    "a number": 1,
    "a string": "all",
    "an empty list": [],
    "None in it": [[None] * 4] * 4,
}
NO_BOX = {
    "None": None,
    "a number": 0.5,
    "a string": "top left",
    "strings": ["0", "0", "1", "1"],
    "three numbers": (0, 0, 1),
    "two corners": ((0, 0), (1, 1)),
    "a ragged list": [0, [0, 1], 1],
    "a generator": (number for number in (0, 0, 1, 1)),
    "pixels": (0, 0, 32, 32),
    "left of the image": (-0.1, 0, 1, 1),
    "nothing": (0.5, 0, 0.5, 1),
    "bottom before top": (0, 1, 1, 0),
    "nan": (0, 0, float("nan"), 1),
}
NO_NUMBER = {"0": 0, "-1": -1, "half": 0.5, "True": True, "a string": "3", "a list": [3], "nan": float("nan")}
NO_LABELS = NO_TEXTS | {"one": ["dog"], "two alike": ["dog", "dog"], "an empty one": ["dog", " "]}
NO_TEMPLATES = NO_TEXTS | {"no place": ["a photo"], "two places": ["{} or {}"], "a named place": ["a {name}"]}
NO_BLANKS = {"no mask": "a dog", "another's mask": "a [MASK]", "nothing": "", "cut off": "a " * 60 + "<mask>"}
NO_COUNT = {name: value for name, value in NO_NUMBER.items() if name != "0"}
NO_SCORES = {"None": None, "a number": 3, "another": "itm", "a list": ["match"]}
NO_VERBS = {"another's": "answer", "no method": "dance", "None": None, "a number": 3}


def without_none(wrongs):
    """For an argument that may be None."""
    return {name: value for name, value in wrongs.items() if value is not None}


TEXTS = ["a dog"]
GRID = np.zeros((4, 4), bool)
CALLS = {
    "encode_image": (NO_IMAGES, lambda model, wrong: model.encode_image(wrong)),
    "encode_text": (NO_TEXTS, lambda model, wrong: model.encode_text(wrong)),
    "similarity, images": (NO_IMAGES, lambda model, wrong: model.similarity(wrong, TEXTS)),
    "similarity, texts": (NO_TEXTS, lambda model, wrong: model.similarity([GOOD], wrong)),
    "match, images": (NO_IMAGES | GENERATORS, lambda model, wrong: model.match(wrong, TEXTS)),
    "match, texts": (NO_TEXTS | {"more": ["a", "b"]}, lambda model, wrong: model.match([GOOD], wrong)),
    "rank, images": (NO_IMAGES | GENERATORS, lambda model, wrong: model.rank(wrong, TEXTS)),
    "rank, texts": (NO_TEXTS, lambda model, wrong: model.rank([GOOD], wrong)),
    "rank, top": (NO_NUMBER, lambda model, wrong: model.rank([GOOD], TEXTS, top=wrong)),
    "rank, rerank": (NO_COUNT, lambda model, wrong: model.rank([GOOD], TEXTS, rerank=wrong)),
    "classify, images": (NO_IMAGES, lambda model, wrong: model.classify(wrong, ["dog", "cat"])),
    "classify, labels": (NO_LABELS, lambda model, wrong: model.classify([GOOD], wrong)),
    "classify, templates": (NO_TEMPLATES, lambda model, wrong: model.classify([GOOD], ["a", "b"], templates=wrong)),
    "fill_mask, text": (NO_TEXT | NO_BLANKS, lambda model, wrong: model.fill_mask(wrong)),
    "fill_mask, image": (without_none(NO_IMAGE), lambda model, wrong: model.fill_mask("a <mask>", wrong)),
    "fill_mask, images": (
        without_none(NO_IMAGES | GENERATORS),
        lambda model, wrong: model.fill_mask(["a <mask>"], wrong),
    ),
    "fill_mask, top": (NO_NUMBER, lambda model, wrong: model.fill_mask("a <mask>", top=wrong)),
    "reconstruct, image": (NO_IMAGE, lambda model, wrong: model.reconstruct(wrong, "a dog", GRID)),
    "reconstruct, text": (
        without_none(NO_TEXT),
        lambda model, wrong: model.reconstruct(GOOD, wrong, GRID),
    ),
    "reconstruct, texts": (
        without_none(NO_TEXTS) | {"more": ["a", "b"]},
        lambda model, wrong: model.reconstruct([GOOD], wrong, GRID),
    ),
    "reconstruct, mask": (NO_GRID, lambda model, wrong: model.reconstruct(GOOD, "a dog", wrong)),
    "patch_mask": (NO_BOX, lambda model, wrong: model.patch_mask(wrong)),
    "attention, image": (NO_IMAGE, lambda model, wrong: model.attention(wrong, "a dog")),
    "attention, of": (
        {"None": None, "a number": 3, "another": "itm", "a list": ["match"]},
        lambda model, wrong: model.attention(GOOD, "a", of=wrong),
    ),
    "attention, text": (NO_TEXT | {"no words": "?!", "nothing": ""}, lambda model, wrong: model.attention(GOOD, wrong)),
    "warm_up": (NO_VERBS, lambda model, wrong: model.warm_up(wrong)),
    "image_files": ({"a file": __file__, "nothing": "nowhere"}, lambda model, wrong: image_files(wrong)),
}
LABELLED = {
    "images": (NO_IMAGES | GENERATORS, lambda verb, wrong: verb(wrong, TEXTS)),
    "texts": (NO_TEXTS | {"more": ["a", "b"]}, lambda verb, wrong: verb([GOOD], wrong)),
}
FOLDERS = {
    "None": None,
    "a number": 3,
    "bytes": b"runs",
    "nothing": "",
    "a list": ["runs"],
    "a null character": "a\0b",
    "no folder": "nowhere at all",
    "a file": __file__,
    "a folder of something else": str(Path(__file__).parent),
    "an address": "https://example.com/model",
}
OPTIONS = (
    [("batch_size", value) for value in (0, -1, 2.5, "8", None, True)]
    + [("device", value) for value in ("tpu", "cpu:99", "cpu:x", "", 3, ["cpu"])]
    + [("dtype", value) for value in ("float16", "int8", np.float32, 16, "")]
    + [("compilation_cache", "")]
)


@pytest.fixture(autouse=True)
def without_checks_of_types():
    """As users call it."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="module")
def model(export):
    return mvlm_jax.load(export, batch_size=5)


def check(name, call, *arguments, **options):
    with pytest.raises(ValueError) as error:
        call(*arguments, **options)
    # Its own class says that the message is one of ours, in one line.
    assert type(error.value) is UserError, f"{name}: {error.value!r}"
    assert str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 500, f"{name}: {error.value}"


@pytest.mark.parametrize("call", CALLS)
def test_what_a_pretrained_model_cannot_use_is_refused_in_one_line(model, call):
    wrongs, make = CALLS[call]
    for name, wrong in wrongs.items():
        check(name, make, model, wrong)


@pytest.mark.parametrize("task, verbs", [("vqa", ("answer", "predict")), ("nlvr2", ("classify_pair", "predict"))])
def test_what_a_finetuned_model_cannot_use_is_refused_in_one_line(task, verbs):
    config = recipe({"vqa": "finetune_vqa", "nlvr2": "finetune_nlvr2"}[task])
    config.text_encoder.vocab_size = 300
    model = Inference(task=describe_task(config), params={}, batch_size=2)
    for verb in verbs:
        for part, (wrongs, call) in LABELLED.items():
            for name, wrong in wrongs.items():
                check(f"{verb}, {part}: {name}", call, getattr(model, verb), wrong)
    check("a method of another task", model.encode_image, [GOOD])


def test_a_folder_or_option_that_nothing_can_be_loaded_from_is_refused_in_one_line(export, demo_run):
    for name, folder in FOLDERS.items():
        check(name, mvlm_jax.load, folder)
    for option, value in OPTIONS:
        check(f"{option}={value!r}", mvlm_jax.load, export, **{option: value})
    with pytest.raises(ValueError, match=f"mvlm weights export --workdir={demo_run} --output=FOLDER"):
        mvlm_jax.load(demo_run)


def test_the_error_says_which_image_and_what_would_be_right(model):
    for call, said in (
        (lambda: model.encode_image([GOOD, None]), "images[1] is None; give a Pillow image, the path of a file, or"),
        (lambda: model.match((GOOD for _ in range(2)), ["a", "b"]), "images is a generator; give a list"),
        (lambda: model.encode_text(np.array(["a"])), "texts is an array of <U1 [1]; give a list of strings"),
        (lambda: model.fill_mask(["a <mask>"], GOOD), "image is a single image; put it in brackets"),
        (
            lambda: model.encode_image("dog.jpg"),
            "images is 'dog.jpg', which is no folder; put a single file in brackets",
        ),
        (lambda: model.attention(GOOD, ["a dog"]), "text is a list of strings; give one string"),
    ):
        with pytest.raises(UserError) as error:
            call()
        assert said in str(error.value)
