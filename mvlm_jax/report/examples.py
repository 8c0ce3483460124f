"""What a model does with examples of its evaluation split, to be looked at."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from mvlm_jax.data.images import UnusableImage, decode_image
from mvlm_jax.data.labelled import LabelledExample
from mvlm_jax.data.pipeline import without_blanks
from mvlm_jax.data.sources import open_labelled, open_source
from mvlm_jax.errors import UserError
from mvlm_jax.inference import Inference
from mvlm_jax.report.model import open_model
from mvlm_jax.report.page import Picture, picture
from mvlm_jax.report.reconstruction import COLUMNS, Filled, Rebuilt, rebuild
from mvlm_jax.report.run import Run
from mvlm_jax.tasks.labelled import LabelledTask

AMONG = 256  # pairs among which the best and the worst retrievals are sought
ANSWERED_AMONG = 128  # questions, statements or hypotheses
SHOWN = 3  # candidates of a query
SIDE = 160  # pixels of the longer side of an image that is found
ATTENDED = 3  # pairs whose words are sought in their image


class Word(NamedTuple):
    """A word of a caption; `guess` is None where it was not hidden."""

    word: str
    guess: str | None
    is_right: bool


@dataclasses.dataclass(frozen=True)
class RebuiltCard:
    """A pair with its hidden parts rebuilt."""

    pictures: list[Picture]
    caption: str
    wrong_caption: str
    filled: list[tuple[str, list[Word]]]  # beside which image


class FoundImage(NamedTuple):
    picture: Picture
    rank: int
    score: float
    is_right: bool


class FoundText(NamedTuple):
    text: str
    rank: int
    score: float
    is_right: bool


@dataclasses.dataclass(frozen=True)
class Retrieved:
    """A query and what was found for it."""

    query: str
    remark: str
    image: Picture | None = None
    images: Sequence[FoundImage] = ()
    texts: Sequence[FoundText] = ()


@dataclasses.dataclass(frozen=True)
class Answered:
    """A question, statement or hypothesis with what the model says of it."""

    pictures: list[Picture]
    text: str
    predicted: str
    truth: str
    is_right: bool
    detail: str = ""


class HeatMap(NamedTuple):
    word: str
    picture: Picture


@dataclasses.dataclass(frozen=True)
class Attended:
    """Where the words of a caption are found in its image."""

    text: str
    words: list[HeatMap]


@dataclasses.dataclass(frozen=True)
class Examples:
    """What a page shows; empty lists: nothing that this model does."""

    source: str = ""
    among: int = 0
    columns: tuple[str, ...] = COLUMNS
    rebuilt: Sequence[RebuiltCard] = ()
    best_images: Sequence[Retrieved] = ()
    worst_images: Sequence[Retrieved] = ()
    best_texts: Sequence[Retrieved] = ()
    worst_texts: Sequence[Retrieved] = ()
    attended: Sequence[Attended] = ()
    right: Sequence[Answered] = ()
    wrong: Sequence[Answered] = ()
    step: int | None = None  # of the checkpoint that made them
    remark: str = ""  # why there is nothing


def examples_of(run: Run, *, count: int, step: int | None = None) -> Examples:
    """`count` of each kind from a checkpoint, the last one where `step` is None; or why there are none.

    Raises:
      UserError: no such checkpoint, or one that is damaged.
    """
    if not run.checkpoints:
        return Examples(remark="No examples: the run has no finished checkpoint yet.")
    if not count:
        return Examples(remark="No examples were asked for (--examples=0).")
    model, made_with = open_model(run, step=step)
    return dataclasses.replace(examples(model, count=count), step=made_with)


def examples(model: Inference, *, count: int) -> Examples:
    """`count` of each kind; a source that cannot be read gives none, with a remark."""
    config = model.config
    try:
        if isinstance(model.task, LabelledTask):
            return _answered(model, count=count)
        pairs = list(_pairs(model, most=max(count, AMONG)))
    except UserError as error:
        return Examples(remark=f"No examples: {error}. Another place is given by --config.data.data_dir=DIR.")
    if len(pairs) < 2:
        return Examples(remark=f"No examples: {config.data.eval} has fewer than two pairs that can be used.")
    images, captions = [list(column) for column in zip(*pairs, strict=True)]
    found = _retrieved(model, images[:AMONG], captions[:AMONG], count=count) if "similarity" in model.task.verbs else {}
    return Examples(
        source=config.data.eval,
        among=min(AMONG, len(pairs)),
        rebuilt=_rebuilt(model, images[:count], captions[:count]) if _rebuilds(model) and count > 1 else (),
        attended=_attended(model, images[: min(count, ATTENDED)], captions[: min(count, ATTENDED)]),
        **found,
    )


def _rebuilds(model: Inference) -> bool:
    """Whether its losses trained it to."""
    return "reconstruct" in model.task.verbs and bool(model.config.loss.mim or model.config.loss.mlm)


def _pairs(model: Inference, *, most: int) -> Iterator[tuple[Image.Image, str]]:
    """The first images of the evaluation split that can be used, each with its first caption."""
    config = model.config
    source = open_source(config.data.eval, data_dir=config.data.data_dir)
    found = 0
    for index in range(len(source)):
        try:
            example = source[index]
            captions = without_blanks(example["captions"])
            if captions:
                yield _image(example["image"], model=model), captions[0]
                found += 1
        except UnusableImage:
            continue
        if found == most:
            return


def _image(data: bytes, *, model: Inference) -> Image.Image:
    return Image.fromarray(decode_image(data, max_pixels=model.config.data.max_image_pixels))


def _rebuilt(model: Inference, images: list[Image.Image], captions: list[str]) -> list[RebuiltCard]:
    return [rebuilt_card(one) for one in rebuild(model, images, captions)]


def rebuilt_card(one: Rebuilt) -> RebuiltCard:
    """A pair as a page shows it."""
    pictures = [
        picture(image, alt=f"{column}: {one.caption}" if column == COLUMNS[0] else column)
        for column, image in zip(COLUMNS, one.images, strict=True)
    ]
    partners = (
        ("beside its image", one.beside_own),
        ("beside a wrong image", one.beside_wrong),
        ("beside no image", one.alone),
    )
    return RebuiltCard(
        pictures, one.caption, one.wrong_caption, [(partner, list(map(_word, words))) for partner, words in partners]
    )


def _word(filled: Filled) -> Word:
    return Word(filled.word, filled.guess, filled.is_right)


def _retrieved(
    model: Inference, images: list[Image.Image], captions: list[str], *, count: int
) -> dict[str, list[Retrieved]]:
    scores = model.similarity(images, captions)
    own = np.array([[one == other for other in captions] for one in captions])  # the same caption is as right
    thumbnails = [_thumbnail(image, caption) for image, caption in zip(images, captions, strict=True)]

    def to_images(query: int) -> Retrieved:
        scored = Scored(scores[:, query], own[:, query])
        shown = [FoundImage(thumbnails[place], *scored.at(place, rank)) for rank, place in scored.shown()]
        return Retrieved(captions[query], scored.remark, images=shown)

    def to_texts(query: int) -> Retrieved:
        scored = Scored(scores[query], own[query])
        shown = [FoundText(captions[place], *scored.at(place, rank)) for rank, place in scored.shown()]
        return Retrieved("", scored.remark, image=thumbnails[query], texts=shown)

    found = {}
    for kind, table, show in (("images", scores.T, to_images), ("texts", scores, to_texts)):
        lead = margins(table, own)
        order = np.argsort(-lead, kind="stable")
        found[f"best_{kind}"] = [show(int(query)) for query in order[:count]]
        found[f"worst_{kind}"] = [show(int(query)) for query in order[::-1][:count]]
    return found


def margins(scores: Float[np.ndarray, "Q C"], own: Bool[np.ndarray, "Q C"]) -> Float[np.ndarray, " Q"]:
    """By how much the best right candidate of each query is ahead of the best wrong one."""
    right = np.where(own, scores, -np.inf).max(axis=1)
    wrong = np.where(own, -np.inf, scores).max(axis=1)
    return np.where(np.isfinite(wrong), right - wrong, np.inf)


class Scored:
    """The candidates of a query in their order; of equal scores a wrong one comes first."""

    def __init__(self, scores: Float[np.ndarray, " C"], own: Bool[np.ndarray, " C"]):
        self._scores, self._own = scores, own
        self._order = np.lexsort((own, -scores)).tolist()
        self._rank = next(rank for rank, place in enumerate(self._order, 1) if own[place])

    @property
    def remark(self) -> str:
        return f"The right one is at rank {self._rank} of {len(self._order)}."

    def shown(self) -> list[tuple[int, int]]:
        """(rank, candidate) of the first ones, and of the right one where it comes later."""
        shown = list(enumerate(self._order[:SHOWN], 1))
        if self._rank <= SHOWN:
            return shown
        return [*shown[: SHOWN - 1], (self._rank, self._order[self._rank - 1])]

    def at(self, place: int, rank: int) -> tuple[int, float, bool]:
        """Rank and score of a candidate, and whether it is right."""
        return rank, float(self._scores[place]), bool(self._own[place])


def _thumbnail(image: Image.Image, alt: str) -> Picture:
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    return picture(small, alt=alt)


def _answered(model: Inference, *, count: int) -> Examples:
    config, task = model.config, cast(LabelledTask, model.task)
    source = open_labelled(config.data.eval, data_dir=config.data.data_dir)
    read: list[tuple[LabelledExample, list[Image.Image]]] = []
    for index in range(min(len(source), ANSWERED_AMONG)):
        try:
            example = source[index]
            read.append((example, [_image(data, model=model) for data in example["images"]]))
        except UnusableImage:
            continue
    if not read:
        return Examples(remark=f"No examples: none of the first ones of {config.data.eval} can be used.")
    predicted = model.predict([images for _, images in read], [example["text"] for example, _ in read])
    right: list[Answered] = []
    wrong: list[Answered] = []
    for (example, images), answer in zip(read, predicted, strict=True):
        said, detail = _said(answer)
        if not example["answers"]:
            continue
        cards = right if said in example["answers"] else wrong
        if len(cards) < count:
            truth = ", ".join(dict.fromkeys(example["answers"]))
            pictures = [_thumbnail(image, f"image of: {example['text']}") for image in images[: task.images]]
            cards.append(Answered(pictures, example["text"], said, truth, cards is right, detail))
    return Examples(source=config.data.eval, among=len(read), right=right, wrong=wrong)


def _said(answer: Any) -> tuple[str, str]:
    """What a model says, and how sure it is."""
    if isinstance(answer, dict):
        ordered = sorted(answer.items(), key=lambda one: -one[1])
        return ordered[0][0], ", ".join(f"{label} {probability:.0%}" for label, probability in ordered)
    return getattr(answer, "ranked", str(answer)), ""


def _attended(model: Inference, images: list[Image.Image], captions: list[str]) -> list[Attended]:
    """Empty for a model without heat maps."""
    return []
