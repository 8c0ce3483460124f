"""The bias for the distance of two tokens that MPNet adds to its attention scores, and encoders without token types."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_model

from mvlm_jax.interop.families import text_family
from mvlm_jax.interop.parameters import flat
from mvlm_jax.models.attention import attend
from mvlm_jax.models.compute import Compute
from mvlm_jax.models.parameter_rules import DECAY_RULES, OPTIMIZER_RULES, SHARDING_RULES
from mvlm_jax.models.text_encoder import BUCKETS, relative_buckets
from mvlm_jax.training.rules import match_rules

TABLE = "relative_attention_bias/embedding"
TOKENS = 5


def test_distances_are_put_into_buckets_by_sign_and_size():
    buckets = relative_buckets(200)
    assert buckets.shape == (200, 200) and set(buckets.flat) == set(range(BUCKETS)) - {16}
    behind = {0: 0, 1: 17, 7: 23, 8: 24, 11: 24, 12: 25, 15: 25, 16: 26, 32: 28, 64: 30, 90: 30, 91: 31, 199: 31}
    assert {distance: buckets[0, distance] for distance in behind} == behind
    before = {0: 0, 1: 1, 7: 7, 8: 8, 16: 10, 91: 15}
    assert {distance: buckets[199, 199 - distance] for distance in before} == before


@pytest.mark.parametrize("kernel", ["xla", "cudnn"])  # which leaves it to XLA, where there is no GPU too
def test_a_bias_is_added_to_the_scores(kernel):
    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, 2, 32, 3, 8)).astype(np.float32)
    bias = rng.standard_normal((1, 3, 32, 32)).astype(np.float32)
    mask = np.arange(32) < np.array([[32], [20]])
    scores = np.einsum("brnh,bsnh->bnrs", query, key) / np.sqrt(8) + bias
    weights = np.exp(scores) * mask[:, None, None]
    expected = np.einsum("bnrs,bsnh->brnh", weights / weights.sum(axis=-1, keepdims=True), value)
    query, key, value, mask, bias = map(jnp.asarray, (query, key, value, mask, bias))
    found = attend(query, key, value, mask, bias=bias, kernel=kernel)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def encoder_of(kind, *, trained_layers=-1, **compute):
    model = tiny_model(
        pad_id=1, text_encoder__kind=kind, text_encoder__layers=3, text_encoder__vocab_size=40,
        text_encoder__trained_layers=trained_layers,
    )  # fmt: skip
    return model.text_encoder.clone(compute=Compute(**compute))


@pytest.fixture(scope="module")
def mpnet():
    """Parameters with a table that counts, and texts of 5 and 3 tokens."""
    text = jnp.array([[0, 7, 8, 9, 2], [0, 7, 2, 1, 1]], jnp.int32)
    params = jax.jit(encoder_of("mpnet").init)(jax.random.key(0), text, text != 1)["params"]
    table = jax.random.normal(jax.random.key(1), (BUCKETS, 2))
    return params | {"relative_attention_bias": {"embedding": table}}, text


def hidden(encoder, params, text):
    return jax.jit(encoder.apply)({"params": params}, text, text != 1)


def test_however_it_runs_the_bias_reaches_every_layer(mpnet):
    params, text = mpnet
    expected = hidden(encoder_of("mpnet"), params, text)
    without = params | {"relative_attention_bias": {"embedding": jnp.zeros((BUCKETS, 2))}}
    assert np.abs(np.asarray(expected - hidden(encoder_of("mpnet"), without, text))).max() > 0.1
    # Padded to 8 tokens for the kernel.
    for compute in ({"layer_loop": "unroll"}, {"remat": "full"}, {"attention": "cudnn"}):
        found = hidden(encoder_of("mpnet", **compute), params, text)
        np.testing.assert_allclose(found[text != 1], expected[text != 1], rtol=1e-5, atol=1e-5)


def test_padding_changes_nothing(mpnet):
    params, text = mpnet
    longer = jnp.pad(text, ((0, 0), (0, 4)), constant_values=1)
    found = hidden(encoder_of("mpnet"), params, longer)[:, :TOKENS]
    np.testing.assert_allclose(found[text != 1], hidden(encoder_of("mpnet"), params, text)[text != 1], atol=1e-5)


@pytest.mark.parametrize("trained_layers", [-1, 2, 0])
def test_where_layers_are_frozen_the_table_is_too_as_they_read_it(mpnet, trained_layers):
    params, text = mpnet
    weights = jax.random.normal(jax.random.key(2), (2, TOKENS, 16))
    encoder = encoder_of("mpnet", trained_layers=trained_layers)
    gradient = jax.grad(lambda params: (hidden(encoder, params, text) * weights).sum())(params)
    assert bool(jnp.abs(gradient["relative_attention_bias"]["embedding"]).max() > 1e-3) == (trained_layers == -1)
    queries = jnp.abs(gradient["layers"]["block"]["attention"]["query"]["kernel"]).max(axis=(1, 2, 3))
    assert (queries > 0).tolist() == [trained_layers == -1, trained_layers != 0, trained_layers != 0]


@pytest.mark.parametrize("kind", ["distilbert", "mpnet"])
def test_rules_cover_every_parameter(kind):
    text = jnp.zeros((1, 4), jnp.int32)
    shapes = jax.eval_shape(encoder_of(kind).init, jax.random.key(0), text, text > 0)["params"]
    tree = {"text_encoder": shapes}
    assert not any("type_embedding" in path for path in flat(shapes))
    for rules in (SHARDING_RULES, OPTIMIZER_RULES, DECAY_RULES):
        match_rules(rules, tree)
    assert (TABLE in flat(shapes)) == (kind == "mpnet") == (text_family(kind).tokenizer == "mpnet")
    if kind == "mpnet":
        assert match_rules(DECAY_RULES, tree)["text_encoder"]["relative_attention_bias"]["embedding"] is False
