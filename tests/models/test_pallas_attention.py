"""The TPU kernel, interpreted on a CPU, against attention as it is written down."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvlm_jax.models import pallas_attention
from mvlm_jax.models.attention import attend


def outputs_and_gradients(kernel, arrays, mask):
    def loss(query, key, value):
        attended = attend(query, key, value, mask, kernel=kernel).astype(jnp.float32)
        return (attended * jnp.sin(jnp.arange(attended.size)).reshape(attended.shape)).sum(), attended

    (_, attended), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*arrays)
    return attended, *gradients


def draw(seed):
    """Sizes, features and a mask, any keys legal in any example: padding behind, holes, or none at all."""
    random = np.random.default_rng(seed)
    heads, width = [(2, 8), (1, 128), (4, 64), (3, 8), (2, 64)][seed % 5]
    batch, queries, keys = random.integers(1, 9), random.choice([1, random.integers(2, 40)]), random.integers(1, 40)
    shapes = [(batch, length, heads, width) for length in (queries, keys, keys)]
    arrays = [jnp.asarray(2 * random.normal(size=shape), jnp.float32) for shape in shapes]
    mask = random.random((batch, keys)) < random.random((batch, 1))
    mask[0] = np.arange(keys) < random.integers(0, keys + 1)
    mask[-1] = seed % 2
    return arrays, None if seed == 4 else jnp.asarray(mask)


@pytest.mark.parametrize("seed", [0, 1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 20))])
def test_the_kernel_has_the_values_and_gradients_of_the_plain_form(seed):
    arrays, mask = draw(seed)
    found, expected = (outputs_and_gradients(kernel, arrays, mask) for kernel in ("pallas", "xla"))
    for one, other in zip(found, expected):
        scale = float(jnp.abs(other).max())
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * max(scale, 1e-3))


def test_keys_that_are_illegal_have_no_influence_and_no_gradient():
    (query, key, value), mask = draw(2)[0], jnp.asarray([[True, False, True]])
    query, key, value = query[:1], key[:1, :3], value[:1, :3]
    before, _, of_key, of_value = outputs_and_gradients("pallas", (query, key, value), mask)
    other = outputs_and_gradients("pallas", (query, key.at[:, 1].set(9.0), value.at[:, 1].set(9.0)), mask)
    np.testing.assert_array_equal(other[0], before)
    assert not of_key[:, 1].any() and not of_value[:, 1].any() and of_key[:, 0].any()


def test_statistics_are_float32_where_features_are_bfloat16():
    # 40 keys of equal weight: their sum, 40 x 1/40, is lost in bfloat16.
    query, ones = jnp.zeros((1, 2, 1, 8), jnp.bfloat16), jnp.ones((1, 40, 1, 8), jnp.bfloat16)
    arrays, _ = draw(1)
    narrow = [x.astype(jnp.bfloat16) for x in arrays]
    found = outputs_and_gradients("pallas", narrow, None)
    exact = outputs_and_gradients("xla", [x.astype(jnp.float32) for x in narrow], None)
    for one, other in zip(found, exact):
        np.testing.assert_allclose(one.astype(jnp.float32), other, atol=0.02 * float(jnp.abs(other).max()))
    np.testing.assert_allclose(attend(query, ones, ones, None, kernel="pallas").astype(jnp.float32), 1, atol=1 / 128)


@pytest.mark.parametrize(
    ("sizes", "taken"),
    [
        ({"queries": 200, "keys": 200, "heads": 12, "width": 64}, True),
        ({"queries": 577, "keys": 577, "heads": 16, "width": 64}, True),
        ({"queries": 1, "keys": 40, "heads": 3, "width": 64}, True),
        ({"queries": 1025, "keys": 1025, "heads": 12, "width": 64}, False),  # scores for which there is no room
        ({"queries": 200, "keys": 200, "heads": 16, "width": 80}, False),  # no whole heads in whole registers
    ],
)
def test_what_the_kernel_takes(sizes, taken):
    assert pallas_attention.takes(**sizes) is taken


def test_a_block_has_whole_groups_of_heads_and_divides_the_arrays():
    # Features of 200 tokens, seven arrays of bfloat16: all 768 lanes have room at 2800 bytes a lane.
    assert pallas_attention._block(64, 768, group=128, of_lane=2800) == (1, 768)
    assert pallas_attention._block(64, 768, group=128, of_lane=8000) == (1, 384)
    assert pallas_attention._block(6, 768, group=128, of_lane=560) == (2, 768)
    assert pallas_attention._block(5, 192, group=192, of_lane=100) == (1, 192)
