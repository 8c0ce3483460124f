import tracemalloc

import numpy as np
import pytest

from mvlm_jax.evaluation import ranking
from mvlm_jax.evaluation.retrieval import Pairs

ROOMY = 2**30


def from_scores(scores, own):
    """What `rank` returns, from given scores."""
    candidates = ranking.top(scores, own, k=scores.shape[1])
    return ranking.Ranked(candidates, np.take_along_axis(own, candidates, axis=1), ranking.wrong_before(scores, own))


def integers(rng, rows, width):
    """Vectors whose inner products are exact, with many ties."""
    return rng.integers(-1, 2, (rows, width)).astype(np.float64)


def test_recalls_by_hand():
    # Two images, the first with captions 0 and 1, the second with caption 2.
    scores = np.array([[0.1, 0.9, 0.5], [0.2, 0.8, 0.7]])
    own = np.array([[True, True, False], [False, False, True]])
    # Image 0 ranks its caption 1 first; image 1 ranks caption 1 before its own.
    np.testing.assert_array_equal(ranking.wrong_before(scores, own), [0, 1])
    # Caption 0 prefers image 1, caption 1 image 0, caption 2 image 1.
    ranks = ranking.wrong_before(scores.T, own.T)
    assert ranking.recall(ranks, at=1) == pytest.approx(200 / 3)
    assert ranking.recall(ranks, at=2) == 100


def test_ties_never_help():
    ranks = ranking.wrong_before(np.zeros((4, 4)), np.eye(4, dtype=bool))
    assert [ranking.recall(ranks, at=k) for k in (1, 3, 4)] == [0, 0, 100]


def test_a_tie_between_two_own_captions_is_no_tie():
    own = np.array([[True, True, False], [False, False, True]])
    ranks = ranking.wrong_before(np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), own)
    np.testing.assert_array_equal(ranks, [0, 0])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("queries_at_once", [1, 3, 100])
def test_ranks_agree_with_brute_force_on_scores_with_ties(seed, queries_at_once):
    rng = np.random.default_rng(seed)
    queries, candidates = integers(rng, 12, 3), integers(rng, 32, 3)
    groups = np.arange(12), np.concatenate([np.arange(12), rng.integers(0, 12, 20)])
    scratch = queries_at_once * ranking.SCRATCH * 32
    ranked = ranking.rank(queries, candidates, *groups, k=7, host_bytes=scratch)
    for query in range(12):
        scores = [float(sum(a * b for a, b in zip(queries[query], candidate))) for candidate in candidates]
        own = [group == query for group in groups[1]]
        best = max(score for score, right in zip(scores, own) if right)
        assert ranked.rank[query] == sum(score >= best for score, right in zip(scores, own) if not right)
        order = sorted(range(32), key=lambda i: (-scores[i], own[i], i))[:7]
        assert ranked.candidates[query].tolist() == order
        assert ranked.own[query].tolist() == [own[i] for i in order]


@pytest.mark.parametrize("seed", range(6))
def test_re_ranking_agrees_with_brute_force_on_scores_with_ties(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, (20, 30)) / 5
    own = rng.random((20, 30)) < 0.08
    own[np.arange(20), rng.integers(0, 30, 20)] = True
    ranked = from_scores(scores, own)
    matching = rng.integers(0, 3, (20, 30)).astype(np.float32)
    for k in (1, 4, 30):
        ranks = ranking.reranked(ranked, matching, k=k)
        for query in range(20):
            lifted = scores[query].copy()
            # The candidates stand before all others, in the order of their matching.
            for place, candidate in enumerate(ranked.candidates[query, :k]):
                lifted[candidate] = 100 + matching[query, place]
            best = lifted[own[query]].max()
            assert ranks[query] == ((lifted >= best) & ~own[query]).sum()


def test_re_ranking_cannot_bring_in_what_was_no_candidate():
    scores = np.array([[0.9, 0.8, 0.1]])
    ranked = from_scores(scores, np.array([[False, False, True]]))
    assert ranking.reranked(ranked, np.array([[-1.0, -2.0, 9.0]]), k=2)[0] == 2
    assert ranking.reranked(ranked, np.array([[-1.0, -2.0, 9.0]]), k=3)[0] == 0


def test_more_candidates_than_there_are_is_all_of_them():
    assert ranking.top(np.zeros((2, 3)), np.zeros((2, 3), bool), k=10).shape == (2, 3)


