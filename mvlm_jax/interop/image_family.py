"""A family of image encoders: a class token and a square of patches with learned positions."""

import dataclasses
import math
from pathlib import Path

import numpy as np
from flax import linen as nn
from jaxtyping import Float
from ml_collections import ConfigDict

from mvlm_jax.errors import UserError
from mvlm_jax.files import write_json
from mvlm_jax.interop.family import Family, Params, Resizable, Shapes
from mvlm_jax.interop.reader import Reader
from mvlm_jax.interop.tensors import PREPROCESSOR, Tensors
from mvlm_jax.interop.transformers_folder import write_model
from mvlm_jax.models.compute import Compute
from mvlm_jax.models.image_encoder import ImageFormat

_BICUBIC = 3  # Pillow's number


def image_format(config: ConfigDict) -> ImageFormat:
    image = config.image
    return ImageFormat(size=image.size, patch=config.image_encoder.patch, mean=tuple(image.mean), std=tuple(image.std))


@dataclasses.dataclass(frozen=True)
class ImageFamily(Family):
    part = "image_encoder"

    def build(self, encoder: ConfigDict, *, image: ImageFormat, compute: Compute) -> nn.Module:
        return self.sized(encoder, compute=compute, patches=image.patches, epsilon=encoder.epsilon)

    def fit(self, reader: Reader, *, shapes: Shapes) -> list[Resizable]:
        path, patch = reader.path, reader.encoder.patch
        reader.check_size(reader.shape("cls_token", dimensions=3))
        kernel = reader.shape("patch_embedding/kernel", dimensions=4)
        if kernel is not None and kernel[1:] != (3, patch, patch):
            raise UserError(
                f"{path} sees patches of {kernel[2]}x{kernel[3]} pixels of {kernel[1]} channels; "
                f"config.image_encoder.patch={patch}, of 3 channels"
            )
        ours = shapes["position_embedding"]
        table = reader.shape("position_embedding", dimensions=3) or ours
        side, old_side = grid_side(ours[1]), grid_side(table[1])
        if old_side is None:
            raise UserError(
                f"{path} has {table[1]} positions in {reader.name('position_embedding')}; "
                "one for the class token and a square of patches are needed"
            )
        change = (
            f"position_embedding: bicubic from {old_side}x{old_side} to {side}x{side} patches; "
            "the class token's position as it was"
        )
        return [
            Resizable(
                "position_embedding",
                (1, table[1], ours[2]),
                lambda table: resize_positions(table, rows=ours[1]),
                "" if old_side == side else change,
            )
        ]

    def notes(self, source: Tensors, *, encoder: ConfigDict, image: ImageFormat) -> list[str]:
        epsilon = source.config.get(self.config_names.epsilon)
        notes = [
            f"{note}; with --config.image_encoder.epsilon={epsilon:g} they are the same"
            for note in self.epsilon_note(source, ours=encoder.epsilon)
        ]
        theirs = source.preprocessing()
        if theirs is not None and not np.allclose(theirs, (image.mean, image.std), atol=1e-4):
            notes.append(
                f"the source was trained on pixels of mean {tuple(theirs[0])} and std {tuple(theirs[1])}; "
                f"config.image.mean={image.mean}, config.image.std={image.std}"
            )
        return notes

    def write(self, folder: Path, params: Params, *, encoder: ConfigDict, image: ImageFormat) -> None:
        """A folder that transformers loads."""
        config = {
            "image_size": image.size,
            "patch_size": image.patch,
            "num_channels": 3,
            "qkv_bias": True,
            self.config_names.epsilon: encoder.epsilon,
        }
        write_model(folder, params, family=self, heads=encoder.heads, fields=config)
        preprocessor = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": image.size, "width": image.size},
            "resample": _BICUBIC,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(image.mean),
            "image_std": list(image.std),
        }
        write_json(folder / PREPROCESSOR, preprocessor)


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
