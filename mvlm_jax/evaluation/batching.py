"""Batches of one shape over any number of examples, so that a split's last batch compiles nothing new."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int, PyTree, Shaped


def index_batches(count: int, batch_size: int) -> list[Int[np.ndarray, " b"]]:
    """0 … count-1 in order, in batches; the last one is shorter."""
    return [np.arange(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def padded(x: Shaped[np.ndarray, "b *rest"], batch_size: int) -> Shaped[np.ndarray, "B *rest"]:
    """`x` with its first row repeated up to `batch_size` rows; the caller drops what comes out for them."""
    missing = batch_size - len(x)
    return np.concatenate([x, np.repeat(x[:1], missing, axis=0)]) if missing else x


def place(tree: PyTree[np.ndarray], *, params: PyTree) -> PyTree[jax.Array]:
    """The batch on the devices that hold `params`, split over `data` and `fsdp` where they divide it."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
        return jax.tree.map(jax.numpy.asarray, tree)
    mesh = sharding.mesh
    parts = mesh.shape["data"] * mesh.shape["fsdp"]

    def put(x):
        spec = PartitionSpec(("data", "fsdp")) if x.shape[0] % parts == 0 else PartitionSpec()
        return jax.device_put(x, NamedSharding(mesh, spec))

    return jax.tree.map(put, tree)
