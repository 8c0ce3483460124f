import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvlm_jax.objectives.masking import Masking

START, PAD, END, UNKNOWN, MASK = 0, 1, 2, 3, 4
SPECIAL = (START, PAD, END, UNKNOWN, MASK)


def make_masking(**changes):
    fields = {"grid": 14, "cell": 2, "image_ratio": 0.6, "text_ratio": 0.3, "special_ids": SPECIAL, "mask_id": MASK}
    return Masking(**{**fields, **changes})


def image_mask(seed, *, batch, **changes):
    return make_masking(**changes).image_mask(jax.random.key(seed), batch=batch)


@pytest.mark.parametrize("grid, ratio, expected", [(14, 0.6, 30), (6, 0.6, 6), (4, 0.6, 3), (20, 0.55, 55)])
def test_cells_are_rounded_up_but_not_by_floating_point_dust(grid, ratio, expected):
    masking = make_masking(grid=grid, image_ratio=ratio)
    assert masking.masked_cells == expected
    assert masking.masked_patches == 4 * expected


@pytest.mark.parametrize("tokens, expected", [(0, 0), (1, 1), (2, 1), (5, 2), (10, 3), (15, 4), (38, 11)])
def test_masked_tokens_follow_the_rule(tokens, expected):
    assert make_masking(text_ratio=0.3).masked_tokens(tokens) == expected


def test_slots_hold_the_longest_caption():
    assert make_masking(text_ratio=0.3).text_slots(40) == 12
    for ratio in (0.1, 0.15, 0.3, 0.5, 0.9):
        masking = make_masking(text_ratio=ratio)
        assert all(masking.masked_tokens(n) <= masking.text_slots(n + 2) for n in range(1, 80))


def test_every_image_hides_whole_cells_and_exactly_as_many():
    mask = image_mask(0, batch=64)
    cells = np.asarray(mask.patch_mask).reshape(64, 7, 2, 7, 2)
    assert np.all(cells == cells[:, :, :1, :, :1])
    assert np.all(cells[:, :, 0, :, 0].sum(axis=(1, 2)) == 30)
    assert mask.slots.shape == (64, 120)


def test_slots_are_the_masked_patches():
    mask = image_mask(1, batch=8, grid=6)
    for row, slots in zip(np.asarray(mask.patch_mask), np.asarray(mask.slots)):
        np.testing.assert_array_equal(np.flatnonzero(row), slots)


def test_image_masks_differ_between_examples_and_keys():
    one, other = (image_mask(seed, batch=32).patch_mask for seed in (0, 1))
    assert len(np.unique(np.asarray(one), axis=0)) == 32
    assert np.all(np.any(np.asarray(one) != np.asarray(other), axis=1))


def test_every_cell_is_hidden_equally_often():
    hidden = image_mask(2, batch=4000, grid=6).patch_mask.mean(axis=0)
    np.testing.assert_allclose(hidden, 6 / 9, atol=0.04)


def captions():
    """Rows of 0, 1, 5 and 10 ordinary tokens; the third has an unknown one besides."""
    rows = [[], [7], [7, 8, UNKNOWN, 9, 10, 11], list(range(20, 30))]
    text = np.full((4, 14), PAD, np.int32)
    for row, tokens in zip(text, rows):
        row[: len(tokens) + 2] = [START, *tokens, END]
    return jnp.asarray(text)


def drawn(seed, text=None):
    return make_masking().text_mask(jax.random.key(seed), captions() if text is None else text)


def test_the_right_number_of_words_is_hidden_in_each_caption():
    mask = drawn(0)
    np.testing.assert_array_equal((mask.text == MASK).sum(axis=1), [0, 1, 2, 3])
    np.testing.assert_array_equal(mask.weights.sum(axis=1), [0, 1, 2, 3])


def test_special_and_padding_tokens_are_never_hidden():
    text = np.asarray(captions())
    for seed in range(20):
        hidden = np.asarray(drawn(seed).text) != text
        assert not np.any(hidden & np.isin(text, SPECIAL))


def test_slots_hold_what_stood_in_the_masked_places():
    text, mask = np.asarray(captions()), drawn(3)
    for row, masked, slots, targets, weights in zip(
        text, *map(np.asarray, (mask.text, mask.slots, mask.targets, mask.weights))
    ):
        hidden = set(np.flatnonzero(masked == MASK))
        assert hidden == set(slots[weights == 1])
        assert [row[slot] for slot in slots[weights == 1]] == list(targets[weights == 1])


def test_text_masks_differ_between_examples_and_keys():
    text = jnp.broadcast_to(jnp.arange(10, 40, dtype=jnp.int32), (16, 30))
    one, other = (np.asarray(drawn(seed, text).text) for seed in (0, 1))
    assert len(np.unique(one, axis=0)) == 16
    assert np.all(np.any(one != other, axis=1))


def test_every_word_is_hidden_equally_often():
    text = jnp.broadcast_to(jnp.array([START, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, END], jnp.int32), (4000, 12))
    hidden = np.asarray(drawn(5, text).text == MASK).mean(axis=0)
    np.testing.assert_allclose(hidden[1:-1], 0.3, atol=0.04)
