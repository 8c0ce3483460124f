"""What losses are made of: sums with their counts, and the cross-entropy of tokens.

Every loss and metric is a pair (sum, count): its mean is taken once, over the global batch.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mvlm_jax.training.task import Sums


def example_counts(skipped: Int[Array, " B"]) -> Sums:
    """`examples` and `skipped_images`, both totals over the whole batch.

    Args:
      skipped: the unusable examples that were stepped over to reach each one.
    """
    one = jnp.float32(1)
    return {"examples": (jnp.float32(skipped.shape[0]), one), "skipped_images": (skipped.sum(), one)}


def cross_entropy(logits: Float[Array, "*dims V"], targets: Int[Array, "*dims"]) -> Float[Array, "*dims"]:
    """-log softmax(logits)[target], in float32 nats; targets lie in [0, V)."""
    logits = logits.astype(jnp.float32)
    # A sum over the vocabulary, which is read anyway: the gradient of a look-up is scattered into an array of zeros.
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    chosen = jnp.where(is_target, logits, 0.0).sum(axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def token_log_likelihoods(
    logits: Float[Array, "*B T V"], targets: Int[Array, "*B T"], *, pad_id: int
) -> Float[Array, "*B T"]:
    """log p of each target, in nats; 0 where it is padding."""
    return jnp.where(targets == pad_id, 0.0, -cross_entropy(logits, targets))
