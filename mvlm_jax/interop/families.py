"""Every family of encoders, by its kind in the config."""

from collections.abc import Mapping
from typing import TypeVar

from mvlm_jax.errors import UserError
from mvlm_jax.interop.bert import BERT, ROBERTA
from mvlm_jax.interop.clip import CLIP
from mvlm_jax.interop.dinov2 import DINOV2
from mvlm_jax.interop.distilbert import DISTILBERT
from mvlm_jax.interop.family import Family
from mvlm_jax.interop.image_family import ImageFamily
from mvlm_jax.interop.mpnet import MPNET
from mvlm_jax.interop.siglip import SIGLIP
from mvlm_jax.interop.text_family import TextFamily
from mvlm_jax.interop.vit import VIT

IMAGE_FAMILIES: dict[str, ImageFamily] = {family.kind: family for family in (VIT, DINOV2, CLIP, SIGLIP)}
TEXT_FAMILIES: dict[str, TextFamily] = {family.kind: family for family in (ROBERTA, BERT, DISTILBERT, MPNET)}
_F = TypeVar("_F", bound=Family)


def image_family(kind: str) -> ImageFamily:
    """
    Raises:
      UserError: there is no such kind.
    """
    return _known("image_encoder", IMAGE_FAMILIES, kind)


def text_family(kind: str) -> TextFamily:
    """
    Raises:
      UserError: there is no such kind.
    """
    return _known("text_encoder", TEXT_FAMILIES, kind)


def every_family() -> tuple[Family, ...]:
    return (*IMAGE_FAMILIES.values(), *TEXT_FAMILIES.values())


def _known(part: str, families: Mapping[str, _F], kind: str) -> _F:
    if kind not in families:
        raise UserError(f"config.{part}.kind={kind!r} is not one of {', '.join(families)}")
    return families[kind]
