"""Questions, two-image statements and hypotheses about the drawn scenes, so that every task runs with no download.

They are balanced by construction. Statements come in fours, two pairs of images with two statements, each true of one
of the pairs; hypotheses come in nines, three images with three hypotheses, each of which is entailed by one image,
contradicted by another and left open by the third. So whoever sees only the images, or only the text, is right exactly
as often as by chance. Of the questions, each scene gets one that is answered yes and one that is answered no.
"""

import contextlib
import io
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from mvlm_jax.data.builders.shapes import COLORS, HOW_MANY, SHAPES, Scene, Shape, render, scenes
from mvlm_jax.errors import UserError

COUNTS = {"train": 20_000, "val": 256, "test": 256}  # the scenes of the dataset `shapes`
ANNOTATORS = 10
TRIES = 20_000


class Drawn(NamedTuple):
    """An example whose images are yet to be drawn."""

    scenes: tuple[Scene, ...]
    text: str
    answer: str
    kind: str = ""
    group: str = ""


def questions(drawn: Sequence[Scene], rng: np.random.Generator) -> Iterator[Drawn]:
    """Of each scene: whether it holds a certain shape, once yes and once no; colours and kinds; how many there are."""
    rarest = min(HOW_MANY[1])
    often = dict(zip(*HOW_MANY))
    for scene in drawn:
        present = {(shape.color, shape.shape) for shape in scene.shapes}
        color, kind = _pick(rng, sorted(present))
        yield Drawn((scene,), f"is there a {color} {kind}?", "yes", "yes/no")
        # One attribute away from a shape that is there: neither colour nor kind alone gives it away.
        near = [(other, kind) for other in COLORS] + [(color, other) for other in SHAPES]
        color, kind = _pick(rng, [pair for pair in near if pair not in present])
        yield Drawn((scene,), f"is there a {color} {kind}?", "no", "yes/no")
        if kinds := _alone(shape.shape for shape in scene.shapes):
            kind = _pick(rng, kinds)
            yield Drawn((scene,), f"what color is the {kind}?", _of(scene, shape=kind).color, "other")
        if colors := _alone(shape.color for shape in scene.shapes):
            color = _pick(rng, colors)
            yield Drawn((scene,), f"what shape is {color}?", _of(scene, color=color).shape, "other")
        # Asked of scenes in inverse proportion to how often there are so many, so that all counts are equally likely.
        if rng.random() < rarest / often[len(scene.shapes)]:
            yield Drawn((scene,), "how many shapes are there?", str(len(scene.shapes)), "number")


class Statement(NamedTuple):
    """What a sentence says of two images."""

    form: str
    color: str
    shape: str

    @property
    def text(self) -> str:
        return {
            "both": f"both images show something {self.color}",
            "one": f"only one image shows a {self.shape}",
            "left": f"the left image shows a {self.color} {self.shape}",
            "right": f"the right image shows a {self.color} {self.shape}",
            "more": "the left image shows more shapes than the right image",
            "fewer": "the left image shows fewer shapes than the right image",
        }[self.form]

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


FORMS = ("both", "one", "left", "right", "more", "fewer")


def statements(drawn: Sequence[Scene], rng: np.random.Generator, *, fours: int) -> Iterator[Drawn]:
    """Two pairs of images and two statements, each statement true of one pair."""

    def four():
        pairs = [tuple(_pick(rng, drawn) for _ in range(2)) for _ in range(2)]
        chosen = _telling_apart(rng, *pairs), _telling_apart(rng, *reversed(pairs))
        return None if None in chosen else (pairs, chosen)

    for number in range(fours):
        pairs, chosen = _found(four)
        for which, statement in enumerate(chosen):
            for place, pair in enumerate(pairs):
                label = "True" if which == place else "False"
                yield Drawn(pair, statement.text, label, group=f"{number}-{which}")


