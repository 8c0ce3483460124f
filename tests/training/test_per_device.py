import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mvlm_jax.training.mesh import batch_sharding, make_mesh
from mvlm_jax.training.per_device import has_own_rows, per_device

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")

SPECS = {"kernel": PartitionSpec("fsdp", "tensor"), "bias": PartitionSpec()}


def on_devices(local, *, mesh, params, dtype=jnp.float32, multiple=1):
    shardings = {name: NamedSharding(mesh, SPECS[name]) for name in params}
    return per_device(local, mesh=mesh, shardings=shardings, dtype=dtype, multiple=multiple)


def local(params, rows):
    hidden = jnp.tanh(rows["x"] @ params["kernel"].astype(jnp.float32) + params["bias"])
    # A second use of the same parameters: their gradient is the sum of both.
    again = jnp.tanh(hidden[:, :8] @ params["kernel"].astype(jnp.float32))
    return {"squares": (again**2).sum(), "rows": jnp.float32(rows["x"].shape[0])}, hidden


def gradients(mesh, *, batch=16):
    random = np.random.default_rng(0)
    params = {
        "kernel": random.normal(size=(8, 16)).astype(np.float32),
        "bias": random.normal(size=16).astype(np.float32),
    }
    rows = {"x": random.normal(size=(batch, 8)).astype(np.float32)}

    def loss(params, rows):
        sums, hidden = on_devices(local, mesh=mesh, params=params)(params, rows)
        return sums["squares"] / sums["rows"] + (hidden.mean(axis=0) ** 2).sum()

    shardings = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    return jax.jit(jax.value_and_grad(loss), in_shardings=(shardings, batch_sharding(mesh)))(params, rows)


@pytest.mark.parametrize("axes", [(8, 1, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2), (1, 1, 8)])
def test_value_and_gradient_are_those_of_one_device(axes):
    expected = gradients(make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1]))
    found = gradients(make_mesh(**dict(zip(("data", "fsdp", "tensor"), axes))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def test_a_device_sees_its_own_rows_only():
    seen = []

    def spy(params, rows):
        seen.append(rows["x"].shape)
        return {}, rows["x"]

    mesh = make_mesh(data=4, fsdp=2, tensor=1)
    params, rows = {"bias": jnp.zeros(3)}, {"x": jnp.arange(32.0).reshape(16, 2)}
    for multiple in (2, 4):
        assert has_own_rows(16, mesh=mesh, multiple=multiple) is (multiple == 2)
        _, kept = jax.jit(on_devices(spy, mesh=mesh, params=params, multiple=multiple))(params, rows)
        np.testing.assert_array_equal(kept, rows["x"])
    # Two rows a device are no multiple of four: then one function sees all of them.
    assert seen == [(2, 2), (16, 2)]


def test_parameters_are_gathered_in_the_type_of_the_computation():
    """What bfloat16 cannot hold is lost on the way, from the parameters but not from the sum of gradients."""
    mesh = make_mesh(data=1, fsdp=8, tensor=1)
    params = {"kernel": jnp.full((8, 1), 1 + 2**-12)}
    rows = {"x": jnp.ones((8, 1))}

    def loss(params):
        fetch = lambda params, rows: ({"sum": (params["kernel"][:1, 0] * rows["x"][:, 0]).sum()}, rows)
        return on_devices(fetch, mesh=mesh, params=params, dtype=jnp.bfloat16)(params, rows)[0]["sum"]

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert float(value) == 8.0
    assert gradient["kernel"].dtype == jnp.float32
    np.testing.assert_array_equal(gradient["kernel"], [[8.0]] + [[0.0]] * 7)
