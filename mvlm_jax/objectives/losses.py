"""The losses, and what they are made of: sums with their counts, and the cross-entropy of tokens.

Every loss and metric is a pair (sum, count): its mean is taken once, over the global batch.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mvlm_jax.training.task import SumAndCount, Sums


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


def contrastive_loss(
    z_image: Float[Array, "B E"],
    z_text: Float[Array, "B E"],
    image_id: Int[Array, " B"],
    temperature: Float[Array, ""],
) -> SumAndCount:
    """InfoNCE over the global batch (paper, equation 3) in nats, the mean of both directions; counts pairs.

    Pairs of one image are positives of each other: the target is uniform over them.
    """
    logits = z_image @ z_text.T / temperature
    positive = (image_id[:, None] == image_id[None, :]).astype(jnp.float32)
    # Down the columns rather than along the rows of a transpose, which would move the whole matrix between devices.
    to_text = -(positive / positive.sum(axis=1, keepdims=True) * jax.nn.log_softmax(logits, axis=1)).sum()
    to_image = -(positive / positive.sum(axis=0, keepdims=True) * jax.nn.log_softmax(logits, axis=0)).sum()
    return (to_text + to_image) / 2, jnp.float32(z_image.shape[0])


def masked_image_loss(
    predicted: Float[Array, "B M pixels"], target: Float[Array, "B M pixels"], *, power: int = 1
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Per image (paper, equation 1): sum of |difference| over masked normalised RGB values, and their number.

    Args:
      power: of the difference. The paper has 1. 2, the squared error, also learns what is likely and not certain:
        the best guess under 1 is the median, which for a rare object is its background.
    """
    error = jnp.abs(predicted.astype(jnp.float32) - target.astype(jnp.float32)) ** power
    return error.sum(axis=(1, 2)), jnp.full(error.shape[:1], error.shape[1] * error.shape[2], jnp.float32)


def masked_text_loss(
    logits: Float[Array, "B K V"], targets: Int[Array, "B K"], weights: Float[Array, "B K"]
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Per caption (paper, equation 2): sum of cross-entropies in nats over the masked tokens, and their number."""
    return (cross_entropy(logits, targets) * weights).sum(axis=1), weights.sum(axis=1)


def masked_text_correct(
    logits: Float[Array, "B K V"], targets: Int[Array, "B K"], weights: Float[Array, "B K"]
) -> Float[Array, " B"]:
    """Per caption: how many masked tokens are the model's first guess."""
    return ((logits.argmax(axis=-1) == targets) * weights).sum(axis=1)


def answer_losses(
    logits: Float[Array, "B A T V"], targets: Int[Array, "B A T"], weights: Float[Array, "B A"], *, pad_id: int
) -> Sums:
    """`answer`: negative log-likelihood of a question's weighted answers in nats; `token_accuracy` in percent."""
    likelihood = token_log_likelihoods(logits, targets, pad_id=pad_id).sum(axis=-1)
    is_token, weights_of_tokens = targets != pad_id, weights[:, :, None]
    correct = (logits.argmax(axis=-1) == targets) & is_token
    return {
        "answer": (-(likelihood * weights).sum(), jnp.float32(targets.shape[0])),
        "token_accuracy": (100 * (correct * weights_of_tokens).sum(), (is_token * weights_of_tokens).sum()),
    }


def classification_losses(logits: Float[Array, "B classes"], labels: Int[Array, " B"]) -> Sums:
    """`classification`: cross-entropy in nats; `accuracy` in percent."""
    count = jnp.float32(logits.shape[0])
    return {
        "classification": (cross_entropy(logits, labels).sum(), count),
        "accuracy": (100 * (logits.argmax(axis=-1) == labels).sum().astype(jnp.float32), count),
    }
