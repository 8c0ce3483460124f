import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mvlm_jax.errors import UserError
from mvlm_jax.training.mesh import (
    batch_sharding,
    check_batch_size,
    device_grid,
    make_mesh,
    param_shardings,
    process_rows,
    shard_batch,
)

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


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a TPU v4 chip says of itself; a host has 2 x 2 of a slice's 2 x 4."""

    slice_index: int
    coords: tuple[int, int, int]
    platform = "tpu"
    device_kind = "TPU v4"
    core_on_chip = 0

    @property
    def id(self):
        return 8 * self.slice_index + 4 * self.coords[1] // 2 + self.coords[0]

    @property
    def process_index(self):
        return 2 * self.slice_index + self.coords[1] // 2


CHIPS = [Chip(number, (x, y, 0)) for number in (1, 0) for y in range(4) for x in range(2)]


@pytest.mark.parametrize(("data", "fsdp", "tensor"), [(2, 8, 1), (4, 2, 2), (16, 1, 1), (8, 1, 2)])
def test_only_the_axis_data_goes_from_one_tpu_slice_to_another(data, fsdp, tensor):
    grid = device_grid(CHIPS, data=data, fsdp=fsdp, tensor=tensor)
    assert grid.shape == (data, fsdp, tensor)
    assert set(grid.ravel()) == set(CHIPS)
    slices = np.vectorize(lambda chip: chip.slice_index)(grid).reshape(2, -1)
    np.testing.assert_array_equal(slices, np.repeat([[0], [1]], 8, axis=1))


def test_an_axis_data_that_cuts_through_a_tpu_slice_is_refused():
    with pytest.raises(UserError, match=r"config.mesh.data=1 must be a multiple of 2, the number of TPU slices"):
        device_grid(CHIPS, data=1, fsdp=8, tensor=2)


def test_hosts_without_slices_lie_one_after_the_other():
    class Device(SimpleNamespace):
        platform = "gpu"

    devices = [Device(process_index=process, id=number) for number in range(4) for process in (1, 0)]
    grid = device_grid(devices, data=2, fsdp=2, tensor=2)
    assert [(device.process_index, device.id) for device in grid.ravel()] == [(p, n) for p in (0, 1) for n in range(4)]


def test_a_process_alone_reads_every_row_whatever_the_order_of_its_devices():
    mesh = make_mesh(data=2, fsdp=2, tensor=2, devices=jax.devices())
    np.testing.assert_array_equal(process_rows(12, batch_sharding(mesh)), np.arange(12))


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
