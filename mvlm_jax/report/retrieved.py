"""The surest and the worst retrievals of a model."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from mvlm_jax.report.page import Picture, thumbnail

SHOWN = 3  # candidates of a query


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


class Retrievals(NamedTuple):
    """Images found for captions, and captions found for images: the surest and the worst."""

    best_images: Sequence[Retrieved] = ()
    worst_images: Sequence[Retrieved] = ()
    best_texts: Sequence[Retrieved] = ()
    worst_texts: Sequence[Retrieved] = ()


def retrieved(
    scores: Float[np.ndarray, "B B"], images: Sequence[Image.Image], captions: Sequence[str], *, count: int
) -> Retrievals:
    """`count` of each kind among pairs, from the score of each image (a row) with each caption."""
    own = np.array([[one == other for other in captions] for one in captions])  # the same caption is as right
    thumbnails = [thumbnail(image, caption) for image, caption in zip(images, captions, strict=True)]

    def to_images(query: int) -> Retrieved:
        scored = Scored(scores[:, query], own[:, query])
        shown = [FoundImage(thumbnails[place], *scored.at(place, rank)) for rank, place in scored.shown()]
        return Retrieved(captions[query], scored.remark, images=shown)

    def to_texts(query: int) -> Retrieved:
        scored = Scored(scores[query], own[query])
        shown = [FoundText(captions[place], *scored.at(place, rank)) for rank, place in scored.shown()]
        return Retrieved("", scored.remark, image=thumbnails[query], texts=shown)

    best_images, worst_images = _ends(scores.T, own, count=count)
    best_texts, worst_texts = _ends(scores, own, count=count)
    return Retrievals(
        list(map(to_images, best_images)),
        list(map(to_images, worst_images)),
        list(map(to_texts, best_texts)),
        list(map(to_texts, worst_texts)),
    )


def _ends(scores: Float[np.ndarray, "Q C"], own: Bool[np.ndarray, "Q C"], *, count: int) -> tuple[list[int], list[int]]:
    """The queries whose right candidate is furthest ahead, and those where it is furthest behind."""
    order = np.argsort(-margins(scores, own), kind="stable").tolist()
    return order[:count], order[::-1][:count]


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
