"""Which candidates a query ranks first, a block of queries at a time: exact, in float64 on the host.

Scores of all queries with all candidates need not fit the memory; those of a block must.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num


class Ranked(NamedTuple):
    """What is left of the scores of Q queries."""

    candidates: Int[np.ndarray, "Q k"]  # the best ones, best first; see `top`
    own: Bool[np.ndarray, "Q k"]  # which of them are right
    rank: Int[np.ndarray, " Q"]  # wrong candidates that stand before the best right one, ties included


def rank(
    queries: Float[np.ndarray, "Q E"],
    candidates: Float[np.ndarray, "C E"],
    query_group: Int[np.ndarray, " Q"],
    candidate_group: Int[np.ndarray, " C"],
    *,
    k: int,
    host_bytes: int,
) -> Ranked:
    """By the inner product; a candidate of the query's own group is right.

    Args:
      host_bytes: of the scores of a block and of what is computed from them.
    """
    k = min(k, len(candidates))
    queries, candidates = queries.astype(np.float64), candidates.astype(np.float64)
    best, own_best, ranks = [], [], []
    for block in blocks(len(queries), bytes_each=SCRATCH * len(candidates), host_bytes=host_bytes):
        scores = queries[block] @ candidates.T
        own = query_group[block, None] == candidate_group
        best.append(top(scores, own, k=k))
        own_best.append(np.take_along_axis(own, best[-1], axis=1))
        ranks.append(wrong_before(scores, own))
    return Ranked(np.concatenate(best), np.concatenate(own_best), np.concatenate(ranks))


# Bytes a score: itself, its negative, the sorted places, two masks and room for the sort.
SCRATCH = 8 + 8 + 8 + 1 + 8


def blocks(count: int, *, bytes_each: int, host_bytes: int) -> Iterator[slice]:
    """Consecutive parts of `count` rows, each within `host_bytes`, or of one row."""
    size = max(1, host_bytes // bytes_each)
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def top(scores: Num[np.ndarray, "Q C"], own: Bool[np.ndarray, "Q C"], *, k: int) -> Int[np.ndarray, "Q k"]:
    """The k best candidates of each query, best first; of equal ones the right ones last, else by index."""
    ordered = np.lexsort((own, -_at_worst(scores, own)))
    # A view would keep the whole order alive.
    return ordered[:, : min(k, scores.shape[1])].copy()


def wrong_before(scores: Num[np.ndarray, "Q C"], own: Bool[np.ndarray, "Q C"]) -> Int[np.ndarray, " Q"]:
    """How many wrong candidates stand before the best right one, ties included; all where there is no right one."""
    scores = _at_worst(scores, own)
    best = np.where(own, scores, -np.inf).max(axis=1, keepdims=True)
    return ((scores >= best) & ~own).sum(axis=1)


def _at_worst(scores: Num[np.ndarray, "Q C"], own: Bool[np.ndarray, "Q C"]) -> Num[np.ndarray, "Q C"]:
    """With scores that are no number as what helps least: wrong candidates before all others, right ones behind."""
    unknown = np.isnan(scores)
    return np.where(unknown, np.where(own, -np.inf, np.inf), scores) if unknown.any() else scores


def reranked(ranked: Ranked, scores: Num[np.ndarray, "Q k"], *, k: int) -> Int[np.ndarray, " Q"]:
    """`rank` when the first k candidates stand before all others, in the order of their `scores`.

    A query none of whose right candidates is among them keeps its rank: all k were before the best right one already.
    """
    scores, own = scores[:, :k].astype(np.float64), ranked.own[:, :k]
    return np.where(own.any(axis=1), wrong_before(scores, own), ranked.rank)


def recall(ranks: Int[np.ndarray, " Q"], *, at: int) -> float:
    """Percent of the queries with a right candidate among the first `at`."""
    return 100 * float(np.mean(ranks < at))
