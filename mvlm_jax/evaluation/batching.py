"""Batches of one shape over any number of examples, so that a split's last batch compiles nothing new.

Every process of a run holds all examples, its devices work on their part of each batch, and all get the results.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Int, PyTree, Shaped

from mvlm_jax.training import mesh as mesh_lib


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def compute(
    model: nn.Module, params: PyTree, *inputs: PyTree[jax.Array], method: Callable[..., Any] | None = None
) -> PyTree[jax.Array]:
    """`method` of the model for one batch; its `__call__` by default."""
    return model.apply({"params": params}, *inputs, method=method)


def index_batches(count: int, batch_size: int) -> list[Int[np.ndarray, " b"]]:
    """0 … count-1 in order, in batches; the last one is shorter."""
    return [np.arange(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def padded(x: Shaped[np.ndarray, " b *rest"], batch_size: int) -> Shaped[np.ndarray, " B *rest"]:
    """`x` filled up to `batch_size` with copies of its first example; the caller drops their results."""
    missing = batch_size - len(x)
    return np.concatenate([x, np.repeat(x[:1], missing, axis=0)]) if missing else x


def shared_batch_size(batch_size: int, *, params: PyTree) -> int:
    """The next size from `batch_size` on of which each device that holds `params` gets an equal part."""
    parts = batch_parts(params)
    return -(-batch_size // parts) * parts


def batch_parts(params: PyTree) -> int:
    """Into how many parts a batch is divided between the devices that hold `params`."""
    mesh = _mesh_of(params)
    return 1 if mesh is None else mesh_lib.batch_parts(mesh)


def place(tree: PyTree[np.ndarray], *, params: PyTree) -> PyTree[jax.Array]:
    """The batch on the devices that hold `params`, split over `data` and `fsdp` where they divide it."""
    mesh = _mesh_of(params)
    if mesh is None:
        return jax.tree.map(jax.numpy.asarray, tree)

    def put(x):
        divided = x.shape[0] % mesh_lib.batch_parts(mesh) == 0
        sharding = mesh_lib.batch_sharding(mesh) if divided else mesh_lib.replicated(mesh)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree)


def fetch(tree: PyTree[jax.Array]) -> PyTree[np.ndarray]:
    """The whole arrays on this host, also where other processes hold parts of them; all processes must call it."""

    def get(x):
        whole = x.is_fully_addressable or x.is_fully_replicated
        return np.asarray(x) if whole else multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(get, tree)


def _mesh_of(params: PyTree) -> Mesh | None:
    """None where the parameters lie on no mesh."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    return sharding.mesh if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) else None
