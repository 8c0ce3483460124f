"""Image-text contrast over the global batch (paper, equation 3)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def contrastive_loss(
    z_image: Float[Array, "B E"],
    z_text: Float[Array, "B E"],
    image_id: Int[Array, " B"],
    temperature: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """InfoNCE in nats, the mean of both directions, as (sum over pairs, number of pairs).

    Pairs of one image are positives of each other: the target is uniform over them.
    """
    logits = z_image @ z_text.T / temperature
    positive = (image_id[:, None] == image_id[None, :]).astype(jnp.float32)
    # Symmetric, so its normalised rows serve both directions.
    target = positive / positive.sum(axis=1, keepdims=True)
    to_text = -(target * jax.nn.log_softmax(logits, axis=1)).sum(axis=1)
    to_image = -(target * jax.nn.log_softmax(logits.T, axis=1)).sum(axis=1)
    return ((to_text + to_image) / 2).sum(), jnp.float32(z_image.shape[0])
