"""Questions, two-image statements and hypotheses about the drawn scenes, so that every task runs with no download.

They are balanced by construction. Statements come in fours, two pairs of images with two statements, each true of one
of the pairs; hypotheses come in nines, three images with three hypotheses, each of which is entailed by one image,
contradicted by another and left open by the third. So a model that sees only the images, or only the text, is right
exactly as often as by chance. Of the questions, each scene gets one that is answered yes and one that is answered no.
"""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mvlm_jax.data.builders.shapes import COLORS, HELD_OUT, HOW_MANY, SHAPES, TRAIN, Drawing, Scene, Shape, png
from mvlm_jax.data.collection import Collection, LabelledCodec
from mvlm_jax.data.formats import nlvr2, snli_ve
from mvlm_jax.data.labelled import LabelledExample, LabelledRow, example_of

ANNOTATORS = 10
TRIES = 20_000


class Drawn(NamedTuple):
    """An example whose images are yet to be drawn."""

    scenes: tuple[Scene, ...]
    text: str
    answer: str
    answer_type: str = ""
    group: str = ""


def questions(drawn: Sequence[Scene], rng: np.random.Generator) -> Iterator[Drawn]:
    """About each scene: is a certain shape in it (once yes, once no), the colour of a shape, the shape of a colour, and
    how many shapes there are."""
    rarest = min(HOW_MANY[1])
    often = dict(zip(*HOW_MANY))
    for scene in drawn:
        present = {(shape.color, shape.shape) for shape in scene.shapes}
        color, name = _pick(rng, sorted(present))
        yield Drawn((scene,), f"is there a {color} {name}?", "yes", "yes/no")
        # One attribute away from a shape that is there: neither colour nor shape alone gives it away.
        near = [(other, name) for other in COLORS] + [(color, other) for other in SHAPES]
        color, name = _pick(rng, [pair for pair in near if pair not in present])
        yield Drawn((scene,), f"is there a {color} {name}?", "no", "yes/no")
        if names := _alone(shape.shape for shape in scene.shapes):
            name = _pick(rng, names)
            yield Drawn((scene,), f"what color is the {name}?", _of(scene, shape=name).color, "other")
        if colors := _alone(shape.color for shape in scene.shapes):
            color = _pick(rng, colors)
            yield Drawn((scene,), f"what shape is {color}?", _of(scene, color=color).shape, "other")
        # Asked of scenes in inverse proportion to how often there are so many, so that all counts are equally likely.
        if rng.random() < rarest / often[len(scene.shapes)]:
            yield Drawn((scene,), "how many shapes are there?", str(len(scene.shapes)), "number")


FORMS = {
    "both": "both images show something {color}",
    "one": "only one image shows a {shape}",
    "left": "the left image shows a {color} {shape}",
    "right": "the right image shows a {color} {shape}",
    "more": "the left image shows more shapes than the right image",
    "fewer": "the left image shows fewer shapes than the right image",
}


class Statement(NamedTuple):
    """What a sentence says of two images."""

    form: str  # one of FORMS
    color: str
    shape: str

    @property
    def text(self) -> str:
        return FORMS[self.form].format(color=self.color, shape=self.shape)

    def holds(self, left: Scene, right: Scene) -> bool:
        if self.form in ("more", "fewer"):
            more = len(left.shapes) - len(right.shapes)
            return more > 0 if self.form == "more" else more < 0
        if self.form in ("left", "right"):
            shown = left if self.form == "left" else right
            return any((shape.color, shape.shape) == (self.color, self.shape) for shape in shown.shapes)
        if self.form == "both":
            return all(any(shape.color == self.color for shape in scene.shapes) for scene in (left, right))
        return sum(any(shape.shape == self.shape for shape in scene.shapes) for scene in (left, right)) == 1


def statements(drawn: Sequence[Scene], rng: np.random.Generator, *, fours: int) -> Iterator[Drawn]:
    """Two pairs of images and two statements, each statement true of one pair."""

    def four():
        pairs = [tuple(_pick(rng, drawn) for _ in range(2)) for _ in range(2)]
        chosen = _telling_apart(rng, *pairs), _telling_apart(rng, *reversed(pairs))
        return None if None in chosen else (pairs, chosen)

    for number in range(fours):
        pairs, chosen = _searched(four)
        for which, statement in enumerate(chosen):
            for place, pair in enumerate(pairs):
                yield Drawn(pair, statement.text, nlvr2.LABELS[which == place], group=f"{number}-{which}")


def _telling_apart(rng: np.random.Generator, pair: tuple[Scene, ...], other: tuple[Scene, ...]) -> Statement | None:
    """A statement that is true of one pair and false of the other; None where the search failed."""
    form = _pick(rng, list(FORMS))
    for _ in range(20):
        of = _pick(rng, _pick(rng, pair + other).shapes)
        statement = Statement(form, of.color, of.shape)
        if statement.holds(*pair) and not statement.holds(*other):
            return statement
    return None


