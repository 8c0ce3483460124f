"""What the model does with whole images and texts, against its parts put together by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_model import make_model

PAD = 0


@pytest.fixture(scope="module")
def bound(image, text):
    model = make_model()
    return model.bind(jax.jit(model.init)(jax.random.key(0), image, text))


@pytest.fixture(scope="module")
def image():
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8))


@pytest.fixture(scope="module")
def text():
    text = np.random.default_rng(1).integers(5, 40, (3, 8)).astype(np.int32)
    text[1, 5:] = PAD
    return jnp.asarray(text)


@pytest.fixture(scope="module")
def parts(bound, image, text):
    patches = bound.patches(image)
    nothing = jnp.zeros((3, 1, patches.shape[1]), bool)
    return bound.encode_image(patches, nothing)[:, 0], bound.encode_text(text), text != PAD


def test_embeddings_are_those_of_unmasked_features(bound, image, text, parts):
    v, w, text_mask = parts
    np.testing.assert_array_equal(bound.encode_whole_image(image), v)
    np.testing.assert_array_equal(bound.embed_image(image), bound.project_image(v))
    np.testing.assert_array_equal(bound.embed_text(text), bound.project_text(w, text_mask))
    np.testing.assert_allclose(np.linalg.norm(bound.embed_image(image), axis=1), 1, rtol=1e-5)


def test_pooling_takes_the_mean_of_patches_and_of_tokens_that_are_not_padding(bound, image, text, parts):
    v, w, text_mask = parts
    model = make_model(image_encoder__pooling="mean", text_encoder__pooling="mean").bind(bound.variables)
    v_mean = sum(v[:, index] for index in range(1, v.shape[1])) / 16
    np.testing.assert_allclose(model.embed_image(image), bound.project_image(v_mean[:, None]), rtol=1e-5, atol=1e-6)
    # Start and end count too; the second text has five tokens before its padding.
    w_mean = jnp.stack([w[0].mean(axis=0), w[1, :5].mean(axis=0), w[2].mean(axis=0)])
    expected = bound.project_text(w_mean[:, None], text_mask[:, :1])
    np.testing.assert_allclose(model.embed_text(text), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.project_text(w, text_mask), model.embed_text(text))
    assert np.abs(np.asarray(expected - bound.embed_text(text))).max() > 1e-3


def test_fusing_both_is_fusing_each(bound, parts):
    v, w, text_mask = parts
    fused_image, fused_text = bound.fuse_both(v, w, text_mask)
    np.testing.assert_array_equal(fused_image, bound.fuse_image(v, w, text_mask))
    np.testing.assert_array_equal(fused_text, bound.fuse_text(w, text_mask, v))


def test_pairs_are_matched_by_the_first_tokens_of_all_that_is_fused(bound, image, text, parts):
    v, w, text_mask = parts
    fused_image, fused_text = bound.fuse_image(v, w, text_mask), bound.fuse_text(w, text_mask, v)
    expected = bound.match(fused_image[:, 0], fused_text[:, 0])
    # The last blocks compute one token only, and round its sums in another order.
    np.testing.assert_allclose(bound.match_features(v, w, text_mask), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(bound.pair_logits(image, text), bound.match_features(v, w, text_mask))


def test_a_bound_model_may_be_used_inside_a_loop_that_is_traced_again(bound, text):
    """The evaluation of answers scores and writes them in loops."""
    each = jax.jit(lambda text: jax.lax.map(lambda one: bound.embed_text(one[None])[0], text))(text)
    np.testing.assert_allclose(each, bound.embed_text(text), rtol=1e-5, atol=1e-6)
