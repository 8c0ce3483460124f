"""Recall at k from scores, both ways; plain numpy in float64."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Num

LEVELS = (1, 5, 10)


def recalls(
    scores: Float[np.ndarray, "I T"], caption_image: Int[np.ndarray, " T"], *, levels: Sequence[int] = LEVELS
) -> dict[str, float]:
    """`tr_r<k>` (an image finds one of its own captions) and `ir_r<k>` (a caption finds its image), in percent.

    A wrong candidate with the same score counts as ranked before the right one, so that ties never help.
    """
    own = caption_image[None, :] == np.arange(scores.shape[0])[:, None]
    text_rank = _best_rank(scores, own)
    image_rank = _best_rank(scores.T, own.T)
    return {f"tr_r{k}": 100 * float(np.mean(text_rank < k)) for k in levels} | {
        f"ir_r{k}": 100 * float(np.mean(image_rank < k)) for k in levels
    }


def top_candidates(scores: Float[np.ndarray, "Q C"], *, k: int) -> Int[np.ndarray, "Q k"]:
    """The k best candidates of each query, best first; ties by index."""
    return np.argsort(-scores, axis=1, kind="stable")[:, : min(k, scores.shape[1])]


def reranked(
    scores: Float[np.ndarray, "Q C"], candidates: Int[np.ndarray, "Q k"], matching: Num[np.ndarray, "Q k"]
) -> Float[np.ndarray, "Q C"]:
    """Scores in which the candidates stand before all others, in the order of `matching`."""
    placed = scores.astype(np.float64)
    lifted = matching.astype(np.float64) - matching.min() + placed.max() + 1
    np.put_along_axis(placed, candidates, lifted, axis=1)
    return placed


def _best_rank(scores: Num[np.ndarray, "Q C"], own: Bool[np.ndarray, "Q C"]) -> Int[np.ndarray, " Q"]:
    """How many wrong candidates stand before the best right one; all of them where there is no right one."""
    best = np.where(own, scores, -np.inf).max(axis=1, keepdims=True)
    return ((scores >= best) & ~own).sum(axis=1)
