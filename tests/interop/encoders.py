"""The encoders of the model by themselves, over imported parameters."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mvlm_jax.interop.importing import import_image_encoder, import_text_encoder
from mvlm_jax.interop.parameters import flat, nested
from mvlm_jax.interop.report import Report
from mvlm_jax.models.compute import Compute
from mvlm_jax.models.image_encoder import ImageEncoder, patchify
from mvlm_jax.models.text_encoder import TextEncoder

HALF = (0.5, 0.5, 0.5)


class Encoder(NamedTuple):
    encode: Callable[..., np.ndarray]
    report: Report
    params: Mapping[str, np.ndarray]


def image_encoder(path, *, image_size, patch, width, heads, layers, mlp_ratio, epsilon=1e-6):
    """A function of normalised pixels [B,3,H,W], the report and the loaded parameters."""
    patches = (image_size // patch) ** 2
    encoder = ImageEncoder(
        patches=patches, width=width, heads=heads, layers=layers, mlp_ratio=mlp_ratio,
        compute=Compute(), epsilon=epsilon,
    )  # fmt: skip
    clean = jnp.zeros((1, 1, patches), bool)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, patches, patch * patch * 3)), clean)
    loaded, report = import_image_encoder(
        path, shapes=shapes_of(shapes["params"]), heads=heads, patch=patch, epsilon=epsilon, mean=HALF, std=HALF
    )
    params = nested({"mask_token": np.zeros((1, 1, width), np.float32)} | loaded)

    @jax.jit
    def encode(pixels):
        masks = jnp.repeat(clean, len(pixels), axis=0)
        seen = patchify(pixels.transpose(0, 2, 3, 1), patch=patch)
        return encoder.apply({"params": params}, seen, masks)[:, 0]

    return Encoder(lambda pixels: np.asarray(encode(np.asarray(pixels))), report, loaded)


def text_encoder(path, *, kind, vocab_size, positions, width, heads, layers, mlp_ratio):
    """A function of ids and mask [B,L], the report and the loaded parameters."""
    encoder = TextEncoder(
        kind=kind, vocab_size=vocab_size, positions=positions, width=width, heads=heads, layers=layers,
        mlp_ratio=mlp_ratio, compute=Compute(),
    )  # fmt: skip
    ids = jnp.zeros((1, 4), jnp.int32)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), ids, ids > 0)
    loaded, report = import_text_encoder(path, shapes=shapes_of(shapes["params"]), heads=heads, kind=kind)

    @jax.jit
    def encode(ids, mask):
        return encoder.apply({"params": nested(loaded)}, ids, mask)

    return Encoder(
        lambda ids, mask: np.asarray(encode(np.asarray(ids, np.int32), np.asarray(mask, bool))), report, loaded
    )


def shapes_of(params):
    return {path: tuple(leaf.shape) for path, leaf in flat(params).items()}
