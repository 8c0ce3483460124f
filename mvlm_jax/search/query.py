"""The images of an index that answer a text or an image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mvlm_jax.inference import Inference
from mvlm_jax.inference.ranked import Hit, nearest
from mvlm_jax.search.index import Index


class Found(NamedTuple):
    """An image that answers a query."""

    path: Path
    similarity: float  # cosine
    match: float | None  # probability that the text describes it; None: the matching head did not judge it


def by_texts(
    model: Inference, index: Index, folder: Path, texts: Sequence[str], *, top: int, rerank: int
) -> list[list[Found]]:
    """For each text the best images; the matching head decides the order of the first `rerank`."""
    paths = [folder / path for path in index.usable]
    tokens = model.tokenizer.encode(texts, max_length=model.config.text.max_length)
    similarity = model.encode_text(texts).astype(np.float64) @ index.embeddings().astype(np.float64).T
    candidates = [nearest(row, k=max(top, rerank)) for row in similarity]
    judged = model.judged(paths, tokens, similarity, candidates, rerank=rerank)
    return [_found(hits[:top], paths) for hits in judged]


def by_image(model: Inference, index: Index, folder: Path, image: Any, *, top: int) -> list[Found]:
    """The images most similar to one."""
    paths = [folder / path for path in index.usable]
    similarity = index.embeddings().astype(np.float64) @ model.encode_image([image])[0].astype(np.float64)
    return _found([Hit(int(place), float(similarity[place])) for place in nearest(similarity, k=top)], paths)


def _found(hits: Sequence[Hit], paths: Sequence[Path]) -> list[Found]:
    return [Found(paths[hit.image], hit.similarity, hit.match) for hit in hits]