def _telling_apart(rng: np.random.Generator, pair: tuple[Scene, ...], other: tuple[Scene, ...]) -> Statement | None:
    """A statement that is true of one pair and false of the other; None: none was found."""
    form = _pick(rng, FORMS)
    for _ in range(20):
        of = _pick(rng, _pick(rng, pair + other).shapes)
        statement = Statement(form, of.color, of.shape)
        if statement.holds(*pair) and not statement.holds(*other):
            return statement
    return None


LABELS = ("entailment", "contradiction", "neutral")


def hypotheses(drawn: Sequence[Scene], rng: np.random.Generator, *, nines: int) -> Iterator[Drawn]:
    """Three images and three hypotheses such as `the red one is a circle`: true of one image, false of another; of the
    third nothing can be said, since nothing in it is red."""
    by_look: dict[tuple[str, str], list[Scene]] = defaultdict(list)
    for scene in drawn:
        for color, shape in _looks(scene).items():
            by_look[color, shape].append(scene)
    for _ in range(nines):
        shown, said = _found(lambda: _nine(by_look, drawn, rng))
        for place, scene in enumerate(shown):
            for which, (color, shape) in enumerate(said):
                article = "an" if shape[0] in "aeiou" else "a"
                yield Drawn((scene,), f"the {color} one is {article} {shape}", LABELS[(which - place) % 3])


def _nine(
    by_look: Mapping[tuple[str, str], list[Scene]], drawn: Sequence[Scene], rng: np.random.Generator
) -> tuple[list[Scene], list[tuple[str, str]]] | None:
    """Three images, and three hypotheses in the colours a, b and c: image 0 has the first as said, b as another shape
    than said, and no c; the others the same in turn."""
    first = _pick(rng, drawn)
    colors = list(_looks(first))
    if len(colors) < 2:
        return None
    a, b = (colors[i] for i in rng.permutation(len(colors))[:2])
    said = [(a, _looks(first)[a]), (b, _other(rng, SHAPES, _looks(first)[b]))]
    candidates = [
        (scene, c)
        for scene in by_look[said[1]]
        if not _has(scene, a)
        for c in _looks(scene)
        if c != b and not _has(first, c)
    ]
    if not candidates:
        return None
    second, c = _pick(rng, candidates)
    said.append((c, _other(rng, SHAPES, _looks(second)[c])))
    last = [
        scene for scene in by_look[said[2]] if not _has(scene, b) and _looks(scene).get(a, said[0][1]) != said[0][1]
    ]
    if not last:
        return None
    return [first, second, _pick(rng, last)], said


def _looks(scene: Scene) -> dict[str, str]:
    """Shape by colour, of the colours that one shape alone has."""
    return {color: _of(scene, color=color).shape for color in _alone(shape.color for shape in scene.shapes)}


def _has(scene: Scene, color: str) -> bool:
    return any(shape.color == color for shape in scene.shapes)


def _alone(values: Iterator[str]) -> list[str]:
    values = list(values)
    return [value for value in values if values.count(value) == 1]


def _of(scene: Scene, **look: str) -> Shape:
    ((name, value),) = look.items()
    return next(shape for shape in scene.shapes if getattr(shape, name) == value)


def _other(rng: np.random.Generator, values: Sequence[str], value: str) -> str:
    return _pick(rng, [other for other in values if other != value])


def _found(search: Callable[[], Any]) -> Any:
    for _ in range(TRIES):
        if (found := search()) is not None:
            return found
    raise ValueError(f"nothing was found in {TRIES} tries; there are too few scenes to choose from")


def _pick(rng: np.random.Generator, values: Sequence[Any]) -> Any:
    return values[rng.integers(len(values))]


