"""Which patches and words a step hides; drawn on the device, per example (paper, section 3.2)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key


class ImageMask(NamedTuple):
    """M patches of each image, the same number in every one."""

    patch_mask: Bool[Array, "B N"]
    slots: Int[Array, "B M"]  # the masked patches, ascending


class TextMask(NamedTuple):
    """Masked captions and the K slots in which their words are rebuilt; slots of weight 0 are not masked."""

    text: Int[Array, "B L"]  # with [MASK] in the masked places
    slots: Int[Array, "B K"]  # positions
    targets: Int[Array, "B K"]  # what stood there
    weights: Float[Array, "B K"]  # 1 where the slot is masked


def masked_cells(*, cells: int, ratio: float) -> int:
    """ceil(ratio * cells), with ratio * cells freed of its rounding error first (0.55 * 100 is 55, not 56)."""
    return math.ceil(round(ratio * cells, 9))


def masked_tokens(*, tokens: int, ratio: float) -> int:
    """max(1, round(ratio * tokens)), halves to even; 0 where there is nothing to mask."""
    return max(1, round(round(ratio * tokens, 9))) if tokens else 0


def text_slots(*, max_length: int, ratio: float) -> int:
    """K: enough slots for the longest caption, start and end tokens set apart."""
    return max(1, math.ceil(round(ratio * (max_length - 2), 9)))


def image_mask(key: Key[Array, ""], *, batch: int, grid: int, cell: int, ratio: float) -> ImageMask:
    """Hides exactly ceil(ratio * cells) square cells of each image.

    Args:
      grid: patches a side; a multiple of `cell`.
      cell: patches a side.
    """
    side = grid // cell
    count = masked_cells(cells=side * side, ratio=ratio)
    rank = jnp.argsort(jnp.argsort(jax.random.uniform(key, (batch, side * side)), axis=1), axis=1)
    cells = (rank < count).reshape(batch, side, side)
    patch_mask = jnp.repeat(jnp.repeat(cells, cell, axis=1), cell, axis=2).reshape(batch, grid * grid)
    slots = jnp.argsort(~patch_mask, axis=1, stable=True)[:, : count * cell * cell]
    return ImageMask(patch_mask, slots)


def text_mask(
    key: Key[Array, ""],
    text: Int[Array, "B L"],
    *,
    special_ids: tuple[int, ...],
    mask_id: int,
    ratio: float,
) -> TextMask:
    """Hides max(1, round(ratio * n)) of the n ordinary tokens of each caption, all behind [MASK].

    Args:
      special_ids: tokens that are never hidden (start, end, padding, unknown, [MASK] itself).
    """
    length = text.shape[1]
    ordinary = ~jnp.isin(text, jnp.asarray(special_ids))
    counts = jnp.asarray(np.array([masked_tokens(tokens=n, ratio=ratio) for n in range(length + 1)]))
    count = counts[ordinary.sum(axis=1)]
    noise = jnp.where(ordinary, jax.random.uniform(key, text.shape), jnp.inf)
    order = jnp.argsort(noise, axis=1)
    slots = order[:, : text_slots(max_length=length, ratio=ratio)]
    weights = (jnp.arange(slots.shape[1]) < count[:, None]).astype(jnp.float32)
    hidden = jnp.argsort(order, axis=1) < count[:, None]
    targets = jnp.take_along_axis(text, slots, axis=1)
    return TextMask(jnp.where(hidden, mask_id, text), slots, targets, weights)
