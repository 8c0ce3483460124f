"""A family of image encoders: a class token and a square of patches with learned positions."""

import dataclasses
import math
from pathlib import Path
from typing import Any

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
_POSITIONS, _PATCHES = "position_embedding", "patch_embedding/kernel"


def image_format(config: ConfigDict) -> ImageFormat:
    image = config.image
    return ImageFormat(size=image.size, patch=config.image_encoder.patch, mean=tuple(image.mean), std=tuple(image.std))


@dataclasses.dataclass(frozen=True)
class ImageFamily(Family):
    config_extra: tuple[tuple[str, Any], ...] = ()  # what the config.json of an export says, too
    registers_are_free: bool = False  # whether the config says how many
    own_tokens: int = 1  # positions in front of those of the patches
    class_position_optional: bool = False  # whether a source may have positions of patches alone

    part = "image_encoder"

    def build(self, encoder: ConfigDict, *, image: ImageFormat, compute: Compute) -> nn.Module:
        own = {"registers": encoder.registers} if self.registers_are_free else {}
        if self.activation_of(encoder) != "gelu":
            own["activation"] = self.activation_of(encoder)
        return self.sized(encoder, compute=compute, patches=image.patches, epsilon=encoder.epsilon, **own)

    def check(self, encoder: ConfigDict) -> None:
        """
        Raises:
          UserError: the part's config has a value that no encoder of this kind can have.
        """
        if encoder.registers and not self.registers_are_free:
            raise UserError(
                f"config.image_encoder.registers={encoder.registers}, but an encoder of kind={self.kind!r} has none; "
                "give 0"
            )
        if encoder.activation != self.activation_of(encoder):
            raise UserError(
                f"config.image_encoder.activation={encoder.activation!r}, but an encoder of kind={self.kind!r} "
                f"computes {self.activation}; give --config.image_encoder.activation={self.activation}"
            )

    def fit(self, reader: Reader, *, shapes: Shapes) -> list[Resizable]:
        path, patch = reader.path, reader.encoder.patch
        reader.check_size(reader.shape_here(_PATCHES, like=shapes[_PATCHES]))
        kernel = reader.shape(_PATCHES, dimensions=4)
        if kernel is not None and kernel[1:] != (3, patch, patch):
            flag = f"; give --config.image_encoder.patch={kernel[2]}" if kernel[1:] == (3, kernel[2], kernel[2]) else ""
            raise UserError(
                f"{path} sees patches of {kernel[2]}x{kernel[3]} pixels of {kernel[1]} channels; "
                f"config.image_encoder.patch={patch}, of 3 channels{flag}"
            )
        return [self._positions(reader, ours=shapes[_POSITIONS])]

    def _positions(self, reader: Reader, *, ours: tuple[int, ...]) -> Resizable:
        theirs, own = reader.shape_here(_POSITIONS, like=ours) or ours, self.own_tokens
        missing = own if self.class_position_optional and grid_side(theirs[1], own=0) else 0
        rows = theirs[1] + missing
        side, old_side = grid_side(ours[1], own=own), grid_side(rows, own=own)
        if old_side is None:
            needed = "one for the class token and a square of patches" if own else "a square of patches"
            raise UserError(
                f"{reader.path} has {theirs[1]} positions in {reader.name(_POSITIONS)}; {needed} are needed"
            )
        changes = []
        if old_side != side:
            smoothing = ", smoothed," if self.smooths(reader.encoder) else ""
            changes.append(f"bicubic{smoothing} from {old_side}x{old_side} to {side}x{side} patches")
        if missing:
            changes.append("the class token's position is 0, as the source has none")
        elif changes and own:
            changes.append("the class token's position as it was")

        def resize(table: Float[np.ndarray, "1 old D"]) -> Float[np.ndarray, "1 new D"]:
            table = np.pad(table, ((0, 0), (missing, 0), (0, 0)))
            return self.resize_positions(table, rows=ours[1], encoder=reader.encoder)

        change = f"{_POSITIONS}: {'; '.join(changes)}" if changes else ""
        return Resizable(_POSITIONS, (1, theirs[1], ours[2]), resize, change)

    def resize_positions(
        self, table: Float[np.ndarray, "1 old D"], *, rows: int, encoder: ConfigDict
    ) -> Float[np.ndarray, "1 new D"]:
        """As the library resizes them that the encoder comes from; see `resize_positions`."""
        return resize_positions(table, rows=rows, own=self.own_tokens, smooth=self.smooths(encoder))

    def smooths(self, encoder: ConfigDict) -> bool:
        """Whether positions are smoothed before there are fewer of them."""
        return False

    def notes(self, source: Tensors, *, encoder: ConfigDict, image: ImageFormat) -> list[str]:
        epsilon = source.number(self.config_names.epsilon)
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
        fields = self.folder_fields(params, encoder=encoder, image=image)
        write_model(folder, params, family=self, encoder=encoder, fields=fields)
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

    def folder_fields(self, params: Params, *, encoder: ConfigDict, image: ImageFormat) -> dict[str, Any]:
        """What config.json says beside the sizes."""
        return {
            "image_size": image.size,
            "patch_size": image.patch,
            "num_channels": 3,
            self.config_names.epsilon: encoder.epsilon,
            **dict(self.config_extra),
        }


