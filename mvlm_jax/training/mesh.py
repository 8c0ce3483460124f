"""The devices of a run as a mesh, and where arrays lie on it."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int, PyTree, Shaped

from mvlm_jax.errors import UserError
from mvlm_jax.training.rules import match_rules, path_of

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(*, data: int, fsdp: int, tensor: int, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with so many devices on each axis; -1 on at most one axis stands for all that are left.

    TPU slices lie side by side on `data`, so that no other axis crosses the network between them.

    Raises:
      UserError: the axes do not use every device exactly once, or cut through a slice.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _fill(sizes={"data": data, "fsdp": fsdp, "tensor": tensor}, devices=devices)
    return Mesh(device_grid(devices, **sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def device_grid(devices: Sequence[Any], *, data: int, fsdp: int, tensor: int) -> Shaped[np.ndarray, "data fsdp tensor"]:
    """The devices, arranged so that their connections serve the axes best.

    Raises:
      UserError: the axis data is not a multiple of the TPU slices.
    """
    slices = len({_slice_of(device) for device in devices})
    if devices[0].platform != "tpu":
        # Neighbours on the last axes share a host, or a network.
        ordered = sorted(devices, key=lambda device: (_slice_of(device), device.process_index, device.id))
        return np.array(ordered).reshape(data, fsdp, tensor)
    if slices == 1:
        return mesh_utils.create_device_mesh((data, fsdp, tensor), devices, allow_split_physical_axes=True)
    if data % slices:
        raise UserError(f"config.mesh.data={data} must be a multiple of {slices}, the number of TPU slices")
    return mesh_utils.create_hybrid_device_mesh(
        (data // slices, fsdp, tensor), (slices, 1, 1), devices, allow_split_physical_axes=True
    )


def _slice_of(device: Any) -> int:
    return getattr(device, "slice_index", 0)


def _fill(*, sizes: dict[str, int], devices: Sequence[Any]) -> dict[str, int]:
    received = ", ".join(f"config.mesh.{axis}={size}" for axis, size in sizes.items())
    there_are = f"there are {len(devices)} devices ({devices[0].device_kind})"
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    if len(open_axes) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f"{received}: sizes must be positive, -1 on at most one axis for all that are left")
    taken = math.prod(size for size in sizes.values() if size != -1)
    if open_axes and len(devices) % taken == 0:
        return sizes | {open_axes[0]: len(devices) // taken}
    if taken != len(devices):
        need = f"a multiple of {taken}" if open_axes else str(taken)
        raise UserError(f"{received} need {need} devices; {there_are}")
    return sizes


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_parts(mesh: Mesh) -> int:
    """The number of equal parts into which the global batch is cut."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch_size(batch_size: int, mesh: Mesh, *, accumulate: int = 1) -> None:
    """Checks that every device gets an equal part of each of `accumulate` microbatches.

    Raises:
      UserError: the number of devices on the axes data and fsdp, times the microbatches, does not divide the batch.
    """
    parts = batch_parts(mesh)
    if batch_size % (accumulate * parts):
        times = f", times config.accumulate={accumulate}" if accumulate > 1 else ""
        raise UserError(
            f"config.batch_size={batch_size} must be a multiple of {accumulate * parts}, "
            f"the devices on the mesh axes data ({mesh.shape['data']}) and fsdp ({mesh.shape['fsdp']}){times}"
        )


def process_rows(batch_size: int, sharding: NamedSharding) -> Int[np.ndarray, " rows"]:
    """The rows of the global batch that the devices of this process need, ascending.

    Where tensor replicas are spread over processes, these need the same rows.
    """
    parts = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[part] for part in parts]))


def shard_batch(batch: Mapping[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """Global arrays from the rows that this process holds, those of `process_rows`."""
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def param_shardings(params: PyTree, *, mesh: Mesh, rules: Sequence[tuple[str, PartitionSpec]]) -> PyTree:
    """The tree of shardings that the rules give to parameters (or to their shapes).

    Raises:
      ValueError: no rule covers a parameter, or its rule has more entries than the parameter has dimensions.
      UserError: the mesh does not divide a dimension that the rule shards.
    """
    return jax.tree_util.tree_map_with_path(
        lambda key_path, leaf, spec: _checked(path=path_of(key_path), shape=leaf.shape, spec=spec, mesh=mesh),
        params,
        match_rules(rules, params),
    )


def _checked(*, path: str, shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> NamedSharding:
    if len(spec) > len(shape):
        raise ValueError(f"the sharding rule of {path}, {spec}, has more entries than its shape {shape}")
    for dimension, entry in enumerate(spec):
        axes = _axes(entry)
        unknown = [axis for axis in axes if axis not in mesh.shape]
        if unknown:
            raise ValueError(f"the sharding rule of {path}, {spec}, names {unknown[0]!r}; the mesh has {AXES}")
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if shape[dimension] % parts:
            sizes = ", ".join(f"config.mesh.{axis}={mesh.shape[axis]}" for axis in axes)
            raise UserError(f"{sizes} must divide dimension {dimension} of the parameter {path}, of shape {shape}")
    return NamedSharding(mesh, spec)


def _axes(entry: Any) -> tuple[str, ...]:
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def own_copy(params: PyTree) -> PyTree | None:
    """The parameters for work that this process does by itself: on one device where each device has all of them.

    None where other processes hold parts of them.
    """
    leaves = jax.tree.leaves(params)
    if all(leaf.is_fully_replicated for leaf in leaves):
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), params)
    return params if all(leaf.is_fully_addressable for leaf in leaves) else None


@contextlib.contextmanager
def alone(params: PyTree) -> Iterator[None]:
    """For a computation with parameters that are on the devices of this process."""
    sharding = jax.tree.leaves(params)[0].sharding
    if isinstance(sharding, NamedSharding):
        yield
        return
    (device,) = sharding.device_set
    with jax.default_device(device), jax.set_mesh(make_mesh(data=1, fsdp=1, tensor=1, devices=[device])):
        yield
