"""The surest and the worst retrievals of a model."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from mvlm_jax.inference import Inference
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


def retrieved(
    model: Inference, images: list[Image.Image], captions: list[str], *, count: int
) -> dict[str, list[Retrieved]]:
    """`count` each of `best_images` and `worst_images`, found for captions, and `best_texts` and `worst_texts`."""
    scores = model.similarity(images, captions)
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
