"""The model that a config describes."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array
from ml_collections import ConfigDict

from mvlm_jax.interop.families import image_family, text_family
from mvlm_jax.models.compute import Compute, compute_for
from mvlm_jax.models.cross_encoder import CrossSizes
from mvlm_jax.models.downstream import AnsweringModel, ClassifyingModel
from mvlm_jax.models.image_encoder import ImageFormat
from mvlm_jax.models.maskvlm import MaskVLM

CLASSES = {"nlvr2": 2, "entailment": 3}
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


def maskvlm(config: ConfigDict, *, pad_id: int) -> MaskVLM:
    return MaskVLM(**maskvlm_fields(config, pad_id=pad_id))


def task_model(config: ConfigDict, *, pad_id: int) -> MaskVLM:
    """The model of the config's task; its parameters are made by calling it with `model_inputs`."""
    fields = maskvlm_fields(config, pad_id=pad_id)
    if config.task == "vqa":
        options = config.vqa
        return AnsweringModel(**fields, answer_layers=options.decoder_layers, answer_length=options.answer_length)
    if config.task in CLASSES:
        return ClassifyingModel(**fields, classes=CLASSES[config.task])
    return MaskVLM(**fields)


def images_of(config: ConfigDict) -> int:
    """In each example of the config's task."""
    return 2 if config.task == "nlvr2" else 1


def model_inputs(config: ConfigDict) -> tuple[Array, ...]:
    """One example of nothing."""
    size = config.image.size
    text = jnp.zeros((1, config.text.max_length), jnp.int32)
    if config.task not in ("vqa", *CLASSES):
        return jnp.zeros((1, size, size, 3), jnp.uint8), text
    image = jnp.zeros((1, images_of(config), size, size, 3), jnp.uint8)
    answers = (jnp.zeros((1, 1, config.vqa.answer_length - 1), jnp.int32),) if config.task == "vqa" else ()
    return image, text, *answers


def image_format(config: ConfigDict) -> ImageFormat:
    image = config.image
    return ImageFormat(size=image.size, patch=config.image_encoder.patch, mean=tuple(image.mean), std=tuple(image.std))


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
        "token_head": config.model.token_head,
        "compute": compute,
    }
