import functools
import json
import re

import numpy as np
import tensorflow_datasets as tfds

from mvlm_jax.data.builders.shapes import COLORS, RADIUS, render, scenes

COUNTS = {"train": 3000, "val": 100, "test": 100}
NAMED = re.compile(r"(?:a (small|large)|the) (\w+) (circle|square|triangle|star|cross|diamond)")
WORDS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


@functools.cache
def drawn():
    return tuple(scenes(counts=COUNTS, seed=0))


def find(scene, size, color, shape):
    found = [s for s in scene.shapes if s.shape == shape and s.color == color and size in (None, s.size)]
    assert len(found) == 1, f"{color} {shape} is not one shape of {scene}"
    return found[0]


def test_captions_name_every_shape_once():
    for _, scene in drawn():
        indefinite = [match for match in NAMED.findall(scene.caption) if match[0]]
        assert sorted(indefinite) == sorted((s.size, s.color, s.shape) for s in scene.shapes)


def test_relations_in_captions_are_true_of_the_scene_and_the_dominant_ones():
    relations = 0
    for _, scene in drawn():
        for clause in scene.caption.split(", and "):
            names = list(NAMED.finditer(clause))
            if len(names) != 2:
                continue
            first, second = (find(scene, name[1] or None, name[2], name[3]) for name in names)
            between = clause[names[0].end() : names[1].start()]
            across, down = next(step for words, step in WORDS.items() if words in between)
            dx, dy = first.x - second.x, first.y - second.y
            assert dx * across + dy * down >= 15
            assert (abs(dx) > abs(dy)) == bool(across)
            relations += 1
    assert relations > 3000


def test_places_of_single_shapes_are_true():
    singles = [scene for _, scene in drawn() if len(scene.shapes) == 1]
    assert len(singles) > 100
    for scene in singles:
        shape = scene.shapes[0]
        assert ("left" in scene.caption) == (shape.x < 20)
        assert ("right" in scene.caption) == (shape.x > 44)
        assert ("top" in scene.caption) == (shape.y < 20)
        assert ("bottom" in scene.caption) == (shape.y > 44)


def test_held_out_captions_are_distinct_and_occur_in_no_other_split():
    captions = {split: [] for split in COUNTS}
    contents = {split: [] for split in COUNTS}
    for split, scene in drawn():
        captions[split].append(scene.caption)
        contents[split].append(scene.content)
    assert {split: len(found) for split, found in captions.items()} == COUNTS
    for found in (captions, contents):
        for split in ("val", "test"):
            assert len(set(found[split])) == COUNTS[split]
        assert not set(found["train"]) & set(found["val"] + found["test"])
        assert not set(found["val"]) & set(found["test"])


def test_every_shape_is_visible_where_the_scene_says():
    for _, scene in drawn()[:300]:
        pixels = np.asarray(render(scene))
        for shape in scene.shapes:
            assert tuple(pixels[shape.y, shape.x]) == COLORS[shape.color]
            area = (pixels == COLORS[shape.color]).all(-1)
            same_color = [RADIUS[s.size] for s in scene.shapes if s.color == shape.color]
            assert sum(r * r for r in same_color) * 0.8 < area.sum() < sum((2 * r + 1) ** 2 for r in same_color) + 1


def test_scenes_depend_on_the_seed_alone():
    counts = {"train": 5, "val": 5, "test": 5}
    first, again, other = (list(scenes(counts=counts, seed=seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_built_dataset_holds_the_scene_as_json(shapes_dir):
    builder = tfds.builder_from_directory(f"{shapes_dir}/shapes/1.0.0")
    records = builder.as_data_source("val", decoders={"image": tfds.decode.SkipDecoding()})
    expected = [scene for split, scene in scenes(counts={"train": 0, "val": 12, "test": 0}, seed=0)]
    assert [json.loads(record["scene"]) for record in records] == [[s._asdict() for s in e.shapes] for e in expected]
    assert {split: info.num_examples for split, info in builder.info.splits.items()} == {
        "train": 40, "val": 12, "test": 12,
    }  # fmt: skip
