"""How much of the heat of a word lies on the shape that it names, in drawn scenes whose shapes' places are known.

Example:
  python benchmarks/heat_maps.py --model=runs/exported --scenes=200

The model is one that was trained on drawn scenes, as `mvlm weights export` writes it. A caption says of each shape "a
<size> <colour> <shape>"; the heat of these words is compared with the box around the shape. Prints one JSON object: for
each kind of word the mean part of the heat inside the box, divided by the mean part of the image that the boxes take,
which is what a uniform map has there.
"""

import argparse
import json
import sys

import numpy as np

import mvlm_jax
from mvlm_jax.data.builders import shapes
from mvlm_jax.errors import UserError
from mvlm_jax.inference import Inference

KINDS = {"shape": (3,), "colour": (2,), "colour and shape": (2, 3), "size, colour and shape": (1, 2, 3)}
Box = tuple[float, float, float, float]  # left, top, right, bottom, in parts of the sides


def box_of(shape: shapes.Shape) -> Box:
    """The box around a shape."""
    r = shapes.RADIUS[shape.size]
    left, top, right, bottom = (edge / shapes.CANVAS for edge in (shape.x - r, shape.y - r, shape.x + r, shape.y + r))
    return left, top, right, bottom


def mass_inside(heat: np.ndarray, box: Box) -> float:
    """The part of the heat inside a box, a patch that it cuts counted by the part inside; nan of a map without heat."""
    left, top, right, bottom = box
    rows, columns = heat.shape
    inside = _covered(rows, top, bottom)[:, None] * _covered(columns, left, right)
    return float((heat * inside).sum() / heat.sum()) if heat.sum() > 0 else float("nan")


def _covered(count: int, start: float, end: float) -> np.ndarray:
    """Of each of `count` equal parts of the unit interval the fraction between `start` and `end`."""
    edges = np.arange(count + 1) / count
    overlap = np.minimum(edges[1:], end) - np.maximum(edges[:-1], start)
    return np.clip(overlap, 0, None) * count


def phrases(words: tuple[str, ...], scene: shapes.Scene) -> list[int]:
    """Where the phrase of each shape begins among the words; later mentions of a shape are not counted."""
    starts, place = [], 0
    for shape in scene.shapes:
        wanted = ("a", shape.size, shape.color, shape.shape)
        while words[place : place + 4] != wanted:
            place += 1
            if place > len(words):
                raise UserError(f"{' '.join(wanted)!r} is not among the words {' '.join(words)!r} that the model reads")
        starts.append(place)
        place += 4
    return starts


def measure(model: Inference, scenes: list[shapes.Scene], *, of: str) -> dict:
    """As the module says."""
    masses: dict[str, list[float]] = {kind: [] for kind in KINDS}
    areas = []
    for scene in scenes:
        found = model.attention(shapes.render(scene), scene.caption, of=of)
        for shape, start in zip(scene.shapes, phrases(found.words, scene), strict=True):
            box = box_of(shape)
            areas.append((box[2] - box[0]) * (box[3] - box[1]))
            for kind, offsets in KINDS.items():
                heat = sum(found.maps[start + offset] for offset in offsets)
                masses[kind].append(mass_inside(np.asarray(heat, np.float64), box))
    uniform = float(np.mean(areas))
    return {
        "of": of,
        "scenes": len(scenes),
        "shapes": len(areas),
        "uniform": round(uniform, 4),
        "ratio": {kind: _ratio(values, uniform) for kind, values in masses.items()},
        "without_heat": {kind: int(np.isnan(values).sum()) for kind, values in masses.items()},
    }


def _ratio(masses: list[float], uniform: float) -> float:
    """A map without heat has no mass inside."""
    return round(float(np.mean(np.nan_to_num(masses))) / uniform, 3)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder that mvlm weights export wrote")
    parser.add_argument("--scenes", type=int, default=200, help="held-out scenes, the first of the test split")
    parser.add_argument("--of", choices=("match", "word"), default="match", help="what the heat raises")
    arguments = parser.parse_args(argv)
    if arguments.scenes < 1:
        parser.error(f"--scenes={arguments.scenes} must be at least 1")
    try:
        model = mvlm_jax.load(arguments.model)
        drawn = shapes.scenes(counts={"val": 0, "test": arguments.scenes, "train": 0}, seed=0)
        print(json.dumps(measure(model, [scene for _, scene in drawn], of=arguments.of)))
    except UserError as error:
        print(f"heat_maps.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
