"""A family of image encoders: a class token and a square of patches with learned positions."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from mvlm_jax.errors import UserError
from mvlm_jax.interop.family import Family, Params, Resizable, Shapes
from mvlm_jax.interop.importing import Reader
from mvlm_jax.interop.positions import grid_side, resize_positions
from mvlm_jax.interop.tensors import PREPROCESSOR, Tensors
from mvlm_jax.interop.transformers_folder import write_json, write_model
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
        write_model(folder, params, family=self, heads=encoder.heads, fields=self.folder_fields(encoder, image))
        fields = {
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
        write_json(folder / PREPROCESSOR, fields)

    def folder_fields(self, encoder: ConfigDict, image: ImageFormat) -> dict[str, Any]:
        """What config.json says beside the sizes."""
        return {
            "image_size": image.size,
            "patch_size": image.patch,
            "num_channels": 3,
            "qkv_bias": True,
            self.config_names.epsilon: encoder.epsilon,
        }
