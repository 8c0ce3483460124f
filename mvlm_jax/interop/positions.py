"""Position embeddings for another number of patches."""

import math

import numpy as np
from jaxtyping import Float


def grid_side(rows: int) -> int | None:
    """The side of the square of patches in a table of `rows` positions, class token included; None: not a square."""
    side = math.isqrt(max(rows - 1, 0))
    return side if side and side * side == rows - 1 else None


def resize_positions(table: Float[np.ndarray, "1 old D"], *, rows: int) -> Float[np.ndarray, "1 new D"]:
    """To `rows` positions: the class token's is kept, the square grid of the others is interpolated.

    Bicubic as torch does it (which published code resizes with): Keys' kernel with a = -0.75, half-pixel centres, the
    border repeated, no smoothing. `jax.image.resize` has another a, Pillow smooths.

    Raises:
      ValueError: one of the tables is not that of a class token and a square of patches.
    """
    old, new = grid_side(table.shape[1]), grid_side(rows)
    if old is None or new is None:
        raise ValueError(f"{table.shape[1]} to {rows} positions: both must be one more than a square")
    if old == new:
        return table
    weights = _cubic_weights(old=old, new=new)
    grid = table[0, 1:].reshape(old, old, -1).astype(np.float64)
    resized = np.einsum("yi,xj,ijd->yxd", weights, weights, grid, optimize=True)
    return np.concatenate([table[:, :1], resized.reshape(1, new * new, -1).astype(table.dtype)], axis=1)


def _cubic_weights(*, old: int, new: int) -> Float[np.ndarray, "new old"]:
    a = -0.75
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centre).astype(int)
    weights = np.zeros((new, old))
    for offset in (-1, 0, 1, 2):
        x = np.abs(centre - (first + offset))
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        np.add.at(weights, (np.arange(new), np.clip(first + offset, 0, old - 1)), np.where(x <= 1, near, far))
    return weights
