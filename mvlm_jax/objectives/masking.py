"""Which patches and words a step masks; drawn on the device, per example (paper, section 3.2)."""

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Masking:
    """How much of images and texts is masked."""

    grid: int  # patches a side of an image; a multiple of `cell`
    cell: int  # patches a side of the squares that are masked
    image_ratio: float  # of the cells
    text_ratio: float  # of the ordinary tokens
    special_ids: tuple[int, ...]  # tokens that are never masked: start, end, padding, unknown, [MASK] itself
    mask_id: int

    @property
    def masked_cells(self) -> int:
        """ceil(image_ratio * cells), with the product freed of its rounding error first (0.55 * 100 is 55, not 56)."""
        return math.ceil(round(self.image_ratio * (self.grid // self.cell) ** 2, 9))

    @property
    def masked_patches(self) -> int:
        return self.masked_cells * self.cell**2

    def masked_tokens(self, tokens: int) -> int:
        """max(1, round(text_ratio * tokens)), halves to even; 0 where there is nothing to mask."""
        return max(1, round(round(self.text_ratio * tokens, 9))) if tokens else 0

    def text_slots(self, max_length: int) -> int:
        """K: enough slots for the longest caption, start and end tokens set apart."""
        return max(1, math.ceil(round(self.text_ratio * (max_length - 2), 9)))

    def image_mask(self, key: Key[Array, ""], *, batch: int) -> ImageMask:
        """Masks exactly `masked_cells` cells of each image."""
        side = self.grid // self.cell
        rank = jnp.argsort(jnp.argsort(jax.random.uniform(key, (batch, side * side)), axis=1), axis=1)
        cells = (rank < self.masked_cells).reshape(batch, side, side)
        patch_mask = jnp.repeat(jnp.repeat(cells, self.cell, axis=1), self.cell, axis=2).reshape(batch, self.grid**2)
        slots = jnp.argsort(~patch_mask, axis=1, stable=True)[:, : self.masked_patches]
        return ImageMask(patch_mask, slots)

    def text_mask(self, key: Key[Array, ""], text: Int[Array, "B L"]) -> TextMask:
        """Masks exactly `masked_tokens` of the ordinary tokens of each caption, all with [MASK]."""
        length = text.shape[1]
        ordinary = ~jnp.isin(text, jnp.asarray(self.special_ids))
        counts = jnp.asarray(np.array([self.masked_tokens(n) for n in range(length + 1)]))
        count = counts[ordinary.sum(axis=1)]
        noise = jnp.where(ordinary, jax.random.uniform(key, text.shape), jnp.inf)
        order = jnp.argsort(noise, axis=1)
        slots = order[:, : self.text_slots(length)]
        weights = (jnp.arange(slots.shape[1]) < count[:, None]).astype(jnp.float32)
        masked = jnp.argsort(order, axis=1) < count[:, None]
        targets = jnp.take_along_axis(text, slots, axis=1)
        return TextMask(jnp.where(masked, self.mask_id, text), slots, targets, weights)
