"""Images in the order in which they answer a query."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Hit(NamedTuple):
    """One of the images that a query is answered with."""

    image: int  # its place among the images that were given
    similarity: float  # cosine of the embeddings
    match: float | None = None  # probability that the text describes the image; None: not among those re-ranked


def nearest(similarity: Float[np.ndarray, " images"], *, k: int) -> Int[np.ndarray, " k"]:
    """The k images of highest similarity, best first; of equal ones the first comes first, what is no number last."""
    return np.argsort(-np.nan_to_num(similarity, nan=-np.inf), kind="stable")[:k]


def reordered(
    candidates: Int[np.ndarray, " k"],
    similarity: Float[np.ndarray, " images"],
    log_odds: Float[np.ndarray, " j"],
    *,
    temperature: float | None,
) -> list[Hit]:
    """The candidates, the first j of them in the order of the matching head, the others behind.

    Args:
      log_odds: of a match, of the first j candidates.
      temperature: of the model: cosine / temperature is added to the log-odds, as evaluation does by
        `config.eval.rerank_by=itm+itc`; None: by the log-odds alone.
    """
    judged = candidates[: len(log_odds)]
    scores = log_odds.astype(np.float64)
    if temperature is not None:
        scores += similarity[judged] / temperature
    order = nearest(scores, k=len(scores))
    with np.errstate(over="ignore"):
        match = 1 / (1 + np.exp(-log_odds.astype(np.float64)))
    hits = [Hit(int(judged[place]), float(similarity[judged[place]]), float(match[place])) for place in order]
    return hits + [Hit(int(index), float(similarity[index])) for index in candidates[len(log_odds) :]]
