"""Whether arrays are, bit for bit, those that were stored."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, UInt32


def fingerprints(tree: PyTree) -> list[int]:
    """A 32-bit sum for each leaf, the same on every mesh; computed where the arrays lie."""
    return [int(value) for value in jax.device_get(_fingerprints(jax.tree.leaves(tree)))]


@jax.jit
def _fingerprints(leaves: list[Array]) -> list[UInt32[Array, ""]]:
    return [_fingerprint(leaf) for leaf in leaves]


def _fingerprint(leaf: Array) -> UInt32[Array, ""]:
    words = jax.lax.bitcast_convert_type(leaf, _unsigned(leaf.dtype)).astype(jnp.uint32)
    # Odd factors that differ along every axis: a changed bit always changes the sum, swapped values do almost always.
    for axis in range(leaf.ndim):
        place = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        words = words * (place * jnp.uint32(2654435760) + jnp.uint32(1))
    return words.sum(dtype=jnp.uint32)


def _unsigned(dtype: np.dtype) -> np.dtype:
    return np.dtype(f"uint{8 * dtype.itemsize}")
