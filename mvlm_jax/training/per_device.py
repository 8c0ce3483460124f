"""The part of a loss that each device computes from its own rows; devices communicate only before and after it."""

from collections.abc import Callable

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import PyTree

from mvlm_jax.training.mesh import BATCH_AXES, batch_parts

FSDP = "fsdp"
OTHER_AXES = tuple(axis for axis in BATCH_AXES if axis != FSDP)

Local = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]


def per_device(local: Local, *, mesh: Mesh, shardings: PyTree[NamedSharding], dtype: DTypeLike, multiple: int) -> Local:
    """`local(params, rows) -> (sums, rows)`, each device on its own rows of the batch, the sums added up over devices.

    Parameters in parts on the axis fsdp are gathered once, in `dtype`. The gradient of each parameter is reduced once,
    in its own type, however often `local` uses it. XLA's partitioner alone would reduce it once for each use, and would
    send features instead of gathering parameters.

    Where devices do not have rows of their own (see `has_own_rows`), or there is one device, `local` gets the whole
    batch.

    Args:
      shardings: of the parameters.
    """
    specs = jax.tree.map(lambda sharding: _on_fsdp(sharding.spec, mesh=mesh), shardings)

    def run(params: PyTree, rows: PyTree) -> tuple[PyTree, PyTree]:
        count = jax.tree.leaves(rows)[0].shape[0]
        if batch_parts(mesh) == 1 or not has_own_rows(count, mesh=mesh, multiple=multiple):
            return local(params, rows)

        def on_device(params, rows):
            whole = jax.tree.map(lambda param, spec: _gathered(param, spec=spec, dtype=dtype), params, specs)
            sums, rows = local(whole, rows)
            return jax.lax.psum(sums, BATCH_AXES), rows

        by_rows = PartitionSpec(BATCH_AXES)
        return jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(specs, by_rows),
            out_specs=(PartitionSpec(), by_rows),
            axis_names=set(BATCH_AXES),
        )(params, rows)

    return run


def has_own_rows(count: int, *, mesh: Mesh, multiple: int) -> bool:
    """Whether each device's part of `count` rows is a `multiple`."""
    return count % (batch_parts(mesh) * multiple) == 0


def varying(x: jax.Array) -> jax.Array:
    """Marks `x` as a value that may differ between devices; outside of `per_device` it stays as it is."""
    axes = tuple(axis for axis in BATCH_AXES if axis in jax.sharding.get_abstract_mesh().manual_axes)
    return jax.lax.pcast(x, axes, to="varying") if axes else x


def _gathered(param: jax.Array, *, spec: PartitionSpec, dtype: DTypeLike) -> jax.Array:
    if FSDP not in spec:
        return varying(param)
    dimension = tuple(spec).index(FSDP)
    own_dtype = param.dtype

    # Written out because the transpose of a gather in `dtype` would also sum the gradients in `dtype`.
    @jax.custom_vjp
    def gather(part):
        whole = jax.lax.all_gather(part.astype(dtype), FSDP, axis=dimension, tiled=True)
        return jax.lax.pcast(whole, OTHER_AXES, to="varying")

    def backward(_, gradient):
        part = jax.lax.psum_scatter(gradient.astype(own_dtype), FSDP, scatter_dimension=dimension, tiled=True)
        return (jax.lax.psum(part, OTHER_AXES),)

    gather.defvjp(lambda part: (gather(part), None), backward)
    return gather(param)


def _on_fsdp(spec: PartitionSpec, *, mesh: Mesh) -> PartitionSpec:
    """The entries of a sharding for the axis fsdp; the axis tensor is left to XLA's partitioner."""
    return PartitionSpec(*(entry if entry == FSDP and mesh.shape[FSDP] > 1 else None for entry in spec))
