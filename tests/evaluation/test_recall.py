import numpy as np
import pytest

from mvlm_jax.evaluation.recall import recalls, reranked, top_candidates


def test_recalls_by_hand():
    # Two images, the first with captions 0 and 1, the second with caption 2.
    scores = np.array([[0.1, 0.9, 0.5], [0.2, 0.8, 0.7]])
    found = recalls(scores, np.array([0, 0, 1]), levels=(1, 2))
    # Image 0 ranks its caption 1 first; image 1 ranks caption 1 before its own.
    assert (found["tr_r1"], found["tr_r2"]) == (50, 100)
    # Caption 0 prefers image 1, caption 1 image 0, caption 2 image 1.
    assert found["ir_r1"] == pytest.approx(200 / 3)
    assert found["ir_r2"] == 100


def test_ties_never_help():
    found = recalls(np.zeros((4, 4)), np.arange(4), levels=(1, 3, 4))
    assert (found["tr_r1"], found["tr_r3"], found["tr_r4"]) == (0, 0, 100)
    assert (found["ir_r1"], found["ir_r3"], found["ir_r4"]) == (0, 0, 100)


def test_a_tie_between_two_own_captions_is_no_tie():
    found = recalls(np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), np.array([0, 0, 1]), levels=(1,))
    assert found["tr_r1"] == 100


def brute_force(scores, caption_image, k):
    """Counts, for each query, whether fewer than k wrong candidates are at least as good as the best right one."""
    hits = {"tr": [], "ir": []}
    for image in range(scores.shape[0]):
        own = [scores[image, t] for t in range(scores.shape[1]) if caption_image[t] == image]
        wrong = [scores[image, t] for t in range(scores.shape[1]) if caption_image[t] != image]
        hits["tr"].append(sum(s >= max(own) for s in wrong) < k)
    for text in range(scores.shape[1]):
        right = scores[caption_image[text], text]
        wrong = [scores[i, text] for i in range(scores.shape[0]) if i != caption_image[text]]
        hits["ir"].append(sum(s >= right for s in wrong) < k)
    return 100 * np.mean(hits["tr"]), 100 * np.mean(hits["ir"])


@pytest.mark.parametrize("seed", range(5))
def test_recalls_agree_with_brute_force_on_scores_with_ties(seed):
    rng = np.random.default_rng(seed)
    caption_image = np.concatenate([np.arange(12), rng.integers(0, 12, 20)])
    scores = rng.integers(0, 6, (12, 32)) / 5.0
    found = recalls(scores, caption_image)
    for k in (1, 5, 10):
        assert (found[f"tr_r{k}"], found[f"ir_r{k}"]) == brute_force(scores, caption_image, k)


def test_reranking_orders_the_candidates_and_leaves_the_rest_behind():
    scores = np.array([[0.9, 0.8, 0.7, 0.1]])
    candidates = top_candidates(scores, k=3)
    np.testing.assert_array_equal(candidates, [[0, 1, 2]])
    placed = reranked(scores, candidates, np.array([[-5.0, 2.0, -1.0]]))
    np.testing.assert_array_equal(np.argsort(-placed[0]), [1, 2, 0, 3])


def test_reranking_cannot_bring_in_what_was_no_candidate():
    scores = np.array([[0.9, 0.8, 0.1], [0.1, 0.9, 0.8], [0.9, 0.1, 0.8]])
    candidates = top_candidates(scores, k=1)
    placed = reranked(scores, candidates, np.zeros((3, 1)))
    np.testing.assert_array_equal(np.argsort(-placed, axis=1)[:, 0], candidates[:, 0])


def test_more_candidates_than_there_are_is_all_of_them():
    assert top_candidates(np.zeros((2, 3)), k=10).shape == (2, 3)
