import dataclasses
import functools
import pickle
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tiny import ROOT

from mvlm_jax.cli import prepare as prepare_command
from mvlm_jax.data.builders import registry, shapes_tasks
from mvlm_jax.data.builders.shapes import COLORS, SHAPES, render, scenes
from mvlm_jax.data.formats import snli_ve
from mvlm_jax.data.labelled import LabelledSource
from mvlm_jax.data.mixtures import open_mixture
from mvlm_jax.data.sources import open_labelled, open_source
from mvlm_jax.data.writing.dataset import read_manifest, write_dataset
from mvlm_jax.errors import UserError

COUNTS = {"train": 1200, "val": 120, "test": 120}


@functools.cache
def drawn(split="train"):
    return tuple(scene for name, scene in scenes(counts=COUNTS, seed=0) if name == split)


def rng():
    return np.random.default_rng(0)


def best_guess(examples, *, seen):
    """How often one is right who always gives the commonest answer to what is `seen`."""
    answers = defaultdict(Counter)
    for example in examples:
        answers[seen(example)][example.answer] += 1
    return sum(max(found.values()) for found in answers.values()) / len(examples)


@functools.cache
def questions():
    return tuple(shapes_tasks.questions(drawn(), rng()))


def test_answers_are_true_of_the_scene():
    kinds = Counter()
    for example in questions():
        (scene,) = example.scenes
        looks = [(shape.color, shape.shape) for shape in scene.shapes]
        words = example.text.rstrip("?").split()
        if example.answer_type == "yes/no":
            assert ((words[-2], words[-1]) in looks) == (example.answer == "yes")
        elif example.answer_type == "number":
            assert int(example.answer) == len(looks)
        elif words[1] == "color":
            assert [color for color, shape in looks if shape == words[-1]] == [example.answer]
        else:
            assert [shape for color, shape in looks if color == words[-1]] == [example.answer]
        kinds[example.answer_type, words[1]] += 1
    assert len(kinds) == 4
    assert min(kinds.values()) > 200


def test_no_question_can_be_answered_without_its_image():
    for kind, chance in (("yes/no", 0.5), ("number", 1 / 2)):
        of_kind = [example for example in questions() if example.answer_type == kind]
        # Over a few hundred questions with many wordings the commonest answer wins by luck too.
        assert best_guess(of_kind, seen=lambda e: e.text.split()[0]) < chance + 0.06
    yes_no = [example for example in questions() if example.answer_type == "yes/no"]
    assert best_guess(yes_no, seen=lambda e: e.text) < 0.62
    for word, chance in (("color", 1 / len(COLORS)), ("shape", 1 / len(SHAPES))):
        other = [e for e in questions() if e.text.split()[1] == word and e.answer_type == "other"]
        assert best_guess(other, seen=lambda e: e.text) < chance + 0.08
    assert best_guess(questions(), seen=lambda e: e.text) < 0.5


def test_no_image_says_yes_or_no_without_its_question():
    yes_no = [example for example in questions() if example.answer_type == "yes/no"]
    assert best_guess(yes_no, seen=lambda e: e.scenes) == 0.5
    assert best_guess(questions(), seen=lambda e: e.scenes) < 0.5


@functools.cache
def statements():
    return tuple(shapes_tasks.statements(drawn(), rng(), fours=300))


def test_statements_are_labelled_as_the_scenes_say():
    forms = Counter()
    for example in statements():
        left, right = ([(s.color, s.shape) for s in scene.shapes] for scene in example.scenes)
        text = example.text
        if found := re.fullmatch("both images show something (.*)", text):
            holds = all(found[1] in dict(looks) for looks in (left, right))
        elif found := re.fullmatch("only one image shows a (.*)", text):
            holds = len([looks for looks in (left, right) if found[1] in [shape for _, shape in looks]]) == 1
        elif found := re.fullmatch("the (left|right) image shows a (.*) (.*)", text):
            holds = (found[2], found[3]) in {"left": left, "right": right}[found[1]]
        elif "more" in text:
            holds = len(left) > len(right)
        else:
            holds = len(left) < len(right)
        assert example.answer == str(holds)
        forms[text.split()[0], text.split()[1]] += 1
    assert min(forms.values()) > 20


def test_statements_cannot_be_judged_from_one_side_alone():
    for four in _batched(statements(), 4):
        assert best_guess(four, seen=lambda e: (e.group, e.text)) == 0.5
        assert best_guess(four, seen=lambda e: e.scenes) == 0.5
        assert Counter(e.answer for e in four) == {"True": 2, "False": 2}
    groups = Counter(example.group for example in statements())
    assert set(groups.values()) == {2}


@functools.cache
def hypotheses(split="train"):
    return tuple(shapes_tasks.hypotheses(drawn(split), rng(), nines=60))


def test_hypotheses_are_labelled_as_the_scene_says():
    for example in hypotheses() + hypotheses("val"):
        (scene,) = example.scenes
        color, shape = re.fullmatch("the (.*) one is an? (.*)", example.text).groups()
        looks = [shape.shape for shape in scene.shapes if shape.color == color]
        expected = "neutral" if not looks else "entailment" if looks == [shape] else "contradiction"
        assert example.answer == expected
        assert len(looks) < 2


def test_hypotheses_cannot_be_judged_from_one_side_alone():
    for nine in _batched(hypotheses(), 9):
        for seen in (lambda e: e.text, lambda e: e.scenes):
            answers = defaultdict(list)
            for example in nine:
                answers[seen(example)].append(example.answer)
            assert [sorted(found) for found in answers.values()] == [sorted(snli_ve.LABELS)] * 3


