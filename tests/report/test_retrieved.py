"""Retrievals with scores by hand."""

import numpy as np
from PIL import Image

from mvlm_jax.report.retrieved import margins, retrieved

# Of three images (rows) with three captions: the second image is sure of its own, the third is wrong.
SCORES = np.array([[0.5, 0.4, 0.1], [0.0, 0.9, 0.2], [0.8, 0.3, 0.1]], np.float32)


def test_the_surest_and_the_worst_are_found_in_both_directions():
    images = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    found = retrieved(SCORES, images, ["a", "b", "c"], count=1)
    [best], [worst] = found.best_texts, found.worst_texts
    assert [(text.text, text.is_right) for text in best.texts] == [("b", True), ("c", False), ("a", False)]
    assert [(text.text, text.rank) for text in worst.texts] == [("a", 1), ("b", 2), ("c", 3)]
    assert worst.remark == "The right one is at rank 3 of 3."
    # Caption b leads by 0.5; c is 0.1 behind, a by 0.3.
    assert (found.best_images[0].query, found.worst_images[0].query) == ("b", "a")


def test_a_margin_is_of_the_best_right_candidate():
    own = np.array([[True, True, False], [False, True, False], [True, True, True]])
    np.testing.assert_allclose(margins(SCORES.astype(float), own), [0.4, 0.7, np.inf], atol=1e-6)
