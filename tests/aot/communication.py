"""What a compiled step may send between devices: the least that it has to, and features, which it must not."""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PyTree

from mvlm_jax.aot.costs import Collective


def least_collective_bytes(
    params: PyTree[jax.ShapeDtypeStruct], *, batch_size: int, projection: int, dtype: DTypeLike
) -> int:
    """Bytes of the arrays that each chip helps to reduce or gather, counted as `costs.bytes_by_kind` does.

    Each parameter's gradient is reduced once, in the parameter's own type. A parameter that lies whole on each chip is
    reduced over all chips. A parameter in parts is gathered once in `dtype`; its gradient is scattered over fsdp, and
    each part reduced over data. For contrast the embeddings of one modality are gathered, and their gradient reduced,
    in float32.

    Args:
      params: shapes with shardings, as `Program.state.params`.
    """
    leaves = jax.tree.leaves(params)
    mesh = leaves[0].sharding.mesh
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    total = 2 * batch_size * projection * 4 if data * fsdp > 1 else 0
    for leaf in leaves:
        # The part of a parameter that the axis tensor leaves on a chip counts as the parameter.
        part = jax.sharding.NamedSharding(mesh, _without_fsdp(leaf.sharding.spec)).shard_shape(leaf.shape)
        size, elements = jnp.dtype(leaf.dtype).itemsize, math.prod(part)
        if fsdp > 1 and "fsdp" in leaf.sharding.spec:
            total += elements * (jnp.dtype(dtype).itemsize + size)
            total += elements * size // fsdp if data > 1 else 0
        elif data * fsdp > 1:
            total += elements * size
    return total


def _without_fsdp(spec: jax.sharding.PartitionSpec) -> jax.sharding.PartitionSpec:
    return jax.sharding.PartitionSpec(*(None if entry == "fsdp" else entry for entry in spec))


def gathered_features(
    found: list[Collective], *, batch_size: int, lengths: tuple[int, ...], width: int
) -> Iterator[Collective]:
    """Collectives that carry features of tokens, [.., length, .., width] or its heads, from one chip to another.

    Features in rows, [rows, width], are recognised by their number: the tokens of the whole batch, or its three
    matching pairings.
    """
    rows = {3 * batch_size, *(batch_size * length for length in lengths)}
    for collective in found:
        if any(_is_features(shape.dims, rows=rows, lengths=lengths, width=width) for shape in collective.shapes):
            yield collective


def _is_features(dims: tuple[int, ...], *, rows: set[int], lengths: tuple[int, ...], width: int) -> bool:
    if len(dims) == 2:
        return dims[0] in rows and dims[1] == width
    # One row alone, [1, length, width], is a table of positions.
    return any(
        dims[place] in lengths and math.prod(dims[:place]) > 1 and math.prod(dims[place + 1 :]) % width == 0
        for place in range(1, len(dims) - 1)
    )