def _batched(values, size):
    return [values[start : start + size] for start in range(0, len(values), size)]


@pytest.fixture(scope="module")
def collections():
    return {name: shapes_tasks.collection(name, train=60, val=60, test=60) for name in shapes_tasks.TASKS}


@pytest.fixture(scope="module")
def data_dir(collections, tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    for name, collection in collections.items():
        write_dataset(collection, name=name, data_dir=directory)
    return directory


@pytest.mark.parametrize("name", shapes_tasks.TASKS)
def test_datasets_hold_what_was_drawn_in_its_order(name, collections, data_dir):
    for split, source in collections[name].splits.items():
        written = open_labelled(f"tfds:{name}:{split}", data_dir=str(data_dir))
        assert isinstance(written, LabelledSource)
        assert len(written) == len(source) > 10
        copy = pickle.loads(pickle.dumps(source))
        for index in range(len(source)):
            assert written[index] == source[index] == copy[index]
            assert written.row(index) == source.row(index)
            assert written.example_id(index) == source.example_id(index) == f"{name}-{split}-{index:06d}"
    # Datasets of every version are read by these names.
    features = read_manifest(data_dir / name / "1.0.0")["features"]
    assert set(features) == {"images", "answers", "text", "kind", "group", "example_id"}
    part = open_labelled(f"tfds:{name}:val[5:9]", data_dir=str(data_dir))
    assert [part.example_id(index) for index in range(4)] == [f"{name}-val-{index:06d}" for index in range(5, 9)]


def test_rows_are_made_without_a_look_at_the_images(collections, data_dir, monkeypatch):
    written = open_labelled("tfds:shapes_nlvr2:val", data_dir=str(data_dir))
    values = written.values
    monkeypatch.setattr(written, "values", lambda index: {k: v for k, v in values(index).items() if k != "images"})
    assert written.row(3) == collections["shapes_nlvr2"].splits["val"].row(3)


def test_datasets_are_read_by_tfds(collections, data_dir):
    records = tfds.builder_from_directory(data_dir / "shapes_nlvr2" / "1.0.0").as_data_source("test")
    source = collections["shapes_nlvr2"].splits["test"]
    assert len(records) == len(source)
    left, right = (np.asarray(render(scene)) for scene in source.drawn[3].scenes)
    np.testing.assert_array_equal(records[3]["images"], [left, right])
    assert records[3]["text"].decode() == source[3]["text"]


def test_datasets_have_a_manifest(collections, data_dir):
    manifest = read_manifest(data_dir / "shapes_vqa" / "1.0.0")
    assert manifest["source"] == "shapes in 2 x 2 places, drawn with seed 0, train 60, val 60, test 60"
    assert manifest["features"]["images"] == manifest["features"]["answers"] == "Sequence"
    train = manifest["splits"]["train"]
    assert train["examples"] == len(collections["shapes_vqa"].splits["train"])
    assert train["captions"] == 0
    assert [shard["examples"] for shard in train["shards"]] == [train["examples"]]


def test_examples_with_an_image_that_cannot_be_read_are_left_out(collections, tmp_path):
    class Damaged(shapes_tasks.ShapesTask):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            return {**example, "images": [example["images"][0], b""]} if index == 2 else example

    whole = collections["shapes_nlvr2"]
    source = Damaged("shapes_nlvr2", whole.splits["val"].drawing, "val")
    damaged = dataclasses.replace(whole, splits={"val": source})
    split = read_manifest(write_dataset(damaged, name="damaged", data_dir=tmp_path))["splits"]["val"]
    assert split["examples"] == len(source) - 1
    assert split["skipped"] == {"empty": {"count": 1, "ids": ["shapes_nlvr2-val-000002"]}}


def test_a_fraction_of_labelled_examples_is_chosen_by_their_ids(data_dir):
    def seen(fraction):
        mixture = open_mixture("tfds:shapes_ve:test", data_dir=str(data_dir), fraction=fraction, opener=open_labelled)
        return [source.example_id(record) for source, record in mixture.records()]

    whole, half, quarter = seen(1.0), seen(0.5), seen(0.25)
    assert len(whole) == len(set(whole)) == 2 * len(half)
    assert set(quarter) < set(half) < set(whole)
    assert half != whole[: len(half)]


def test_pairs_and_labelled_examples_are_not_taken_for_each_other(shapes_dir, data_dir):
    with pytest.raises(
        UserError, match="has no images, answers, .* a dataset of questions, statements or hypotheses has"
    ):
        open_labelled("tfds:shapes:val", data_dir=shapes_dir)
    with pytest.raises(UserError, match="has no image, captions, image_id but .* a pair dataset has"):
        open_source("tfds:shapes_vqa:val", data_dir=str(data_dir))


def test_prepare_draws_them_and_refuses_to_check_or_preview_them(collections, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(registry.DRAWN, "shapes_ve", lambda: collections["shapes_ve"])
    drawn = ["--dataset=shapes_ve", f"--data_dir={tmp_path}"]
    assert prepare_command.run(drawn) == 0
    assert "test: 270 examples\n" in capsys.readouterr().out
    assert prepare_command.run([*drawn, "--source=DIR"]) == 2
    assert "is drawn and reads no files; leave out --source=" in capsys.readouterr().err
    assert prepare_command.run([*drawn, "--check"]) == 2
    assert "--check looks at images with captions" in capsys.readouterr().err
    assert prepare_command.run(["--preview", f"--config={ROOT / 'configs' / 'finetune_vqa.py'}:shapes"]) == 2
    assert "config.task=vqa is not trained on pairs" in capsys.readouterr().err