class ShapesTask(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Examples over the scenes of the dataset `shapes`, split as they are, with their images drawn."""

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded; and TFDS' search for checksums imports importlib_resources, which it does not install.
    url_infos: Mapping[str, Any] = {}

    def __init__(self, *, seed: int = 0, counts: Mapping[str, int] = COUNTS, **kwargs: Any) -> None:
        self._seed, self._scenes = seed, dict(counts)
        super().__init__(file_format="array_record", **kwargs)

    def examples(self, split: str, drawn: Sequence[Scene], rng: np.random.Generator) -> Iterator[Drawn]:
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        texts = {name: tfds.features.Text() for name in ("text", "kind", "group", "example_id")}
        features = tfds.features.FeaturesDict(
            {
                "images": tfds.features.Sequence(tfds.features.Image(shape=(None, None, 3))),
                "answers": tfds.features.Sequence(tfds.features.Text()),
                **texts,
            }
        )
        # Records stay in the order they were made: evaluation reads them in order, training shuffles on its own.
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        made: dict[str, list[Scene]] = {split: [] for split in self._scenes}
        for split, scene in scenes(counts=self._scenes, seed=self._seed):
            made[split].append(scene)
        return {split: self._generate_examples(split, made[split]) for split in made}

    def _generate_examples(self, split: str, drawn: list[Scene]) -> Iterator[tuple[int, dict[str, Any]]]:
        rng = np.random.default_rng((self._seed, list(COUNTS).index(split), 1))
        for index, example in enumerate(self.examples(split, drawn, rng)):
            yield (
                index,
                {
                    "images": [_png(scene) for scene in example.scenes],
                    "text": example.text,
                    "answers": [example.answer] * (ANNOTATORS if example.kind else 1),
                    "kind": example.kind,
                    "group": example.group,
                    "example_id": f"{self.name}-{split}-{index:06d}",
                },
            )


class ShapesVqa(ShapesTask):
    """Questions with one word as the answer, given ten times."""

    def examples(self, split: str, drawn: Sequence[Scene], rng: np.random.Generator) -> Iterator[Drawn]:
        # Half of the training scenes already give some forty thousand.
        return questions(drawn[: len(drawn) // 2] if split == "train" else drawn, rng)


class ShapesNlvr2(ShapesTask):
    """Statements about a left and a right image: True or False."""

    def examples(self, split: str, drawn: Sequence[Scene], rng: np.random.Generator) -> Iterator[Drawn]:
        return statements(drawn, rng, fours=len(drawn) // 2 if split == "train" else len(drawn))


class ShapesVe(ShapesTask):
    """Hypotheses about an image: entailment, neutral or contradiction."""

    def examples(self, split: str, drawn: Sequence[Scene], rng: np.random.Generator) -> Iterator[Drawn]:
        return hypotheses(drawn, rng, nines=len(drawn) // (6 if split == "train" else 2))


BUILDERS = {"shapes_vqa": ShapesVqa, "shapes_nlvr2": ShapesNlvr2, "shapes_ve": ShapesVe}


def write_task(name: str, *, data_dir: Path) -> dict[str, int]:
    """Writes one of `BUILDERS`, unless it is there already, and returns how many examples each split has.

    Raises:
      UserError: `data_dir` cannot be written.
    """
    try:
        # TFDS makes a directory for downloads even where nothing is downloaded.
        with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(sys.stderr):
            builder = BUILDERS[name](data_dir=data_dir)
            tfds.disable_progress_bar()
            builder.download_and_prepare(download_dir=downloads)
    except (OSError, RuntimeError) as error:
        # The ArrayRecord writer raises RuntimeError where a file of Python's own would raise OSError.
        if isinstance(error, RuntimeError) and "write() failed" not in str(error):
            raise
        raise UserError(f"--data_dir={str(data_dir)!r} cannot be written: {error}") from error
    return {split: info.num_examples for split, info in builder.info.splits.items()}


def _png(scene: Scene) -> io.BytesIO:
    encoded = io.BytesIO()
    render(scene).save(encoded, "PNG", compress_level=1)
    encoded.seek(0)
    return encoded
