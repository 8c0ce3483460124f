"""Each loss against numbers worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvlm_jax.objectives.losses import (
    answer_losses,
    classification_losses,
    contrastive_loss,
    masked_image_loss,
    masked_text_correct,
    masked_text_loss,
    token_log_likelihoods,
)
from mvlm_jax.objectives.matching import (
    hard_negatives,
    matching_correct,
    matching_loss,
    negative_noise,
    take_from_groups,
)


def test_a_rare_value_is_predicted_as_the_background_under_l1_and_as_its_share_under_l2():
    target = jnp.array([1.0, 0.0, 0.0, 0.0]).reshape(4, 1, 1)
    guesses = np.linspace(0, 1, 101)

    def best(power):
        total = [masked_image_loss(jnp.full((4, 1, 1), guess), target, power=power)[0].sum() for guess in guesses]
        return guesses[int(np.argmin(total))]

    assert best(1) == 0.0
    np.testing.assert_allclose(best(2), 0.25)


def test_masked_image_loss_is_the_l1_over_the_given_values():
    predicted = jnp.array([[[1.0, 2.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
    target = jnp.array([[[0.0, 4.0], [0.0, -1.0]], [[1.0, 1.0], [1.0, 0.5]]])
    total, count = masked_image_loss(predicted, target)
    np.testing.assert_allclose(total, [4.0, 0.5])
    np.testing.assert_allclose(count, [4, 4])


def test_masked_text_loss_counts_masked_slots_only():
    # Softmax of (0, ln 3) is (1/4, 3/4).
    logits = jnp.array([[[0.0, np.log(3.0)], [5.0, -5.0], [0.0, np.log(3.0)]]])
    total, count = masked_text_loss(logits, jnp.array([[1, 1, 0]]), jnp.array([[1.0, 0.0, 1.0]]))
    np.testing.assert_allclose(total, [-np.log(0.75) - np.log(0.25)], rtol=1e-6)
    np.testing.assert_allclose(count, [2])


def test_first_guesses_are_counted_in_masked_slots_only():
    logits = jnp.array([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]])
    np.testing.assert_allclose(masked_text_correct(logits, jnp.array([[1, 0, 0]]), jnp.array([[1.0, 0.0, 1.0]])), [2])
    np.testing.assert_allclose(masked_text_correct(logits, jnp.array([[0, 0, 0]]), jnp.array([[1.0, 0.0, 1.0]])), [1])


def test_contrast_of_two_orthogonal_pairs():
    z = jnp.eye(2)
    total, count = contrastive_loss(z, z, jnp.array([1, 2]), jnp.float32(0.5))
    # Logits (2, 0): -log(e^2 / (e^2 + 1)) for each pair and direction.
    np.testing.assert_allclose(total / count, np.log(1 + np.exp(-2)), rtol=1e-6)


def test_pairs_of_one_image_are_positives_of_each_other():
    z_image = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    z_text = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    total, count = contrastive_loss(z_image, z_text, jnp.array([5, 5, 6]), jnp.float32(1.0))
    e = np.e
    a = np.log(e / (e + 2)), np.log(1 / (e + 2))  # rows of the first two images: logits (1, 0, 0)
    b = np.log(1 / (1 + 2 * e)), np.log(e / (1 + 2 * e))  # of the third: (0, 1, 1)
    to_text = -2 * (a[0] + a[1]) / 2 - b[1]
    c = np.log(e / (2 * e + 1))  # first text: logits (1, 1, 0); both images of its own are positives
    d = np.log(1 / (2 + e)), np.log(e / (2 + e))  # second and third text: (0, 0, 1)
    to_image = -c - d[0] - d[1]
    np.testing.assert_allclose(total, (to_text + to_image) / 2, rtol=1e-6)
    assert float(count) == 3


def test_matching_loss_takes_own_as_match_and_the_other_two_as_none():
    logits = jnp.zeros((2, 3, 2)).at[0, 0, 1].set(np.log(3.0))
    total, count = matching_loss(logits, jnp.array([True, True]))
    np.testing.assert_allclose(total, -np.log(0.75) + 5 * np.log(2), rtol=1e-6)
    assert float(count) == 6
    assert float(matching_correct(logits, jnp.array([True, True]))) == 5


def test_a_pair_without_a_legal_negative_counts_once():
    total, count = matching_loss(jnp.zeros((2, 3, 2)), jnp.array([True, False]))
    np.testing.assert_allclose(total, 4 * np.log(2), rtol=1e-6)
    assert float(count) == 4


def unit(key, batch, width=8):
    z = jax.random.normal(key, (batch, width))
    return z / jnp.linalg.norm(z, axis=1, keepdims=True)


def test_negatives_never_share_the_image_and_never_leave_the_group():
    ids = jnp.array([1, 1, 2, 3, 4, 5, 4, 4])
    for seed in range(30):
        keys = jax.random.split(jax.random.key(seed), 3)
        noise = negative_noise(keys[0], pairs=8, group=4)
        negatives = hard_negatives(noise, unit(keys[1], 8), unit(keys[2], 8), ids, jnp.float32(0.07))
        for places in (negatives.text, negatives.image):
            chosen = take_from_groups(ids, places)
            assert np.all(np.asarray(chosen) != np.asarray(ids))
            assert np.all((np.asarray(places) >= 0) & (np.asarray(places) < 4))


def test_a_group_of_one_image_has_no_valid_negative():
    ids = jnp.array([7, 7, 1, 2])
    z = unit(jax.random.key(0), 4)
    noise = negative_noise(jax.random.key(1), pairs=4, group=2)
    negatives = hard_negatives(noise, z, z, ids, jnp.float32(0.1))
    np.testing.assert_array_equal(negatives.valid, [[False, False], [True, True]])


def test_negatives_are_drawn_by_the_softmax_of_similarity():
    # Image 0 sees texts 1 and 2 at similarity 1 and 0: at temperature 1 drawn as e : 1.
    z_image = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    z_text = jnp.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    draw = lambda key: hard_negatives(
        negative_noise(key, pairs=3, group=3), z_image, z_text, jnp.arange(3), jnp.float32(1.0)
    ).text[0, 0]
    chosen = np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(2), 4000)))
    assert set(chosen) == {1, 2}
    assert np.mean(chosen == 1) == pytest.approx(np.e / (np.e + 1), abs=0.03)


def test_take_from_groups_by_hand():
    x = jnp.arange(12.0).reshape(6, 2)
    taken = take_from_groups(x, jnp.array([[2, 0, 0], [1, 1, 2]]))
    np.testing.assert_array_equal(taken[:, 0], [4, 0, 0, 8, 8, 10])


def test_log_likelihoods_leave_out_padding():
    logits = jnp.log(jnp.asarray([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]))
    likelihoods = token_log_likelihoods(logits, jnp.asarray([2, 1]), pad_id=1)
    np.testing.assert_allclose(likelihoods, [np.log(0.25), 0.0], rtol=1e-6)


def test_answers_count_by_their_weights_and_without_their_padding():
    # One question; answers (2, 0) of weight 0.75 and (0, padding) of weight 0.25.
    rows = [[[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]], [[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]]
    targets, weights = jnp.array([[[2, 0], [0, 1]]]), jnp.array([[0.75, 0.25]])
    sums = answer_losses(jnp.log(jnp.array([rows])), targets, weights, pad_id=1)
    np.testing.assert_allclose(sums["answer"][0], 0.75 * 2 * np.log(4) + 0.25 * np.log(2), rtol=1e-6)
    assert float(sums["answer"][1]) == 1  # question
    # The first guesses are 0 and 2, then 0: one of them is right, of weight 0.25 among 2 x 0.75 + 0.25.
    np.testing.assert_allclose(sums["token_accuracy"], (25, 1.75), rtol=1e-6)


def test_classification_by_hand():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]]))
    sums = classification_losses(logits, jnp.array([0, 1]))
    np.testing.assert_allclose(sums["classification"], (np.log(2) + np.log(4), 2), rtol=1e-6)
    np.testing.assert_allclose(sums["accuracy"], (100, 2))
