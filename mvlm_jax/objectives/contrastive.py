"""Image-text contrast over the global batch (paper, equation 3)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mvlm_jax.training.task import SumAndCount


def contrastive_loss(
    z_image: Float[Array, "B E"],
    z_text: Float[Array, "B E"],
    image_id: Int[Array, " B"],
    temperature: Float[Array, ""],
) -> SumAndCount:
    """InfoNCE in nats, the mean of both directions, as (sum over pairs, number of pairs).

    Pairs of one image are positives of each other: the target is uniform over them.
    """
    logits = z_image @ z_text.T / temperature
    positive = (image_id[:, None] == image_id[None, :]).astype(jnp.float32)
    # Down the columns rather than along the rows of a transpose, which would move the whole matrix between devices.
    to_text = -(positive / positive.sum(axis=1, keepdims=True) * jax.nn.log_softmax(logits, axis=1)).sum()
    to_image = -(positive / positive.sum(axis=0, keepdims=True) * jax.nn.log_softmax(logits, axis=0)).sum()
    return (to_text + to_image) / 2, jnp.float32(z_image.shape[0])
