"""A trained model for images and strings."""

from mvlm_jax.inference.images import image_files
from mvlm_jax.inference.loading import load
from mvlm_jax.inference.model import Inference

__all__ = ["Inference", "image_files", "load"]
