"""The fields of a model, from a config."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from mvlm_jax.interop.families import image_family, text_family
from mvlm_jax.interop.image_family import image_format
from mvlm_jax.models.compute import Compute, compute_for
from mvlm_jax.models.cross_encoder import CrossSizes

COMPUTE_FIELDS = tuple(field.name for field in dataclasses.fields(Compute) if field.name != "dtype")  # of config.model


def compute_of(config: ConfigDict, *, backend: str | None = None) -> Compute:
    """See `compute_for`."""
    return compute_for(dtype=config.dtype, backend=backend, **{name: config.model[name] for name in COMPUTE_FIELDS})


def resolve_compute(config: ConfigDict, *, backend: str) -> None:
    """Puts what `auto` means on a platform in its place."""
    compute = compute_of(config, backend=backend)
    config.dtype = str(compute.dtype)
    for name in COMPUTE_FIELDS:
        config.model[name] = getattr(compute, name)


def maskvlm_fields(config: ConfigDict, *, pad_id: int) -> dict[str, Any]:
    """The fields of `MaskVLM` and of every model that builds on it.

    Raises:
      UserError: a kind of encoder that there is not.
    """
    compute, image = compute_of(config), image_format(config)
    return {
        "image_encoder": image_family(config.image_encoder.kind).build(
            config.image_encoder, image=image, compute=compute
        ),
        "text_encoder": text_family(config.text_encoder.kind).build(config.text_encoder, compute=compute),
        "cross": CrossSizes(**config.cross),
        "image": image,
        "pad_id": pad_id,
        "projection": config.model.projection,
        "image_pooling": config.image_encoder.pooling,
        "text_pooling": config.text_encoder.pooling,
        "token_head": config.model.token_head,
        "compute": compute,
    }
