import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mvlm_jax.models.layers import gelu

X = [-6.0, -2.5, -0.75, 0.0, 0.3, 1.0, 4.0]


def cdf(x):
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def derivative(x):
    return cdf(x) + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def test_gelu_and_its_derivative_are_exact():
    values, gradient = jax.vmap(jax.value_and_grad(gelu))(jnp.array(X))
    np.testing.assert_allclose(values, [x * cdf(x) for x in X], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(gradient, [derivative(x) for x in X], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gelu_has_a_gradient_on_each_device_of_a_mesh(dtype):
    devices = jax.device_count()
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = PartitionSpec("data")
    x = jnp.arange(devices, dtype=dtype)
    of_all = jax.jit(jax.shard_map(jax.vmap(jax.grad(gelu)), mesh=mesh, in_specs=rows, out_specs=rows))
    np.testing.assert_array_equal(of_all(x), jax.vmap(jax.grad(gelu))(x))
