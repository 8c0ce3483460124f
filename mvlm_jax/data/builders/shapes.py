"""Scenes of coloured shapes, drawn by the project so that everything runs with no download."""

import dataclasses
import functools
import io
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from mvlm_jax.data.collection import Collection, PairCodec
from mvlm_jax.data.examples import Example

CANVAS = 64  # pixels a side
RADIUS = {"small": 5, "large": 9}  # pixels
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
CELL_CENTRES = (11, 32, 53)  # pixels; shapes stand near the nodes of a 3 x 3 grid, so they never touch
JITTER = 1  # pixels
CELLS = tuple(itertools.product(range(3), range(3)))
PLACES = {
    (0, 0): "in the top left corner",
    (1, 0): "at the top",
    (2, 0): "in the top right corner",
    (0, 1): "on the left",
    (1, 1): "in the middle",
    (2, 1): "on the right",
    (0, 2): "in the bottom left corner",
    (1, 2): "at the bottom",
    (2, 2): "in the bottom right corner",
}
RELATIONS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below",),
}
OPENINGS = ("", "", "there is ", "a picture of ")
TRAIN, HELD_OUT = 20_000, 256  # scenes, in each of the held-out splits
HOW_MANY = ((1, 2, 3), (0.1, 0.5, 0.4))  # shapes in a scene, and how often


class Shape(NamedTuple):
    shape: str
    color: str
    size: str
    x: int  # pixels from the left, of the centre
    y: int  # pixels from the top


class Scene(NamedTuple):
    shapes: tuple[Shape, ...]
    caption: str
    content: tuple[Any, ...]  # equal for two scenes that a caption could confuse
    background: int  # grey level


def draw_scene(rng: np.random.Generator) -> Scene:
    """A scene whose caption names every shape and only relations that are clear to the eye."""
    count = int(rng.choice(HOW_MANY[0], p=HOW_MANY[1]))
    while True:
        cells = [CELLS[i] for i in rng.permutation(len(CELLS))[:count]]
        if all(_relation(cells[0], other) for other in cells[1:]):
            break
    # "the red circle" must point at one shape only.
    looks = [divmod(int(i), len(SHAPES)) for i in rng.permutation(len(COLORS) * len(SHAPES))[:count]]
    colors = list(COLORS)
    shapes = tuple(
        Shape(
            shape=SHAPES[shape],
            color=colors[color],
            size=("small", "large")[rng.integers(2)],
            x=CELL_CENTRES[column] + int(rng.integers(-JITTER, JITTER + 1)),
            y=CELL_CENTRES[row] + int(rng.integers(-JITTER, JITTER + 1)),
        )
        for (color, shape), (column, row) in zip(looks, cells, strict=True)
    )
    content = tuple(sorted(shape[:3] for shape in shapes)) + ((cells[0],) if count == 1 else ())
    return Scene(shapes, _caption(shapes, cells, rng), content, int(rng.integers(150, 190)))


def render(scene: Scene) -> Image.Image:
    """The picture of a scene, RGB."""
    image = Image.new("RGB", (CANVAS, CANVAS), (scene.background,) * 3)
    canvas = ImageDraw.Draw(image)
    for shape in scene.shapes:
        _draw(canvas, shape)
    return image


def png(scene: Scene) -> bytes:
    encoded = io.BytesIO()
    render(scene).save(encoded, "PNG", compress_level=1)
    return encoded.getvalue()


def scenes(*, counts: Mapping[str, int], seed: int) -> Iterator[tuple[str, Scene]]:
    """(split, scene) of every split; the held-out ones first, so that train can avoid their contents.

    Contents are distinct inside a held-out split and occur in no other split; captions are therefore too.
    """
    taken: set[tuple[Any, ...]] = set()
    for stream, split in enumerate(("val", "test", "train")):
        rng = np.random.default_rng((seed, stream))
        made = 0
        while made < counts[split]:
            scene = draw_scene(rng)
            if scene.content in taken:
                continue
            if split != "train":
                taken.add(scene.content)
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
        counts = ", ".join(f"{split} {count}" for split, count in self.counts.items())
        return f"drawn with seed {self.seed}, {counts}"


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


def _relation(cell: tuple[int, int], other: tuple[int, int]) -> str:
    """How `cell` lies to `other`; empty on a diagonal, where two answers are as good."""
    right, down = cell[0] - other[0], cell[1] - other[1]
    if abs(right) == abs(down):
        return ""
    if abs(right) > abs(down):
        return "right" if right > 0 else "left"
    return "below" if down > 0 else "above"


def _caption(shapes: tuple[Shape, ...], cells: list[tuple[int, int]], rng: np.random.Generator) -> str:
    opening = OPENINGS[rng.integers(len(OPENINGS))]
    names = [f"a {shape.size} {shape.color} {shape.shape}" for shape in shapes]
    if len(shapes) == 1:
        return f"{opening}{names[0]} {PLACES[cells[0]]}"

    def words(relation: str) -> str:
        return RELATIONS[relation][rng.integers(len(RELATIONS[relation]))]

    text = f"{opening}{names[1]} {words(_relation(cells[1], cells[0]))} {names[0]}"
    if len(shapes) == 3:
        anchor = f"the {shapes[0].color} {shapes[0].shape}"
        text += f", and {names[2]} {words(_relation(cells[2], cells[0]))} {anchor}"
    return text


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
