"""The fields of a model, from a config."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from mvlm_jax.models.compute import Compute, compute_for

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
    """The fields of `MaskVLM` and of every model that builds on it."""
    return {
        "image_size": config.image.size,
        "patch": config.image_encoder.patch,
        "mean": tuple(config.image.mean),
        "std": tuple(config.image.std),
        "image_epsilon": config.image_encoder.epsilon,
        "text_kind": config.text_encoder.kind,
        "vocab_size": config.text_encoder.vocab_size,
        "positions": config.text_encoder.positions,
        "pad_id": pad_id,
        "compute": compute_of(config),
        "width": config.cross.width,
        "heads": config.cross.heads,
        "layers": config.image_encoder.layers,
        "mlp_ratio": config.cross.mlp_ratio,
        "cross_layers": config.cross.layers,
        "decoder_layers": config.cross.decoder_layers,
        "projection": config.model.projection,
        "token_head": config.model.token_head,
    }
