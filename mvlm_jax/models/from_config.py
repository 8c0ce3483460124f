"""The model that a config describes."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from mvlm_jax.models.maskvlm import MaskVLM


def compute_dtype(name: str, *, backend: str | None = None) -> DTypeLike:
    """`auto`: float32 on CPU, which has no fast bfloat16, and bfloat16 on every accelerator."""
    if name == "auto":
        name = "float32" if (backend or jax.default_backend()) == "cpu" else "bfloat16"
    return jnp.dtype(name)


def maskvlm(config: ConfigDict, *, pad_id: int) -> MaskVLM:
    return MaskVLM(**maskvlm_fields(config, pad_id=pad_id))


def maskvlm_fields(config: ConfigDict, *, pad_id: int) -> dict[str, Any]:
    """The fields of `MaskVLM` and of every model that builds on it."""
    return {
        "image_size": config.image.size,
        "patch": config.image.patch,
        "mean": tuple(config.image.mean),
        "std": tuple(config.image.std),
        "image_epsilon": config.image.epsilon,
        "text_kind": config.text.kind,
        "vocab_size": config.text.vocab_size,
        "positions": config.text.positions,
        "pad_id": pad_id,
        "dtype": compute_dtype(config.dtype),
        **config.model,
    }
