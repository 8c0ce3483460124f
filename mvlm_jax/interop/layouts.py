"""How a parameter lies in torch's linear and convolution layers, and how here."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Layout(NamedTuple):
    """Two functions of (array, heads), each the inverse of the other."""

    to_ours: Callable[[np.ndarray, int], np.ndarray]
    to_torch: Callable[[np.ndarray, int], np.ndarray]


def _patches_to_ours(x: Float[np.ndarray, "D C P P"], heads: int) -> Float[np.ndarray, "P*P*C D"]:
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


def _patches_to_torch(x: Float[np.ndarray, "pixels D"], heads: int) -> Float[np.ndarray, "D 3 P P"]:
    side = round((x.shape[0] // 3) ** 0.5)
    return x.reshape(side, side, 3, x.shape[1]).transpose(3, 2, 0, 1)


SAME = Layout(lambda x, heads: x, lambda x, heads: x)
DENSE = Layout(lambda x, heads: x.T, lambda x, heads: x.T)
# Queries, keys and values: [D, H, D/H] and [H, D/H] here, [D, D] with the output first and [D] there.
HEADS_KERNEL = Layout(
    lambda x, heads: x.T.reshape(x.shape[1], heads, -1),
    lambda x, heads: x.reshape(x.shape[0], -1).T,
)
HEADS_BIAS = Layout(lambda x, heads: x.reshape(heads, -1), lambda x, heads: x.reshape(-1))
# The layer that merges the heads: [H, D/H, D] here.
MERGE_KERNEL = Layout(
    lambda x, heads: x.T.reshape(heads, -1, x.shape[0]),
    lambda x, heads: x.reshape(-1, x.shape[-1]).T,
)
# A convolution whose stride is its size, and the dense layer over (row, column, channel) that it is.
PATCHES = Layout(_patches_to_ours, _patches_to_torch)
