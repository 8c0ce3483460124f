"""A box in an image, and the patches that it touches."""

import math
from typing import Any

import numpy as np
from jaxtyping import Bool

from mvlm_jax.errors import UserError
from mvlm_jax.inference.images import described

NEEDED = "four numbers from 0 to 1, left < right and top < bottom, as in (0.5, 0, 1, 0.5)"


def patches_in(box: Any, *, side: int) -> Bool[np.ndarray, "rows columns"]:
    """The patches of a grid of `side` x `side` that a box touches.

    Args:
      box: left, top, right and bottom, as parts of the width and the height.

    Raises:
      UserError: it is no box inside the image.
    """
    left, top, right, bottom = _checked(box)
    mask = np.zeros((side, side), bool)
    mask[_touched(top, bottom, side), _touched(left, right, side)] = True
    return mask


def _touched(start: float, end: float, side: int) -> slice:
    # The products are freed of their rounding errors first: an edge between two patches touches one of them only.
    return slice(math.floor(round(start * side, 9)), math.ceil(round(end * side, 9)))


def _checked(box: Any) -> list[float]:
    try:
        values = np.asarray(box)
    except ValueError:  # lists of different lengths
        values = np.array(None)
    if values.shape != (4,) or values.dtype.kind not in "iuf":
        raise UserError(f"box is {described(box)}; give {NEEDED}")
    left, top, right, bottom = numbers = values.astype(float).tolist()
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise UserError(f"box={tuple(numbers)} is not inside the image; give {NEEDED}")
    return numbers
