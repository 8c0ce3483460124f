import functools
import json
import re
from collections import Counter

import numpy as np
import tensorflow_datasets as tfds
from tiny import recipe

from mvlm_jax.cli import prepare
from mvlm_jax.data.builders import registry, shapes
from mvlm_jax.data.builders.shapes import BACKGROUND, CANVAS, COLORS, RADIUS, SHAPES, SIDE, render, scenes
from mvlm_jax.data.text import train_tokenizer
from mvlm_jax.data.writing.dataset import read_manifest

COUNTS = {"train": 3000, "val": 100, "test": 100}
WHAT = rf"a (small|large) ({'|'.join(COLORS)}) ({'|'.join(SHAPES)})"
PLACE = r"(?:(?:at|in) the )?(top|upper|bottom|lower) (left|right)"
RELATION = rf"(left of|right of|above|over|below|under) the ({'|'.join(COLORS)}) ({'|'.join(SHAPES)})"
STEPS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "over": (0, -1), "below": (0, 1), "under": (0, 1)}


@functools.cache
def drawn():
    return tuple(scenes(counts=COUNTS, seed=0))


def read(caption: str) -> set[tuple[str, str, str, int, int]]:
    """(shape, colour, size, x, y) of every shape, from the caption alone."""
    places = {}
    for clause in re.split(", | and ", caption):
        size, color, shape, where = re.fullmatch(rf"{WHAT} (.*)", clause).groups()
        if named := re.fullmatch(PLACE, where):
            column, row = int(named[2] == "right"), int(named[1] in ("bottom", "lower"))
        else:
            words, *anchor = re.fullmatch(RELATION, where).groups()
            [(x, y)] = [place for look, place in places.items() if list(look[:2]) == anchor]
            column, row = x + STEPS[words][0], y + STEPS[words][1]
        places[color, shape, size] = column, row
    return {(s, c, z, SIDE // 2 + SIDE * x, SIDE // 2 + SIDE * y) for (c, s, z), (x, y) in places.items()}


def test_a_caption_determines_its_scene():
    related = 0
    for _, scene in drawn():
        assert read(scene.caption) == set(scene.shapes)
        related += bool(re.search(RELATION, scene.caption))
    # Some places are told by a relation, most by their name.
    assert 0.3 < related / len(drawn()) < 0.6


def test_places_are_named_in_varied_words():
    words = Counter(word for _, scene in drawn() for word in scene.caption.replace(",", "").split())
    for one, other in (("top", "upper"), ("bottom", "lower"), ("at", "in"), ("above", "over"), ("below", "under")):
        assert 0.7 < words[one] / words[other] < 1.4


def test_shapes_stand_in_places_of_their_own_and_fill_most_of_them():
    for _, scene in drawn():
        assert len(scene.shapes) in (3, 4)
        assert len({(shape.x, shape.y) for shape in scene.shapes}) == len(scene.shapes)
        assert len({(shape.color, shape.shape) for shape in scene.shapes}) == len(scene.shapes)
    assert {(s.x, s.y) for _, scene in drawn() for s in scene.shapes} == {(x, y) for x in (16, 48) for y in (16, 48)}


def test_every_shape_is_visible_where_the_scene_says_and_nowhere_else():
    for _, scene in drawn()[:300]:
        pixels = np.asarray(render(scene))
        assert pixels.shape == (CANVAS, CANVAS, 3)
        seen = (pixels != BACKGROUND).any(-1)
        for shape in scene.shapes:
            place = np.s_[shape.y - SIDE // 2 : shape.y + SIDE // 2, shape.x - SIDE // 2 : shape.x + SIDE // 2]
            own, radius = seen[place].copy(), RADIUS[shape.size]
            assert (pixels[place][own] == COLORS[shape.color]).all()
            assert 0.8 * radius**2 < own.sum() <= (2 * radius + 1) ** 2
            seen[place] = False
        assert not seen.any()


def test_no_scene_and_no_caption_comes_twice_in_whatever_splits():
    assert Counter(split for split, _ in drawn()) == COUNTS
    for values in ([scene.caption for _, scene in drawn()], [scene.look for _, scene in drawn()]):
        assert len(set(values)) == len(drawn())


def test_scenes_depend_on_the_seed_alone():
    counts = {"train": 5, "val": 5, "test": 5}
    first, again, other = (list(scenes(counts=counts, seed=seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_captions_fit_the_demo_and_each_word_is_a_token():
    config, captions = recipe("demo"), [scene.caption for _, scene in drawn()]
    tokenizer = train_tokenizer(captions, kind="roberta", vocab_size=config.text_encoder.vocab_size)
    tokens = tokenizer.encode(captions, max_length=60)
    lengths = (tokens != tokenizer.ids.pad).sum(axis=1)
    # As many tokens as words and commas, start and end.
    assert lengths.tolist() == [2 + len(re.findall(r"\w+|,", caption)) for caption in captions]
    assert lengths.max() == config.text.max_length


def test_built_dataset_holds_the_scene_as_json(shapes_dir):
    builder = tfds.builder_from_directory(f"{shapes_dir}/shapes/1.0.0")
    records = builder.as_data_source("val", decoders={"image": tfds.decode.SkipDecoding()})
    expected = [scene for split, scene in scenes(counts={"train": 0, "val": 12, "test": 0}, seed=0)]
    assert [json.loads(record["scene"]) for record in records] == [[s._asdict() for s in e.shapes] for e in expected]
    assert {split: info.num_examples for split, info in builder.info.splits.items()} == {
        "train": 40, "val": 12, "test": 12,
    }  # fmt: skip


def test_a_dataset_of_the_scenes_of_earlier_versions_is_not_taken_for_this_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(registry.DRAWN, "shapes", lambda: shapes.collection(train=4, val=2, test=2))
    command = ["--dataset=shapes", f"--data_dir={tmp_path}"]
    assert prepare.run(command) == prepare.run(command) == 0
    file = tmp_path / "shapes" / "1.0.0" / "manifest.json"
    source = read_manifest(file.parent)["source"]
    assert source == "shapes in 2 x 2 places, drawn with seed 0, train 4, val 2, test 2"
    file.write_text(file.read_text().replace(source, "drawn with seed 0, train 4, val 2, test 2"))
    capsys.readouterr()
    assert prepare.run(command) == 2
    assert "is already prepared with source 'drawn with seed 0, train 4, val 2, test 2'" in capsys.readouterr().err
