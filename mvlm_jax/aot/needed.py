"""What a step of pre-training has to communicate, whatever program it becomes."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PyTree


def least_collective_bytes(
    params: PyTree[jax.ShapeDtypeStruct], *, batch_size: int, projection: int, dtype: DTypeLike
) -> int:
    """Bytes of the arrays that each chip takes part in reducing or gathering, counted as `costs.bytes_by_kind` does.

    Each parameter's gradient is reduced once in the parameter's own type: over all chips where the parameter lies whole
    on each, else scattered over fsdp and its part reduced over data; before, its parts are gathered once in `dtype`.
    Of contrast the embeddings of one modality are gathered, and their gradient reduced, in float32.

    Args:
      params: shapes with shardings, as `Program.state.params`.
    """
    leaves = jax.tree.leaves(params)
    mesh = leaves[0].sharding.mesh
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    total = 2 * batch_size * projection * 4 if data * fsdp > 1 else 0
    for leaf in leaves:
        # The axis tensor is not communication of the batch's: what it leaves on a chip counts as the parameter.
        part = jax.sharding.NamedSharding(mesh, _without_fsdp(leaf.sharding.spec)).shard_shape(leaf.shape)
        size = jnp.dtype(leaf.dtype).itemsize
        elements = 1
        for dimension in part:
            elements *= dimension
        if fsdp > 1 and "fsdp" in leaf.sharding.spec:
            total += elements * (jnp.dtype(dtype).itemsize + size)
            total += elements * size // fsdp if data > 1 else 0
        elif data * fsdp > 1:
            total += elements * size
    return total


def _without_fsdp(spec: jax.sharding.PartitionSpec) -> jax.sharding.PartitionSpec:
    return jax.sharding.PartitionSpec(*(None if entry == "fsdp" else entry for entry in spec))
