"""Scenes of coloured shapes, drawn by the project so that everything runs with no download.

A caption says of every shape what it is and where it stands, so it determines its scene: a hidden shape can be redrawn
from it, and a hidden word be read from the image.
"""

import dataclasses
import functools
import io
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from mvlm_jax.data.collection import Collection, PairCodec
from mvlm_jax.data.examples import Example

CANVAS = 64  # pixels a side
BACKGROUND = (170, 170, 170)
SIDE = CANVAS // 2  # pixels, of the four places in which shapes stand
RADIUS = {"small": 8, "large": 14}  # pixels
COLORS = {
    "red": (220, 30, 30),
    "green": (20, 150, 40),
    "blue": (30, 60, 220),
    "yellow": (250, 225, 30),
    "purple": (140, 40, 170),
    "orange": (255, 130, 0),
    "black": (10, 10, 10),
    "white": (255, 255, 255),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
HOW_MANY = ((3, 4), (0.4, 0.6))  # shapes in a scene, and how often
PLACES = tuple(itertools.product(("left", "right"), ("top", "bottom")))  # (column, row)
ROWS = {"top": ("top", "upper"), "bottom": ("bottom", "lower")}
FORMS = ("at the {row} {column}", "in the {row} {column}", "{row} {column}")
RELATIONS = {  # of a shape to its neighbour in the same row or column
    ("left", "right"): ("left of",),
    ("right", "left"): ("right of",),
    ("top", "bottom"): ("above", "over"),
    ("bottom", "top"): ("below", "under"),
}
RELATED = 0.5  # how often one of the shapes is placed by a neighbour that was named before
TRAIN, HELD_OUT = 20_000, 256  # scenes, in each of the held-out splits


class Shape(NamedTuple):
    shape: str
    color: str
    size: str
    x: int  # pixels from the left, of the centre
    y: int  # pixels from the top

    @property
    def place(self) -> tuple[str, str]:
        """(column, row)"""
        return ("left", "right")[self.x // SIDE], ("top", "bottom")[self.y // SIDE]


class Scene(NamedTuple):
    shapes: tuple[Shape, ...]  # in the order in which the caption names them
    caption: str

    @property
    def look(self) -> tuple[tuple[int | str, ...], ...]:
        """Equal for scenes that are hard to tell apart: a small shape counts by its colour, not by its outline."""
        return tuple(sorted((s.x, s.y, s.color, s.size, s.shape if s.size == "large" else "") for s in self.shapes))


def draw_scene(rng: np.random.Generator) -> Scene:
    """A scene with at most one shape in each place."""
    count = int(rng.choice(HOW_MANY[0], p=HOW_MANY[1]))
    places = [PLACES[i] for i in rng.permutation(len(PLACES))[:count]]
    # "the red circle" must point at one shape only.
    looks = [divmod(int(i), len(SHAPES)) for i in rng.permutation(len(COLORS) * len(SHAPES))[:count]]
    colors = list(COLORS)
    shapes = tuple(
        Shape(
            shape=SHAPES[shape],
            color=colors[color],
            size=("small", "large")[rng.integers(2)],
            x=SIDE // 2 + SIDE * (column == "right"),
            y=SIDE // 2 + SIDE * (row == "bottom"),
        )
        for (color, shape), (column, row) in zip(looks, places, strict=True)
    )
    return Scene(shapes, _caption(shapes, rng))


def render(scene: Scene) -> Image.Image:
    """The picture of a scene, RGB."""
    image = Image.new("RGB", (CANVAS, CANVAS), BACKGROUND)
    canvas = ImageDraw.Draw(image)
    for shape in scene.shapes:
        _draw(canvas, shape)
    return image


def png(scene: Scene) -> bytes:
    encoded = io.BytesIO()
    render(scene).save(encoded, "PNG", compress_level=1)
    return encoded.getvalue()


def scenes(*, counts: Mapping[str, int], seed: int) -> Iterator[tuple[str, Scene]]:
    """(split, scene) of every split; the held-out ones first, so that they do not depend on how many train has.

    No two scenes have the same look, in whatever splits they are; captions therefore differ too.
    """
    taken = set()
    for stream, split in enumerate(("val", "test", "train")):
        rng = np.random.default_rng((seed, stream))
        made = 0
        while made < counts[split]:
            scene = draw_scene(rng)
            if scene.look in taken:
                continue
            taken.add(scene.look)
            made += 1
            yield split, scene


class SceneExample(Example):
    scene: str  # the shapes as JSON, for tasks drawn from them


@dataclasses.dataclass(frozen=True)
class Drawing:
    """All scenes of one seed, drawn when the first of them is asked for."""

    counts: Mapping[str, int]
    seed: int

    @functools.cached_property
    def scenes(self) -> dict[str, list[Scene]]:
        """By split."""
        drawn: dict[str, list[Scene]] = {split: [] for split in self.counts}
        for split, scene in scenes(counts=self.counts, seed=self.seed):
            drawn[split].append(scene)
        return drawn

    def __str__(self) -> str:
        # In the manifest: a dataset of other scenes is not taken for this one.
        counts = ", ".join(f"{split} {count}" for split, count in self.counts.items())
        return f"shapes in 2 x 2 places, drawn with seed {self.seed}, {counts}"


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Shapes on a plain grey canvas, one caption each."""

    drawing: Drawing
    split: str

    def __len__(self) -> int:
        return self.drawing.counts[self.split]

    def __getitem__(self, index: int) -> SceneExample:
        scene = self.drawing.scenes[self.split][index]
        return {
            "image": png(scene),
            "captions": [scene.caption],
            "image_id": self.example_id(index),
            "scene": json.dumps([shape._asdict() for shape in scene.shapes]),
        }

    def example_id(self, index: int) -> str:
        return f"shapes-{self.split}-{index:06d}"


def collection(*, train: int = TRAIN, val: int = HELD_OUT, test: int = HELD_OUT, seed: int = 0) -> Collection:
    """The scenes of one seed, as many as asked for in each split."""
    drawing = Drawing({"train": train, "val": val, "test": test}, seed)
    return Collection(
        splits={split: Shapes(drawing, split) for split in drawing.counts},
        source=str(drawing),
        codec=PairCodec(texts=("scene",)),
    )


def _caption(shapes: tuple[Shape, ...], rng: np.random.Generator) -> str:
    # A later shape, and an earlier one beside it: in a row or column of two, "left of" and the like name one place.
    beside = [
        (which, anchor)
        for which, shape in enumerate(shapes)
        for anchor in shapes[:which]
        if _step(shape, anchor) in RELATIONS
    ]
    related = beside[rng.integers(len(beside))] if rng.random() < RELATED else None
    phrases = []
    for which, shape in enumerate(shapes):
        column, row = shape.place
        if related and which == related[0]:
            anchor = related[1]
            where = f"{_pick(rng, RELATIONS[_step(shape, anchor)])} the {anchor.color} {anchor.shape}"
        else:
            where = _pick(rng, FORMS).format(row=_pick(rng, ROWS[row]), column=column)
        phrases.append(f"a {shape.size} {shape.color} {shape.shape} {where}")
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _step(shape: Shape, anchor: Shape) -> tuple[str, str]:
    """The one coordinate in which two places differ, as (of the shape, of the anchor); empty where both do."""
    differing = [pair for pair in zip(shape.place, anchor.place, strict=True) if pair[0] != pair[1]]
    return differing[0] if len(differing) == 1 else ("", "")


def _pick(rng: np.random.Generator, values: tuple[str, ...]) -> str:
    return values[int(rng.integers(len(values)))]


def _draw(canvas: ImageDraw.ImageDraw, shape: Shape) -> None:
    x, y, r, fill = shape.x, shape.y, RADIUS[shape.size], COLORS[shape.color]
    if shape.shape == "circle":
        canvas.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif shape.shape == "square":
        canvas.rectangle((x - r, y - r, x + r, y + r), fill=fill)
    elif shape.shape == "triangle":
        canvas.polygon(((x, y - r), (x + r, y + r), (x - r, y + r)), fill=fill)
    elif shape.shape == "diamond":
        canvas.polygon(((x, y - r), (x + r, y), (x, y + r), (x - r, y)), fill=fill)
    elif shape.shape == "cross":
        arm = r // 3
        canvas.rectangle((x - r, y - arm, x + r, y + arm), fill=fill)
        canvas.rectangle((x - arm, y - r, x + arm, y + r), fill=fill)
    else:
        turns = np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2, 0.45 * r, 1.1 * r)
        points = zip(x + radii * np.sin(turns), y - radii * np.cos(turns), strict=True)
        canvas.polygon([(float(px), float(py)) for px, py in points], fill=fill)
