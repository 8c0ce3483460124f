"""The encoders of the model by themselves, over imported parameters."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mvlm_jax import config as config_lib
from mvlm_jax.interop.families import image_family, text_family
from mvlm_jax.interop.importing import import_encoder
from mvlm_jax.interop.parameters import flat, nested
from mvlm_jax.interop.report import Report
from mvlm_jax.models.compute import Compute
from mvlm_jax.models.image_encoder import ImageFormat, patchify

HALF = (0.5, 0.5, 0.5)


class Encoder(NamedTuple):
    encode: Callable[..., np.ndarray]
    report: Report
    params: Mapping[str, np.ndarray]
    write: Callable[..., Any]  # to a folder, beside a tokenizer or for the same images


def image_encoder(path, *, image_size, patch, kind="vit", epsilon=1e-6, **sizes):
    """A function of normalised pixels [B,3,H,W] and, where some are, hidden patches [N]; what else see `Encoder`."""
    family, image = image_family(kind), ImageFormat(image_size, patch, HALF, HALF)
    config = part_config("image_encoder", kind=kind, patch=patch, epsilon=epsilon, **sizes)
    encoder = family.build(config, image=image, compute=Compute())
    clean = jnp.zeros((1, 1, image.patches), bool)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, image.patches, image.pixels)), clean)
    loaded, report = import_encoder(
        path, family=family, encoder=config, image=image, shapes=shapes_of(shapes["params"])
    )
    params = nested({"mask_token": np.zeros((1, 1, config.width), np.float32)} | loaded)

    @jax.jit  # the parameters are an argument: as constants, those of a large encoder take minutes to compile
    def both(params, pixels, hidden):
        """Features, and what the last layer gives to the final norm."""
        features, kept = encoder.apply(
            {"params": params},
            patchify(pixels.transpose(0, 2, 3, 1), patch=patch),
            jnp.tile(hidden, (len(pixels), 1, 1)),
            capture_intermediates=lambda module, _: module.name == "layers",
        )
        return features[:, 0], kept["intermediates"]["layers"]["__call__"][0]

    def encode(pixels, hidden=clean, *, normed=True):
        features, before = both(params, np.asarray(pixels), np.asarray(hidden))
        return np.asarray(features if normed else before)

    return Encoder(
        encode,
        report,
        loaded,
        lambda folder: family.write(folder, loaded, encoder=config, image=image),
    )


def text_encoder(path, *, kind, **config):
    """A function of ids and mask [B,L], the report, the loaded parameters and their export."""
    family, config = text_family(kind), part_config("text_encoder", kind=kind, **config)
    encoder = family.build(config, compute=Compute())
    ids = jnp.zeros((1, 4), jnp.int32)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), ids, ids > 0)
    image = ImageFormat(16, 4, HALF, HALF)  # which no text encoder looks at
    loaded, report = import_encoder(
        path, family=family, encoder=config, image=image, shapes=shapes_of(shapes["params"])
    )

    @jax.jit
    def encode(ids, mask):
        return encoder.apply({"params": nested(loaded)}, ids, mask)

    return Encoder(
        lambda ids, mask: np.asarray(encode(np.asarray(ids, np.int32), np.asarray(mask, bool))),
        report,
        loaded,
        lambda folder, tokenizer: family.write(folder, loaded, encoder=config, tokenizer=tokenizer),
    )


def part_config(part, **fields):
    config = config_lib.default()[part]
    config.update(fields)
    return config


def shapes_of(params):
    return {path: tuple(leaf.shape) for path, leaf in flat(params).items()}