def grid_side(rows: int, *, own: int = 1) -> int | None:
    """The side of the square of patches in a table of `rows` positions; None: they are not a square.

    Args:
      own: positions that belong to no patch; they come first.
    """
    side = math.isqrt(max(rows - own, 0))
    return side if side and side * side == rows - own else None


def resize_positions(
    table: Float[np.ndarray, "1 old D"], *, rows: int, own: int = 1, smooth: bool = False
) -> Float[np.ndarray, "1 new D"]:
    """To `rows` positions: the first `own` ones are kept, the square grid of the others is interpolated.

    Bicubic as torch does it (which published code resizes with): half-pixel centres, Keys' kernel. Plain, with
    a = -0.75 and the border repeated; smoothed (`antialias=True`), with a = -0.5, the kernel as wide as the new grid is
    coarse, and nothing beyond the border. `jax.image.resize` and Pillow do the latter.

    Raises:
      ValueError: one of the tables is not that of these positions and a square of patches.
    """
    old, new = grid_side(table.shape[1], own=own), grid_side(rows, own=own)
    if old is None or new is None:
        raise ValueError(f"{table.shape[1]} to {rows} positions: both must be {own} more than a square")
    if old == new:
        return table
    weights = _smooth_weights(old=old, new=new) if smooth else _cubic_weights(old=old, new=new)
    grid = table[0, own:].reshape(old, old, -1).astype(np.float64)
    resized = np.einsum("yi,xj,ijd->yxd", weights, weights, grid, optimize=True)
    return np.concatenate([table[:, :own], resized.reshape(1, new * new, -1).astype(table.dtype)], axis=1)


def _cubic(x: Float[np.ndarray, "..."], *, a: float) -> Float[np.ndarray, "..."]:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def _cubic_weights(*, old: int, new: int) -> Float[np.ndarray, "new old"]:
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centre).astype(int)
    weights = np.zeros((new, old))
    for offset in (-1, 0, 1, 2):
        x = np.abs(centre - (first + offset))
        np.add.at(weights, (np.arange(new), np.clip(first + offset, 0, old - 1)), _cubic(x, a=-0.75))
    return weights


def _smooth_weights(*, old: int, new: int) -> Float[np.ndarray, "new old"]:
    scale = max(old / new, 1.0)
    centre = (np.arange(new)[:, None] + 0.5) * old / new
    weights = _cubic(np.abs(np.arange(old) + 0.5 - centre) / scale, a=-0.5)
    return weights / weights.sum(axis=1, keepdims=True)
