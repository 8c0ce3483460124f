"""Heat maps, against probabilities and gradients that are found by other ways."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_model import make_model

from mvlm_jax.models.heat_maps import match_heat_maps, word_heat_maps

PAD = 0


@pytest.fixture(scope="module")
def pair():
    image = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8))
    text = np.random.default_rng(1).integers(5, 40, (2, 8)).astype(np.int32)
    text[1, 5:] = PAD
    return image, jnp.asarray(text)


@pytest.fixture(scope="module")
def model():
    return make_model(cross__layers=2)


@pytest.fixture(scope="module")
def params(model, pair):
    return jax.jit(model.init)(jax.random.key(0), *pair)["params"]


def by_hand(model, params, image, text):
    """The first block of the text cross encoder without its modules, then the rest of the model."""
    bound = model.bind({"params": params})
    v, w, mask = bound.encode_whole_image(image), bound.encode_text(text), bound.text_mask(text)
    fused_image = bound.fuse_image(v, w, mask)[:, 0]
    block = params["text_cross_encoder"]["block_0"]
    heads = block["cross_attention"]["query"]["kernel"].shape[1]

    def norm(name, x):
        x = x - x.mean(-1, keepdims=True)
        return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * block[name]["scale"] + block[name]["bias"]

    def project(layer, x):
        return jnp.einsum("bsd,dnh->bsnh", x, layer["kernel"]) + layer["bias"]

    def probabilities(layers, x, context, mask=None):
        scores = jnp.einsum("brnh,bsnh->bnrs", project(layers["query"], x), project(layers["key"], context))
        scores /= (x.shape[-1] // heads) ** 0.5
        return jax.nn.softmax(scores if mask is None else jnp.where(mask[:, None, None], scores, -jnp.inf))

    def attended(layers, p, context):
        mixed = jnp.einsum("bnrs,bsnh->brnh", p, project(layers["value"], context))
        return jnp.einsum("brnh,nhd->brd", mixed, layers["out"]["kernel"]) + layers["out"]["bias"]

    normed = norm("self_norm", w)
    x = w + attended(block["self_attention"], probabilities(block["self_attention"], normed, normed, mask), normed)
    p = probabilities(block["cross_attention"], norm("cross_norm", x), v)

    def odds(p):
        tokens = x + attended(block["cross_attention"], p, v)
        mlp = block["mlp"]
        hidden = jax.nn.gelu(norm("mlp_norm", tokens) @ mlp["up"]["kernel"] + mlp["up"]["bias"], approximate=False)
        tokens = tokens + hidden @ mlp["down"]["kernel"] + mlp["down"]["bias"]
        # The second block and the final norm: a cross encoder of one block.
        encoder = params["text_cross_encoder"]
        rest = {"block_0": encoder["block_1"], "final_norm": encoder["final_norm"]}
        single = make_model(cross__layers=1).bind({"params": {**params, "text_cross_encoder": rest}})
        logits = bound.match(fused_image, single.fuse_text(tokens, mask, v)[:, 0])
        return logits[:, 1] - logits[:, 0]

    return p, jax.grad(lambda p: odds(p).sum())(p), odds(p)


def test_the_heat_is_attention_times_its_positive_gradient(model, params, pair):
    heat, odds = jax.jit(match_heat_maps, static_argnums=0)(model, params, *pair)
    p, gradient, expected_odds = jax.jit(by_hand, static_argnums=0)(model, params, *pair)
    expected = (p * jnp.maximum(gradient, 0)).mean(axis=1)[:, :, 1:].reshape(2, 8, 4, 4)
    assert float(jnp.abs(expected[:, 1]).max()) > 0
    np.testing.assert_allclose(heat, expected, rtol=1e-3, atol=1e-8)
    np.testing.assert_allclose(odds, expected_odds, rtol=1e-4, atol=1e-5)


def test_of_the_last_layer_matching_reads_the_start_token_alone(model, params, pair):
    heat, _ = jax.jit(lambda params: match_heat_maps(model, params, *pair, layers=(1,)))(params)
    assert float(jnp.abs(heat[:, 0]).max()) > 0 and float(jnp.abs(heat[:, 1:]).max()) == 0


def test_how_the_model_is_computed_does_not_matter(model, params, pair):
    expected, _ = jax.jit(match_heat_maps, static_argnums=0)(model, params, *pair)
    other = model.clone(compute=dataclasses.replace(model.compute, attention="pallas", remat="full"))
    heat, _ = jax.jit(match_heat_maps, static_argnums=0)(other, params, *pair)
    np.testing.assert_allclose(heat, expected, rtol=1e-4, atol=1e-8)


@pytest.mark.slow
def test_the_heat_of_a_hidden_word_is_that_of_its_masks(model, params, pair):
    """Where the word is hidden its mask alone is asked, so the gradient of what it is guessed by is a row's."""
    (image, _), (text, _) = pair
    hidden = jnp.stack([text.at[3].set(4), text.at[4:6].set(4)])
    places, tokens = jnp.array([[3, 3], [4, 5]]), jnp.stack([text[jnp.array([3, 3])], text[jnp.array([4, 5])]])
    heat, scores = jax.jit(word_heat_maps, static_argnums=0)(model, params, image, hidden, places, tokens)
    assert heat.shape == (2, 4, 4) and float(heat.min()) >= 0 and float(heat.max()) > 0
    bound = model.bind({"params": params})
    v = bound.encode_whole_image(image[None])
    for row in range(2):
        fused = bound.fuse_text(bound.encode_text(hidden[row : row + 1]), bound.text_mask(hidden[row : row + 1]), v)
        expected = jax.nn.log_softmax(bound.classify_tokens(fused[0, places[row]]))
        np.testing.assert_allclose(scores[row], expected[jnp.arange(2), tokens[row]].mean(), rtol=1e-4)
    # Rows do not see each other.
    alone, _ = jax.jit(word_heat_maps, static_argnums=0)(model, params, image, hidden[:1], places[:1], tokens[:1])
    np.testing.assert_allclose(alone[0], heat[0], rtol=1e-3, atol=1e-8)
