"""A trained model for images and strings."""

from mvlm_jax.inference.model import Inference, load

__all__ = ["Inference", "load"]
