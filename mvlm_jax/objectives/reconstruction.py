"""Masked patches and masked words, rebuilt (paper, equations 1 and 2)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mvlm_jax.objectives.losses import cross_entropy


def masked_image_loss(
    predicted: Float[Array, "B M pixels"], target: Float[Array, "B M pixels"]
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Per image: sum of |difference| over the masked patches' normalised RGB values, and their number."""
    error = jnp.abs(predicted.astype(jnp.float32) - target.astype(jnp.float32))
    return error.sum(axis=(1, 2)), jnp.full(error.shape[:1], error.shape[1] * error.shape[2], jnp.float32)


def masked_text_loss(
    logits: Float[Array, "B K V"], targets: Int[Array, "B K"], weights: Float[Array, "B K"]
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Per caption: sum of cross-entropies in nats over the masked tokens, and their number."""
    return (cross_entropy(logits, targets) * weights).sum(axis=1), weights.sum(axis=1)


def masked_text_correct(
    logits: Float[Array, "B K V"], targets: Int[Array, "B K"], weights: Float[Array, "B K"]
) -> Float[Array, " B"]:
    """Per caption: how many masked tokens are the model's first guess."""
    return ((logits.argmax(axis=-1) == targets) * weights).sum(axis=1)