def test_a_tie_at_the_edge_of_the_candidates_does_not_help():
    scores, own = np.zeros((1, 4)), np.array([[True, False, False, False]])
    np.testing.assert_array_equal(ranking.top(scores, own, k=4), [[1, 2, 3, 0]])
    candidates = ranking.top(scores, own, k=3)
    ranked = ranking.Ranked(candidates, np.take_along_axis(own, candidates, axis=1), ranking.wrong_before(scores, own))
    assert ranking.reranked(ranked, np.array([[5.0, 0.0, 0.0]]), k=3)[0] == 3


def test_scores_that_are_no_number_never_help():
    own = np.eye(3, dtype=bool)
    nothing = np.full((3, 3), np.nan)
    np.testing.assert_array_equal(ranking.wrong_before(nothing, own), [2, 2, 2])
    # Its own score is no number; that of a wrong one; that of a wrong one among smaller ones.
    scores = np.array([[np.nan, 0.1, 0.2], [np.nan, 0.9, 0.8], [0.1, np.nan, 0.5]])
    np.testing.assert_array_equal(ranking.wrong_before(scores, own), [2, 1, 1])
    np.testing.assert_array_equal(ranking.top(scores, own, k=3), [[2, 1, 0], [0, 1, 2], [1, 2, 0]])


def test_embeddings_and_matching_that_are_no_number_find_nothing():
    z = np.full((4, 2), np.nan, np.float32)
    ranked = ranking.rank(z, z, np.arange(4), np.arange(4), k=4, host_bytes=ROOMY)
    matching = np.full((4, 4), np.nan, np.float32)
    for ranks in (ranked.rank, *(ranking.reranked(ranked, matching, k=k) for k in (1, 3, 4))):
        assert [ranking.recall(ranks, at=k) for k in (1, 3, 4)] == [0, 0, 100]


def test_each_pair_is_listed_once_and_its_value_returned_to_both_queries():
    rng = np.random.default_rng(0)
    images, captions = 7, 15
    texts = np.stack([rng.permutation(captions)[:4] for _ in range(images)])
    pictures = np.stack([rng.permutation(images)[:3] for _ in range(captions)])
    pairs = Pairs(texts, pictures, captions=captions)
    wanted = {(i, int(t)) for i in range(images) for t in texts[i]}
    wanted |= {(int(i), t) for t in range(captions) for i in pictures[t]}
    matching = np.full(len(pairs), np.nan, np.float32)
    visited = []
    for first, last in ((0, 2), (3, 3), (4, 6)):
        where, image, caption = pairs.with_images(first, last)
        assert first <= image.min() and image.max() <= last
        matching[where] = 100 * image + caption
        visited += list(zip(image.tolist(), caption.tolist()))
    assert len(visited) == len(pairs) == len(wanted)
    assert set(visited) == wanted
    np.testing.assert_array_equal(pairs.of_images(matching), 100 * np.arange(images)[:, None] + texts)
    np.testing.assert_array_equal(pairs.of_captions(matching), 100 * pictures + np.arange(captions)[:, None])


def test_memory_is_bounded_by_what_is_allowed_and_not_by_all_scores():
    """A sixth of COCO's test split; what is allowed here is far less than its scores take."""
    images, captions, k, allowed = 800, 4000, 64, 2**22
    rng = np.random.default_rng(0)
    z = [rng.standard_normal((count, 16), np.float32) for count in (images, captions)]
    groups = np.arange(images), np.repeat(np.arange(images), 5)
    tracemalloc.start()
    to_text, to_image = (
        ranking.rank(z[a], z[b], groups[a], groups[b], k=k, host_bytes=allowed) for a, b in ((0, 1), (1, 0))
    )
    pairs = Pairs(to_text.candidates, to_image.candidates, captions=captions)
    matching = np.zeros(len(pairs), np.float32)
    ranking.reranked(to_text, pairs.of_images(matching), k=k)
    ranking.reranked(to_image, pairs.of_captions(matching), k=k)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The order of all candidates alone would be 8 x 800 x 4000 bytes = 26 MB each way.
    candidates = (images + captions) * k * (8 + 1)
    planned = 8 * (images + captions) * k * 6
    assert peak < allowed + 2 * candidates + planned