def hypotheses(drawn: Sequence[Scene], rng: np.random.Generator, *, nines: int) -> Iterator[Drawn]:
    """Three images and three hypotheses such as `the red one is a circle`: true of one image, false of another; of the
    third undecided, since nothing in it is red."""
    contradiction, neutral, entailment = snli_ve.LABELS
    labels = entailment, contradiction, neutral
    by_look: dict[tuple[str, str], list[Scene]] = defaultdict(list)
    for scene in drawn:
        for color, shape in _looks(scene).items():
            by_look[color, shape].append(scene)
    for _ in range(nines):
        shown, claims = _searched(lambda: _nine(by_look, drawn, rng))
        for place, scene in enumerate(shown):
            for which, (color, shape) in enumerate(claims):
                article = "an" if shape[0] in "aeiou" else "a"
                yield Drawn((scene,), f"the {color} one is {article} {shape}", labels[(which - place) % 3])


def _nine(
    by_look: Mapping[tuple[str, str], list[Scene]], drawn: Sequence[Scene], rng: np.random.Generator
) -> tuple[list[Scene], list[tuple[str, str]]] | None:
    """Three images, and three hypotheses in the colours a, b and c: of image 0 the first holds, b is another shape
    than the second says, and nothing is c; likewise for the other images in turn."""
    first = _pick(rng, drawn)
    colors = list(_looks(first))
    if len(colors) < 2:
        return None
    a, b = (colors[i] for i in rng.permutation(len(colors))[:2])
    claims = [(a, _looks(first)[a]), (b, _other(rng, SHAPES, _looks(first)[b]))]
    candidates = [
        (scene, c)
        for scene in by_look[claims[1]]
        if not _has(scene, a)
        for c in _looks(scene)
        if c != b and not _has(first, c)
    ]
    if not candidates:
        return None
    second, c = _pick(rng, candidates)
    claims.append((c, _other(rng, SHAPES, _looks(second)[c])))
    last = [
        scene
        for scene in by_look[claims[2]]
        if not _has(scene, b) and _looks(scene).get(a, claims[0][1]) != claims[0][1]
    ]
    if not last:
        return None
    return [first, second, _pick(rng, last)], claims


def _looks(scene: Scene) -> dict[str, str]:
    """Shape by colour, of the colours that one shape alone has."""
    return {color: _of(scene, color=color).shape for color in _alone(shape.color for shape in scene.shapes)}


def _has(scene: Scene, color: str) -> bool:
    return any(shape.color == color for shape in scene.shapes)


def _alone(values: Iterator[str]) -> list[str]:
    held = list(values)
    return [value for value in held if held.count(value) == 1]


def _of(scene: Scene, **look: str) -> Shape:
    ((name, value),) = look.items()
    return next(shape for shape in scene.shapes if getattr(shape, name) == value)


def _other(rng: np.random.Generator, values: Sequence[str], value: str) -> str:
    return _pick(rng, [other for other in values if other != value])


def _searched(search: Callable[[], Any]) -> Any:
    for _ in range(TRIES):
        if (result := search()) is not None:
            return result
    raise ValueError(f"no example could be drawn in {TRIES} tries: there are too few scenes to choose from")


def _pick(rng: np.random.Generator, values: Sequence[Any]) -> Any:
    return values[int(rng.integers(len(values)))]


@dataclasses.dataclass(frozen=True)
class ShapesTask:
    """Examples over the scenes of the dataset `shapes`, split as they are."""

    name: str  # one of TASKS
    drawing: Drawing
    split: str

    @functools.cached_property
    def drawn(self) -> list[Drawn]:
        stream = list(self.drawing.counts).index(self.split)
        rng = np.random.default_rng((self.drawing.seed, stream, 1))
        return list(TASKS[self.name](self.drawing.scenes[self.split], rng, self.split == "train"))

    def __len__(self) -> int:
        return len(self.drawn)

    def __getitem__(self, index: int) -> LabelledExample:
        return example_of(self.row(index), images=[png(scene) for scene in self.drawn[index].scenes])

    def row(self, index: int) -> LabelledRow:
        drawn = self.drawn[index]
        answers = (drawn.answer,) * (ANNOTATORS if drawn.answer_type else 1)
        return LabelledRow((), drawn.text, answers, drawn.answer_type, drawn.group, self.example_id(index))

    def example_id(self, index: int) -> str:
        return f"{self.name}-{self.split}-{index:06d}"


def collection(
    name: str, *, train: int = TRAIN, val: int = HELD_OUT, test: int = HELD_OUT, seed: int = 0
) -> Collection:
    """One of TASKS over the scenes of one seed, of which there are as many as asked for in each split."""
    drawing = Drawing({"train": train, "val": val, "test": test}, seed)
    return Collection(
        splits={split: ShapesTask(name, drawing, split) for split in drawing.counts},
        source=str(drawing),
        codec=LabelledCodec(),
    )


# (scenes of a split, random numbers, whether it is the training split) -> examples, by name of the dataset
TASKS: dict[str, Callable[[Sequence[Scene], np.random.Generator, bool], Iterator[Drawn]]] = {
    # Half of the training scenes already give some forty thousand questions.
    "shapes_vqa": lambda drawn, rng, train: questions(drawn[: len(drawn) // 2] if train else drawn, rng),
    "shapes_nlvr2": lambda drawn, rng, train: statements(drawn, rng, fours=len(drawn) // (2 if train else 1)),
    "shapes_ve": lambda drawn, rng, train: hypotheses(drawn, rng, nines=len(drawn) // (6 if train else 2)),
}
