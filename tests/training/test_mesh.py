import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mvlm_jax.errors import UserError
from mvlm_jax.training.mesh import batch_sharding, check_batch_size, make_mesh, param_shardings, shard_batch

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [((-1, 1, 1), (8, 1, 1)), ((2, -1, 2), (2, 2, 2)), ((1, 1, -1), (1, 1, 8)), ((4, 2, 1), (4, 2, 1))],
)
def test_the_axis_left_open_takes_the_devices_that_are_left(sizes, shape):
    data, fsdp, tensor = sizes
    assert tuple(make_mesh(data=data, fsdp=fsdp, tensor=tensor).shape.values()) == shape


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 1, 1), r"config.mesh.data=3, .* need 3 devices; there are 8 devices \(cpu\)"),
        ((4, 1, 1), r"need 4 devices; there are 8"),
        ((-1, 3, 1), r"need a multiple of 3 devices; there are 8"),
        ((16, 1, 1), r"need 16 devices; there are 8"),
        ((-1, -1, 1), r"-1 on at most one axis"),
        ((8, 0, 1), r"sizes must be positive"),
        ((-2, 1, 1), r"sizes must be positive"),
    ],
)
def test_sizes_that_do_not_use_every_device_once_are_refused(sizes, message):
    data, fsdp, tensor = sizes
    with pytest.raises(UserError, match=message):
        make_mesh(data=data, fsdp=fsdp, tensor=tensor)


def test_a_batch_lies_in_order_over_data_and_fsdp_and_is_copied_over_tensor():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    rows = np.arange(8).reshape(4, 2)
    batch = shard_batch({"x": rows}, batch_sharding(mesh))
    np.testing.assert_array_equal(batch["x"], rows)
    for shard in batch["x"].addressable_shards:
        data, fsdp, _ = np.argwhere(mesh.devices == shard.device)[0]
        np.testing.assert_array_equal(shard.data, rows[[2 * data + fsdp]])


def test_a_batch_that_the_devices_do_not_divide_is_refused():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    check_batch_size(12, mesh)
    with pytest.raises(UserError, match=r"config.batch_size=10 must be a multiple of 4"):
        check_batch_size(10, mesh)


def test_a_rule_with_more_entries_than_dimensions_is_refused_by_name():
    mesh = make_mesh(data=-1, fsdp=1, tensor=1)
    with pytest.raises(ValueError, match=r"head/bias, .* has more entries than its shape \(3,\)"):
        param_shardings({"head": {"bias": jnp.zeros(3)}}, mesh=mesh, rules=[(r".*", PartitionSpec("fsdp", "tensor"))])


def test_a_dimension_that_the_mesh_does_not_divide_is_refused_by_name():
    mesh = make_mesh(data=1, fsdp=2, tensor=4)
    params = {"head": {"kernel": jnp.zeros((4, 12))}}
    rules = [(r".*", PartitionSpec(None, ("fsdp", "tensor")))]
    expected = r"config.mesh.fsdp=2, config.mesh.tensor=4 must divide dimension 1 .* head/kernel, of shape \(4, 12\)"
    with pytest.raises(UserError, match=expected):
        param_shardings(params, mesh=mesh, rules=rules)


def test_a_rule_with_an_axis_that_the_mesh_lacks_is_refused():
    mesh = make_mesh(data=-1, fsdp=1, tensor=1)
    with pytest.raises(ValueError, match=r"kernel, .* names 'model'"):
        param_shardings({"kernel": jnp.zeros((4, 4))}, mesh=mesh, rules=[(r".*", PartitionSpec("model"))])
